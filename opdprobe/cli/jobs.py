"""The jobs of `opdprobe.cli.reproduce`: one run, one measurement or one analysis per process.

Each job depends only on the preset and the folder, and does nothing if the folder already holds
its result.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyses import sums
from analyses.evidence import Evidence
from analyses.experiments import EXPERIMENTS, Experiment
from analyses.presets import Preset
from analyses.registry import FIGURES
from analyses.results import save
from opdprobe.errors import OPDProbeError
from opdprobe.store import Run, RunWriter, open_run
from opdprobe.store.files import write_text, write_whole
from opdprobe.train.config import OPDConfig
from opdprobe.train.pool import Report


def train(name: str, seed: int, preset: Preset, folder: Path, report: Report) -> None:
    """Run an experiment with one seed, or resume it."""
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.train.trainer import OPDTrainer

    experiment, config = EXPERIMENTS[name], preset.config
    changes: dict[str, Any] = dict(experiment.overrides)
    changes["learning_rate"] = experiment.learning_rate * config.learning_rate
    if config.max_steps is not None:
        changes["max_steps"] = round(experiment.steps * config.max_steps)
    if experiment.max_completion_length != 1:
        # Only training responses get shorter or longer; the benchmarks keep their length.
        changes["eval_max_completion_length"] = _evaluated(preset)
        changes["max_completion_length"] = _longest(experiment, preset)
    benchmarks = preset.benchmarks
    if experiment.prompts == "long":
        benchmarks = benchmarks | preset.long_benchmarks
    if experiment.crossed:
        benchmarks = benchmarks | preset.crossed
    prompts, grader = _prompts(experiment, seed, preset)
    teacher = resolve_model(preset.model(experiment.teacher, seed))
    OPDTrainer(
        resolve_model(preset.model(experiment.student, seed)),
        _permuted(teacher, preset) if experiment.permuted else teacher,
        prompts=prompts,
        config=replace(config, seed=seed, **changes),
        run_dir=run_dir(folder, name, seed),
        grader=grader,
        eval_prompts={
            benchmark: resolve_prompts(source, preset.n_problems)[0]
            for benchmark, source in benchmarks.items()
        },
        **preset.loading,
    ).train(resume=True, on_progress=report)
    _add_up(name, seed, folder)


def _permuted(name: str | Path, preset: Preset) -> Any:
    """Load a model and let the rows of its output layer change places."""
    import torch

    from opdprobe.models.load import load_model

    model = load_model(
        name,
        device=preset.device,
        dtype=preset.teacher_dtype or preset.dtype,
        attn_implementation=preset.attn_implementation,
    )
    head: Any = model.get_output_embeddings()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(head.weight)))
    # A new parameter: one that is shared with the input embeddings must not change those.
    head.weight = torch.nn.Parameter(head.weight.detach()[order])
    if getattr(head, "bias", None) is not None:
        head.bias = torch.nn.Parameter(head.bias.detach()[order])
    return model


def _evaluated(preset: Preset) -> int:
    config = preset.config
    return config.eval_max_completion_length or config.max_completion_length


def _encoding(config: OPDConfig) -> dict[str, Any]:
    """Arguments for whatever encodes prompts."""
    names = ("max_prompt_length", "chat_template_kwargs", "system_prompt")
    return {name: getattr(config, name) for name in names}


def _longest(experiment: Experiment, preset: Preset) -> int:
    return round(experiment.max_completion_length * preset.config.max_completion_length)


def _prompts(experiment: Experiment, seed: int, preset: Preset):
    """Return an experiment's training prompts, chosen by its strategy (§5.2), and their grader."""
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.rollout.pair import Pair
    from opdprobe.train.recipes.select import max_divergence, mixed

    prompts, grader = resolve_prompts(preset.prompts[experiment.prompts], preset.n_prompts)
    if experiment.select is None:
        return prompts, grader
    other, _ = resolve_prompts(preset.prompts["other"], preset.n_prompts)
    n = len(prompts) // 2
    if experiment.select == "mixed":
        return mixed(prompts, other, n_prompts=n, share=0.3, seed=seed), grader
    pair = Pair.load(
        resolve_model(preset.model(experiment.student, seed)),
        resolve_model(preset.model(experiment.teacher, seed)),
        **preset.loading,
    )
    chosen, _ = max_divergence(
        pair,
        prompts[:n] + other[:n],
        n_prompts=n,
        max_completion_length=_longest(experiment, preset),
        **_encoding(preset.config),
        micro_batch_tokens=preset.config.micro_batch_tokens,
        seed=seed,
    )
    return chosen, grader


