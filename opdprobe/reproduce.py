"""Carry out a preset: train its runs side by side, analyse them, draw the figures, report.

Every step is resumable: a run continues from its last checkpoint, a finished one is only opened.

    OUT/PRESET/runs/EXPERIMENT-sSEED/    a recorded run each
    OUT/PRESET/scores/ROLE.json          accuracy of each model, problem by problem
    OUT/PRESET/results/figNN.json        what the analyses found
    OUT/PRESET/figures/                  figNN.pdf, figNN.png, captions
    OUT/PRESET/report.html
"""

import json
import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import figures
from analyses import alignment, gradients, mass, reverse, reward, supports
from analyses.evidence import BENCHMARK, Evidence
from analyses.experiments import EXPERIMENTS, FIGURES, PRESETS, Preset, needed
from analyses.results import Results, load, save
from opdprobe.errors import OPDProbeError
from opdprobe.report import write_report
from opdprobe.store import RunWriter, open_run

ANALYSES = {
    "fig05": reverse.analyse,
    "fig06": alignment.analyse,
    "fig07": supports.analyse,
    "fig14": reward.analyse,
    "fig18": mass.analyse,
    "fig19": gradients.analyse,
}

Progress = Callable[[str, int, int], None]
"""Called with a job's name, steps done, steps in all."""


@dataclass(frozen=True)
class Job:
    """One piece of work for one process."""

    kind: Literal["run", "score", "analyse"]
    name: str
    seed: int = 0

    @property
    def label(self) -> str:
        """Name shown to the user."""
        names = {"run": f"{self.name}-s{self.seed}", "score": f"accuracy of {self.name}"}
        return names.get(self.kind, f"analysis of {self.name}")


def plan(preset: Preset, names: Sequence[str]) -> list[Job]:
    """List the jobs behind some experiments, those with the largest model first.

    The longest first, so that the two processes end at about the same time.
    """
    runs = [Job("run", name, seed) for name in names for seed in preset.seeds]
    runs.sort(key=lambda job: not EXPERIMENTS[job.name].train)
    runs.sort(key=lambda job: EXPERIMENTS[job.name].teacher != "large")
    # Accuracies are for runs that train: what a probe records is graded in itself.
    trained = [EXPERIMENTS[name] for name in names if EXPERIMENTS[name].train]
    roles = {role for experiment in trained for role in (experiment.student, experiment.teacher)}
    return [*runs, *(Job("score", role) for role in sorted(roles))]


