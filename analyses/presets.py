"""Presets: the models, prompts and settings of a reproduction, by role."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analyses.experiments import CROSSED, MODEL_ROLES, PROMPT_ROLES
from analyses.registry import roles_of
from opdprobe.errors import ConfigError, shown
from opdprobe.store.safe_text import parse_yaml
from opdprobe.train.config import OPDConfig


@dataclass(frozen=True)
class Preset:
    """Models, prompts and settings of a reproduction.

    Parameters
    ----------
    models
        Role to a name that `opdprobe.cli.names.resolve_model` takes; or to several, one per seed,
        so that results do not hang on one of them.
    prompts
        Role to a name that `opdprobe.cli.names.resolve_prompts` takes.
    benchmarks
        Benchmark to a name that `opdprobe.cli.names.resolve_prompts` takes.
    long_benchmarks
        More benchmarks, with long answers, for the runs that vary the response length.
    crossed
        Role of `analyses.experiments.CROSSED` to held-out problems like that role's prompts.
    n_prompts, n_problems
        Number of prompts per role, and of problems per benchmark; None takes all.
    config
        Settings of every run, before an experiment's overrides.
    seeds
        One run per seed and experiment.
    n_probe
        Number of prompts of a probe without training, with `config.num_generations` rollouts each.
    depths
        Prefix lengths of the continuation gain, in tokens.
    device, dtype, teacher_dtype, attn_implementation
        Where models go and how they compute; see `opdprobe.rollout.pair.Pair.load`.
    """

    models: dict[str, str | tuple[str, ...]]
    prompts: dict[str, str]
    benchmarks: dict[str, str]
    long_benchmarks: dict[str, str]
    crossed: dict[str, str]
    n_prompts: int | None
    n_problems: int | None
    config: OPDConfig
    seeds: tuple[int, ...]
    n_probe: int
    depths: tuple[int, ...]
    device: str = "auto"
    dtype: str | None = None
    teacher_dtype: str | None = None
    attn_implementation: str | None = None

    def model(self, role: str, seed: int) -> str:
        """Name of the model that stands for a role in the run with a seed."""
        names = self.models[role]
        return names if isinstance(names, str) else names[self.seeds.index(seed)]

    @property
    def loading(self) -> dict[str, Any]:
        """How models are loaded, by the names of `opdprobe.rollout.pair.Pair.load`'s arguments."""
        return {name: getattr(self, name) for name in LOADING}


LOADING = ("device", "dtype", "teacher_dtype", "attn_implementation")
"""The fields of a preset that say how models are loaded."""

_ZOO = {
    "student": "sft-small",
    "rl_student": "rl-small",
    "large": "sft-large",
    "rl_large": "rl-large",
    "extra_large": "sft-extra-large",
    "base": "base-small",
    "rl_base_large": "base-large-rl",
    "post": "post-small",
    "post_large": "post-large",
    "rl_post_large": "post-large-rl",
    "cold_teacher": "post-large-rl",
    "cold_start": "cold-start-small",
}
_QUICK = Preset(
    models={role: f"zoo:{name}" for role, name in _ZOO.items()},
    prompts={
        "train": "zoo:train",
        "original": "zoo:train/unseen",
        "other": "zoo:other",
        "other_original": "zoo:other/unseen",
        "long": "zoo:long",
    },
    benchmarks={"easy": "zoo:easy", "medium": "zoo:medium", "hard": "zoo:hard"},
    long_benchmarks={"deep": "zoo:deep"},
    crossed={
        "other": "zoo:deep",
        "original": "zoo:medium/unseen",
        "other_original": "zoo:deep/unseen",
    },
    n_prompts=2048,
    n_problems=80,
    config=OPDConfig(
        batch_size=16,
        num_generations=4,
        max_prompt_length=32,
        max_completion_length=64,
        learning_rate=2e-4,
        max_steps=48,
        micro_batch_tokens=2048,
        eval_every=12,
        eval_n=4,
        eval_max_completion_length=80,
        save_steps=24,
    ),
    seeds=(0,),
    n_probe=128,
    depths=(0, 1, 2, 4, 8, 16, 24, 32),
    device="cpu",  # as the published results were made; the models are too small for a GPU to help
)