def probe(name: str, seed: int, preset: Preset, folder: Path, report: Report) -> None:
    """Score an untrained student's rollouts once; let the teacher continue their prefixes."""
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.models.devices import precision
    from opdprobe.models.load import identity
    from opdprobe.rollout.continuation import Sampling, continuation_gain
    from opdprobe.rollout.once import probe
    from opdprobe.rollout.pair import Pair
    from opdprobe.rollout.prompt_attrs import template_attrs
    from opdprobe.rollout.prompts import encode_prompts

    experiment, config = EXPERIMENTS[name], preset.config
    pair = Pair.load(
        resolve_model(preset.model(experiment.student, seed)),
        resolve_model(preset.model(experiment.teacher, seed)),
        **preset.loading,
    )
    path = run_dir(folder, name, seed)
    prompts, grader = resolve_prompts(preset.prompts[experiment.prompts], preset.n_probe)
    encoded = encode_prompts(pair.tokenizer, prompts, **_encoding(config))
    writer = RunWriter(
        path,
        attrs={
            "student": identity(pair.student),
            "teacher": identity(pair.teacher),
            "k": config.k,
            "seed": seed,
            "chat_template": template_attrs(
                pair.tokenizer, encoded, config.chat_template_kwargs, config.system_prompt
            ),
            **precision({"student": pair.student, "teacher": pair.teacher}),
        },
        config={"n_prompts": preset.n_probe, "num_generations": config.num_generations},
        resume=True,
    )
    if not open_run(path).steps:
        step = probe(
            pair,
            encoded,
            num_generations=config.num_generations,
            k=config.k,
            max_completion_length=config.max_completion_length,
            grader=grader,
            unfinished=config.unfinished,
            seed=seed,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        writer.write_step(0, step)
    _add_up(name, seed, folder)
    gains = continuation_path(folder, name, seed)
    if grader is None or gains.exists():
        return
    found = continuation_gain(
        open_run(path).load(0),
        pair.teacher,
        pair.tokenizer,
        prompts,
        grader,
        Sampling(
            config.max_completion_length,
            seed=seed,
            width=pair.width,
            unfinished=config.unfinished,
        ),
        depths=preset.depths,
    )
    arrays: dict[str, Any] = {name: found[name].values for name in ("depth", "teacher", "student")}
    write_whole(gains, lambda file: np.savez(file, **arrays))


def score(role: str, seed: int, preset: Preset, folder: Path, report: Report) -> None:
    """Measure the accuracy of a role's model, problem by problem."""
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.models.load import load_model, load_tokenizer, weight_hash
    from opdprobe.rollout.prompts import encode_prompts
    from opdprobe.train.evaluate import evaluate

    name, config = resolve_model(preset.model(role, seed)), preset.config
    tokenizer = load_tokenizer(name)
    model = load_model(
        name,
        device=preset.device,
        dtype=preset.dtype,
        attn_implementation=preset.attn_implementation,
    )
    settings = {
        "weight_hash": weight_hash(model),
        "benchmarks": preset.benchmarks,
        "n_problems": preset.n_problems,
        "num_generations": config.eval_n,
        "temperature": config.eval_temperature,
        "top_p": config.eval_top_p,
        "max_completion_length": _evaluated(preset),
        "unfinished": config.unfinished,
        # Earlier scores lack these; they had none.
        **{
            name: value
            for name in ("chat_template_kwargs", "system_prompt")
            if (value := getattr(config, name)) is not None
        },
    }
    path = scores_path(folder, role, seed, preset)
    if path.exists() and json.loads(path.read_text())["settings"] == settings:
        return
    scores = {}
    for i, (benchmark, source) in enumerate(preset.benchmarks.items()):
        report(i, len(preset.benchmarks))
        problems, grader = resolve_prompts(source, preset.n_problems)
        if grader is None:
            raise OPDProbeError(
                f"{source}: some prompts have no answer; expected one for each, to grade by."
            )
        scores[benchmark] = (
            evaluate(
                model,
                tokenizer,
                encode_prompts(tokenizer, problems, **_encoding(config)),
                grader,
                num_generations=settings["num_generations"],
                max_completion_length=settings["max_completion_length"],
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                unfinished=settings["unfinished"],
                benchmark=benchmark,
            )
            .mean(1)
            .tolist()
        )
    report(len(preset.benchmarks), len(preset.benchmarks))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"settings": settings, "scores": scores}))