def reproduce(
    preset_name: str,
    *,
    figure_names: list[str] | None = None,
    out: Path,
    workers: int = 2,
    on_progress: Progress = lambda name, done, total: None,
) -> list[Results]:
    """Run a preset to its report.

    Parameters
    ----------
    preset_name
        Key of `analyses.experiments.PRESETS`.
    figure_names
        Figures wanted; all by default.
    out
        Where everything goes, below the preset's name.
    workers
        Processes, one thread each.
    on_progress
        Called whenever a job has moved on.

    Returns
    -------
    list of Results
        One a figure.

    Raises
    ------
    OPDProbeError
        Unknown names, models that are missing, runs in `out` made with other settings, a process
        that was killed.
    """
    if preset_name not in PRESETS:
        raise OPDProbeError(f"no preset {preset_name!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[preset_name]
    folder = out / preset_name
    chosen = list(FIGURES) if figure_names is None else list(dict.fromkeys(figure_names))
    stages = [plan(preset, needed(chosen)), [Job("analyse", figure) for figure in chosen]]
    _work(stages, preset, folder, workers, on_progress)
    results = [load(folder / "results" / f"{figure}.json") for figure in chosen]
    figures.make(folder / "results", folder / "figures", chosen)
    write_report(
        folder / "report.html",
        results,
        folder / "figures",
        title=f"On-policy distillation, preset {preset_name}",
    )
    return results


def _work(
    stages: list[list[Job]], preset: Preset, folder: Path, workers: int, on_progress: Progress
) -> None:
    """Do the jobs of a stage side by side, one stage after the other."""
    # Fresh interpreters: forking a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(progress,)
    )
    try:
        for jobs in stages:
            waiting = {pool.submit(_do, job, preset, folder) for job in jobs}
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        on_progress(*progress.get_nowait())
                    except queue.Empty:
                        break
                for future in done:
                    future.result()
    except BrokenProcessPool as error:
        raise OPDProbeError(
            "a process was killed, perhaps for want of memory; the same command goes on where it "
            "was, with --workers 1 in less memory."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_progress: Any = None  # the worker's end of the queue


def _start_worker(progress: Any) -> None:
    global _progress
    _progress = progress
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import transformers

    # The models are tiny: a second thread costs more than it gives.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def _do(job: Job, preset: Preset, folder: Path) -> None:
    def report(done: int, total: int) -> None:
        _progress.put((job.label, done, total))

    if job.kind == "run" and EXPERIMENTS[job.name].train:
        _train(job, preset, _run_dir(folder, job.name, job.seed), report)
        return
    report(0, 1)
    if job.kind == "analyse":
        _analyse(job.name, preset, folder)
    elif job.kind == "score":
        _score(job.name, preset, folder / "scores" / f"{job.name}.json")
    else:
        _probe(job, preset, _run_dir(folder, job.name, job.seed))
    report(1, 1)


def _train(job: Job, preset: Preset, run_dir: Path, report: Callable[[int, int], None]) -> None:
    from opdprobe.names import resolve_model, resolve_prompts
    from opdprobe.train.trainer import OPDTrainer

    experiment, config = EXPERIMENTS[job.name], preset.config
    if config.max_steps is not None:
        config = replace(config, max_steps=round(experiment.steps * config.max_steps))
    prompts, grader = resolve_prompts(preset.prompts, preset.n_prompts)
    benchmark, _ = resolve_prompts(preset.benchmark, preset.n_problems)
    OPDTrainer(
        resolve_model(preset.models[experiment.student]),
        resolve_model(preset.models[experiment.teacher]),
        prompts=prompts,
        config=replace(config, seed=job.seed, **experiment.overrides),
        run_dir=run_dir,
        grader=grader,
        eval_prompts={BENCHMARK: benchmark},
    ).train(resume=True, on_progress=report)


def _probe(job: Job, preset: Preset, run_dir: Path) -> None:
    from opdprobe.models import load_model, load_tokenizer
    from opdprobe.names import resolve_model, resolve_prompts
    from opdprobe.pair import Pair
    from opdprobe.probe import probe
    from opdprobe.prompts import encode_prompts

    experiment, config = EXPERIMENTS[job.name], preset.config
    student = resolve_model(preset.models[experiment.student])
    teacher = resolve_model(preset.models[experiment.teacher])
    attrs = {
        "student": {"name": str(student)},
        "teacher": {"name": str(teacher)},
        "k": config.k,
        "seed": job.seed,
    }
    settings = {"n_prompts": preset.n_probe, "num_generations": config.num_generations}
    writer = RunWriter(run_dir, attrs=attrs, config=settings, resume=True)
    if open_run(run_dir).steps:
        return
    prompts, grader = resolve_prompts(preset.prompts, preset.n_probe)
    tokenizer = load_tokenizer(student)
    pair = Pair(load_model(student), load_model(teacher), tokenizer, load_tokenizer(teacher))
    encoded = encode_prompts(tokenizer, prompts, max_length=config.max_prompt_length)
    writer.write_step(
        0,
        probe(
            pair,
            encoded,
            n=config.num_generations,
            k=config.k,
            max_new_tokens=config.max_completion_length,
            grader=grader,
            seed=job.seed,
            max_tokens=config.micro_batch_tokens,
        ),
    )


def _score(role: str, preset: Preset, path: Path) -> None:
    from opdprobe.models import load_model, load_tokenizer
    from opdprobe.names import resolve_model, resolve_prompts
    from opdprobe.prompts import encode_prompts
    from opdprobe.train.evaluate import evaluate

    name, config = resolve_model(preset.models[role]), preset.config
    settings = [
        str(name),
        preset.benchmark,
        preset.n_problems,
        config.eval_n,
        config.eval_temperature,
        config.eval_top_p,
        config.max_completion_length,
    ]
    if path.exists() and json.loads(path.read_text())["settings"] == settings:
        return
    problems, grader = resolve_prompts(preset.benchmark, preset.n_problems)
    if grader is None:
        raise OPDProbeError(f"{preset.benchmark} has prompts without answers: nothing to grade.")
    tokenizer = load_tokenizer(name)
    scores = evaluate(
        load_model(name),
        tokenizer,
        encode_prompts(tokenizer, problems, max_length=config.max_prompt_length),
        grader,
        n=config.eval_n,
        max_new_tokens=config.max_completion_length,
        temperature=config.eval_temperature,
        top_p=config.eval_top_p,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"settings": settings, "score": scores.mean(1).tolist()}))
    os.replace(temporary, path)


def _analyse(figure: str, preset: Preset, folder: Path) -> None:
    evidence = Evidence(
        preset=folder.name,
        models=preset.models,
        runs={
            name: [open_run(_run_dir(folder, name, seed)) for seed in preset.seeds]
            for name in FIGURES[figure]
        },
        scores={
            path.stem: np.array(json.loads(path.read_text())["score"])
            for path in sorted((folder / "scores").glob("*.json"))
        },
    )
    save(ANALYSES[figure](evidence), folder / "results" / f"{figure}.json")


def _run_dir(folder: Path, name: str, seed: int) -> Path:
    return folder / "runs" / f"{name}-s{seed}"