_REAL = {
    "student": "student-small",
    "rl_student": "rl-small",
    "large": "student-large",
    "rl_large": "rl-large",
    "base": "base-small",
    "cold_teacher": "rl-large",
    "cold_start": "cold-start-small",
}
"""Roles of the preset ``real`` and who plays them, of `opdprobe.testing.real.members.MEMBERS`."""


def real_preset(zoo: Path) -> Preset:
    """Return the preset of the word problems in English.

    Parameters
    ----------
    zoo
        Where the models are, which `opdprobe zoo build --world real` makes.
    """
    return Preset(
        models={role: str(zoo / name) for role, name in _REAL.items()},
        prompts={
            "train": "real:train",
            "original": "real:train/asked",
            "other": "real:other",
            "other_original": "real:other/asked",
        },
        benchmarks={name: f"real:{name}" for name in ("easy", "medium", "hard")},
        long_benchmarks={},
        crossed={
            "other": "real:riders",
            "original": "real:medium/asked",
            "other_original": "real:riders/asked",
        },
        n_prompts=2048,
        n_problems=20,
        config=OPDConfig(
            batch_size=4,
            num_generations=4,
            max_prompt_length=192,
            max_completion_length=72,
            learning_rate=5e-5,
            max_steps=5,
            micro_batch_tokens=2048,
            eval_every=10,
            eval_n=2,
            save_steps=5,
        ),
        seeds=(1, 2, 3),  # 0 is for plans
        n_probe=24,
        depths=(0, 1, 2, 4, 8, 16, 32, 48),
    )


PRESETS = {
    "quick": _QUICK,
    "real": real_preset(Path("out/real/zoo")),
    # Seed 0 was used to plan the runs, and 0 to 4 in earlier versions of them. The RL'd student of
    # each seed has had an RL of its own; the first one served the plans, too.
    "full": replace(
        _QUICK,
        seeds=(5, 6, 7, 8, 9),
        models={
            **_QUICK.models,
            "rl_student": ("zoo:rl-small", *(f"zoo:rl-small-s{i}" for i in range(1, 5))),
        },
    ),
    # The paper's models, prompts and hyper-parameters. Paths stand for those without a public
    # repository; replace them with --models.
    "paper": Preset(
        models={
            "student": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            "rl_student": "hbx/JustRL-DeepSeek-1.5B",
            "large": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            "rl_large": "Skywork/Skywork-OR1-Math-7B",
            "extra_large": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
            "base": "Qwen/Qwen3-1.7B-Base",
            "rl_base_large": "models/Qwen3-4B-Base-GRPO",
            "post": "Qwen/Qwen3-1.7B",
            "post_large": "Qwen/Qwen3-4B",
            "rl_post_large": "models/Qwen3-4B-Non-Thinking-RL-Math",
            "cold_teacher": "Qwen/Qwen3-4B",
            "cold_start": "models/Qwen3-1.7B-Base-cold-start",
        },
        prompts={
            "train": "dapo-math-17k-processed.parquet",
            "original": "dapo-math-17k.parquet",
            "other": "DeepMath_deduped.parquet",
            "long": "dapo-math-17k-processed.parquet",
        },
        benchmarks={
            "AIME24": "AIME24.parquet",
            "AIME25": "AIME25.parquet",
            "AMC23": "AMC23.parquet",
        },
        long_benchmarks={},
        crossed={},
        n_prompts=None,
        n_problems=None,
        config=OPDConfig(eval_every=20, record_fraction=0.1, save_steps=24),
        seeds=(0,),
        n_probe=64,
        depths=(0, 1024, 2048, 4096, 7168),
    ),
}


def lacking(preset: Preset, figure: str) -> list[str]:
    """Return the roles that a figure needs and a preset does not fill, sorted."""
    models, prompts = roles_of(figure)
    return sorted((models - set(preset.models)) | (prompts - set(preset.prompts)))