def analyse(figure: str, preset: Preset, folder: Path, report: Report) -> None:
    """Turn a figure's runs into its results file."""
    report(0, 1)
    made = FIGURES[figure]
    results = made.analyse(evidence(preset, folder, made.experiments, made.measurements))
    save(results, results_path(folder, figure))
    report(1, 1)


def _add_up(name: str, seed: int, folder: Path) -> None:
    """Sum a run's probes once, for all figures that show the run."""
    run = open_run(run_dir(folder, name, seed))
    path = sums_path(folder, name, seed)
    if not path.exists() or sums.load(path).steps.tolist() != run.steps:
        sums.save(sums.add_up(run), path)


def evidence(
    preset: Preset,
    folder: Path,
    names: Sequence[str],
    measurements: Sequence[tuple[str, str]] = (),
) -> Evidence:
    """Open the runs of some experiments and read the accuracies of all models.

    Also read what was measured on the runs, by `measurements`: of what, on which experiment's.
    """
    gains = {
        name: [continuation_path(folder, name, seed) for seed in preset.seeds]
        for name in names
        if not EXPERIMENTS[name].train
    }
    runs = {
        name: [open_run(run_dir(folder, name, seed)) for seed in preset.seeds] for name in names
    }
    return Evidence(
        preset=folder.name,
        models=preset.models,
        runs=runs,
        sums={
            run.path: sums.load(sums_path(folder, name, seed))
            for name in names
            for seed, run in zip(preset.seeds, runs[name], strict=True)
        },
        scores={
            role: [_read_scores(scores_path(folder, role, seed, preset)) for seed in preset.seeds]
            for role in sorted({r for n in names for r in trained_roles(n)})
        },
        continuations={
            name: [_read_gain(path, run) for path, run in zip(paths, runs[name], strict=True)]
            for name, paths in gains.items()
            if all(path.exists() for path in paths)
        },
        measured={
            (measure, name): [
                json.loads(measured_path(folder, measure, name, seed).read_text())
                for seed in preset.seeds
            ]
            for measure, name in measurements
        },
    )


def trained_roles(name: str) -> tuple[str, ...]:
    """Roles of the models whose accuracy an experiment needs; a probe grades its own rollouts."""
    experiment = EXPERIMENTS[name]
    return (experiment.student, experiment.teacher) if experiment.train else ()


def _read_scores(path: Path) -> dict[str, np.ndarray]:
    found = json.loads(path.read_text())["scores"]
    return {benchmark: np.array(values) for benchmark, values in found.items()}


def _read_gain(path: Path, run: Run) -> xr.Dataset:
    with np.load(path) as found:
        depth, teacher, student = found["depth"], found["teacher"], found["student"]
    prompts = run.load(*run.steps)["prompt_id"].values
    dims = ("depth", "rollout")
    return xr.Dataset(
        {
            "teacher": (dims, teacher),
            "student": (dims, student),
            "gain": (dims, teacher - student),
        },
        {"depth": depth, "prompt_id": ("rollout", prompts)},
    )


def run_name(name: str, seed: int) -> str:
    """Name of an experiment's run with one seed."""
    return f"{name}-s{seed}"


def run_dir(folder: Path, name: str, seed: int) -> Path:
    """Where a run is kept."""
    return folder / "runs" / run_name(name, seed)


def continuation_path(folder: Path, name: str, seed: int) -> Path:
    """Where the continuations of a probe's rollouts are kept: in the run, to be deleted with it."""
    return run_dir(folder, name, seed) / "continuation.npz"


def measured_path(folder: Path, measure: str, name: str, seed: int) -> Path:
    """Where what is measured on a run is kept: in the run, to be deleted with it."""
    return run_dir(folder, name, seed) / f"{measure}.json"


def scores_path(folder: Path, role: str, seed: int, preset: Preset) -> Path:
    """Where the accuracies of a role's model are kept; of each seed's, if they differ."""
    name = role if isinstance(preset.models[role], str) else run_name(role, seed)
    return folder / "scores" / f"{name}.json"


def sums_path(folder: Path, name: str, seed: int) -> Path:
    """Where the sums of a run's probes are kept: in the run, to be deleted with it."""
    return run_dir(folder, name, seed) / "prompt_sums.npz"


def results_path(folder: Path, figure: str) -> Path:
    """Where a figure's results are kept."""
    return folder / "results" / f"{figure}.json"
