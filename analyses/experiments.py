"""What is run for which figure, and on which models: the plan behind `opdprobe reproduce`.

An experiment names *roles*; a preset says which model plays each role. The same code therefore runs
on the testbed (quick, full) and on the paper's models (paper).
"""

from dataclasses import dataclass, field
from typing import Any

from opdprobe.errors import OPDProbeError
from opdprobe.train.config import OPDConfig

ROLES = {
    "student": "the student before RL (paper: DeepSeek-R1-Distill-Qwen-1.5B)",
    "rl_student": "the student after RL: teacher of the success, student of the reverse runs "
    "(paper: JustRL-DeepSeek-1.5B)",
    "large": "a larger model of the student's own pipeline (paper: DeepSeek-R1-Distill-Qwen-7B)",
}


@dataclass(frozen=True)
class Experiment:
    """One OPD run.

    Parameters
    ----------
    student, teacher
        Roles.
    overrides
        Settings that differ from the preset's.
    train
        If False, the untrained student's rollouts are scored once and nothing is trained.
    steps
        Factor on the preset's `max_steps`. Undoing RL takes longer than following it: what the
        teacher does, the student has all but stopped to sample.
    """

    student: str
    teacher: str
    overrides: dict[str, Any] = field(default_factory=dict)
    train: bool = True
    steps: float = 1.0


EXPERIMENTS = {
    "success": Experiment("student", "rl_student"),
    "failure": Experiment("student", "large"),
    "reverse_small": Experiment("rl_student", "student", steps=2.0),
    "reverse_large": Experiment("rl_student", "large", steps=2.0),
    "support_overlap": Experiment("student", "rl_student", {"support": "overlap"}),
    "support_non_overlap": Experiment("student", "rl_student", {"support": "non_overlap"}),
    "probe_success": Experiment("student", "rl_student", train=False),
    "probe_failure": Experiment("student", "large", train=False),
}

FIGURES = {
    "fig05": ("reverse_small", "reverse_large"),
    "fig06": ("success", "failure"),
    "fig07": ("success", "support_overlap", "support_non_overlap"),
    "fig14": ("probe_success", "probe_failure"),
    "fig18": ("success", "failure"),
    "fig19": ("success", "failure"),
}


@dataclass(frozen=True)
class Preset:
    """Models, prompts and settings of a reproduction.

    Parameters
    ----------
    models
        Role to a name that `opdprobe.names.resolve_model` takes.
    prompts, benchmark
        Training prompts and evaluation problems, as `opdprobe.names.resolve_prompts` takes them.
    n_prompts, n_problems
        How many of either; None takes all.
    config
        Settings of every run, before an experiment's overrides.
    seeds
        One run each.
    n_probe
        Prompts of a probe without training, `config.num_generations` rollouts each.
    """

    models: dict[str, str]
    prompts: str
    benchmark: str
    n_prompts: int | None
    n_problems: int | None
    config: OPDConfig
    seeds: tuple[int, ...]
    n_probe: int


_TESTBED = {"student": "zoo:sft-small", "rl_student": "zoo:rl-small", "large": "zoo:sft-large"}
_QUICK = OPDConfig(
    batch_size=16,
    num_generations=4,
    max_prompt_length=32,
    max_completion_length=64,
    learning_rate=2e-4,
    max_steps=120,
    micro_batch_tokens=2048,
    eval_every=10,
    eval_n=4,
    save_steps=20,
)

PRESETS = {
    "quick": Preset(
        models=_TESTBED,
        prompts="zoo:train",
        benchmark="zoo:test",
        n_prompts=2048,
        n_problems=256,
        config=_QUICK,
        seeds=(0,),
        n_probe=128,
    ),
    "full": Preset(
        models=_TESTBED,
        prompts="zoo:train",
        benchmark="zoo:test",
        n_prompts=4096,
        n_problems=256,
        config=_QUICK,
        seeds=(0, 1, 2, 3, 4),
        n_probe=256,
    ),
    # The paper's models, prompts and hyper-parameters; AIME24 stands for its three benchmarks.
    "paper": Preset(
        models={
            "student": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            "rl_student": "hbx/JustRL-DeepSeek-1.5B",
            "large": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        },
        prompts="dapo-math-17k-processed.parquet",
        benchmark="AIME24.parquet",
        n_prompts=None,
        n_problems=None,
        config=OPDConfig(eval_every=20, record_fraction=0.1, save_steps=20),
        seeds=(0,),
        n_probe=64,
    ),
}


def needed(figures: list[str] | None) -> list[str]:
    """List the experiments that some figures need; all figures by default.

    Raises
    ------
    OPDProbeError
        If a figure is unknown; lists those there are.
    """
    chosen = list(FIGURES) if figures is None else figures
    unknown = sorted(set(chosen) - set(FIGURES))
    if unknown:
        raise OPDProbeError(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}.")
    names = {name for figure in chosen for name in FIGURES[figure]}
    return [name for name in EXPERIMENTS if name in names]