def own_preset(path: Path, base: Preset) -> Preset:
    """Read a user's own models, prompts and benchmarks from a YAML file.

    Parameters
    ----------
    path
        File with fields of `Preset`. ``models``, ``prompts`` and ``benchmarks`` are required;
        a model may be a list, one per seed. ``long_benchmarks`` and ``crossed`` are empty by
        default; ``seeds``, ``n_prompts``, ``n_problems``,
        ``n_probe``, ``depths`` replace those of `base`; ``device``, ``dtype``, ``teacher_dtype``
        and ``attn_implementation`` say how models are loaded (by default, on the machine's
        accelerator); ``config`` holds the settings of
        `OPDConfig` that differ from `base`'s. Figures that need a role that is not named are left
        out.
    base
        Preset that supplies all other values.

    Raises
    ------
    ConfigError
        The file is missing or is not such a mapping, or a field or a role is unknown.
    """
    try:
        given = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no file {path}; expected a YAML file of name: value lines.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} holds a {type(given).__name__}; expected name: value lines.")
    known = {f.name for f in fields(Preset)}
    _refuse_unknown(path, "field", set(given) - known, known)
    changes: dict[str, Any] = {"long_benchmarks": {}, "crossed": {}, "device": "auto", **given}
    for name, roles in (
        ("models", MODEL_ROLES),
        ("prompts", PROMPT_ROLES),
        ("benchmarks", None),
        ("long_benchmarks", None),
        ("crossed", CROSSED),
    ):
        value = changes.get(name)
        empty = value == {} and name in ("models", "prompts", "benchmarks")
        is_name = _are_models if name == "models" else _is_name
        if empty or not (isinstance(value, dict) and all(map(is_name, value.values()))):
            raise ConfigError(
                f"{path}: {name} = {shown(value)}; expected a mapping of roles to names."
            )
        if roles is not None:
            _refuse_unknown(path, f"role in {name}", set(value) - set(roles), set(roles))
    if "train" not in given["prompts"]:
        raise ConfigError(
            f"{path}: prompts lack the role 'train'; name one, which all experiments need."
        )
    if "config" in given:
        if not isinstance(given["config"], dict):
            raise ConfigError(f"{path}: config is not a mapping; expected name: value lines.")
        changes["config"] = OPDConfig.from_dict({**base.config.to_dict(), **given["config"]})
    for name in ("seeds", "depths"):
        if name in given:
            if not _are_numbers(given[name]):
                raise ConfigError(
                    f"{path}: {name} = {shown(given[name])}; expected a list of numbers."
                )
            changes[name] = tuple(given[name])
    for name in LOADING:
        if name in given and not _is_name(given[name]):
            raise ConfigError(f"{path}: {name} = {shown(given[name])}; expected a name.")
    for name in ("n_prompts", "n_problems", "n_probe"):
        if given.get(name) is not None and not _are_numbers([given[name]]):
            raise ConfigError(f"{path}: {name} = {shown(given[name])}; expected a whole number.")
    preset = replace(base, **changes)
    preset.models.update(_by_seed(path, preset))
    return preset


def _by_seed(path: Path, preset: Preset) -> dict[str, tuple[str, ...]]:
    """Return the models that differ from seed to seed."""
    lists = {role: tuple(name) for role, name in preset.models.items() if isinstance(name, list)}
    for role, names in lists.items():
        if len(names) != len(preset.seeds):
            raise ConfigError(
                f"{path}: {role} names {len(names)} models; expected one, or one for each of the "
                f"{len(preset.seeds)} seeds."
            )
    return lists


def _are_models(value: Any) -> bool:
    return _is_name(value) or (isinstance(value, list) and all(map(_is_name, value)))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    )


def _refuse_unknown(path: Path, kind: str, unknown: set[str], known: set[str]) -> None:
    if unknown:
        raise ConfigError(
            f"{path}: unknown {kind}: {', '.join(sorted(map(str, unknown)))}; "
            f"expected one of {', '.join(sorted(known))}."
        )
