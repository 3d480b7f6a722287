"""Run a preset: train its runs in parallel, analyse them, draw the figures, write the report.

Every step is resumable: a run continues from its last checkpoint, a finished one is only opened.

    OUT/PRESET/runs/EXPERIMENT-sSEED/    one recorded run, with the sums of its probes by rollout;
                                         for an untrained student also how well the teacher
                                         continues its responses
    OUT/PRESET/scores/ROLE.json          accuracy of one model, problem by problem
    OUT/PRESET/results/figNN.json        what the analyses found
    OUT/PRESET/figures/                  figNN.pdf, figNN.png, captions
    OUT/PRESET/report.html               every claim, with its figure
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import figures
from analyses.experiments import EXPERIMENTS
from analyses.page import write_report
from analyses.presets import Preset, lacking
from analyses.registry import FIGURES, needed
from analyses.results import Results, load
from opdprobe.cli import jobs, measures
from opdprobe.errors import OPDProbeError
from opdprobe.train.pool import Progress, Task, work


def plan(preset: Preset, folder: Path, figure_names: Sequence[str]) -> list[Task]:
    """List the tasks that some figures need.

    They run seed by seed, so that one seed of everything is complete early. Within a seed the
    longest experiments come first, so that the processes end at about the same time. A figure's
    analysis waits for all its runs.
    """
    names = sorted(needed(figure_names), key=_cost, reverse=True)
    roles = sorted({role for name in names for role in jobs.trained_roles(name)})
    # A role with one model is measured once.
    paths = {
        jobs.scores_path(folder, role, seed, preset).stem: (role, seed, preset, folder)
        for role in roles
        for seed in reversed(preset.seeds)
    }
    scores = [Task(f"accuracy of {name}", jobs.score, args) for name, args in paths.items()]
    runs = [
        Task(
            jobs.run_name(name, seed),
            jobs.train if EXPERIMENTS[name].train else jobs.probe,
            (name, seed, preset, folder),
        )
        for seed in preset.seeds
        for name in names
    ]
    # Wait for all scores: an analysis uses those that it finds.
    before = frozenset(task.label for task in scores)
    pairs = dict.fromkeys(pair for name in figure_names for pair in FIGURES[name].measurements)
    measured = [
        Task(
            measures.label(measure, name, seed),
            measures.MEASURES[measure],
            (name, seed, preset, folder),
            frozenset([jobs.run_name(name, seed)]),
        )
        for seed in preset.seeds
        for measure, name in pairs
    ]
    analyses = [
        Task(
            f"analysis of {figure}",
            jobs.analyse,
            (figure, preset, folder),
            before | _awaited(figure, preset),
        )
        for figure in figure_names
    ]
    return [*scores, *runs, *measured, *analyses]


def _awaited(figure: str, preset: Preset) -> set[str]:
    """Labels of a figure's runs, and of what is measured on them."""
    made = FIGURES[figure]
    return {jobs.run_name(name, seed) for name in made.experiments for seed in preset.seeds} | {
        measures.label(measure, name, seed)
        for measure, name in made.measurements
        for seed in preset.seeds
    }


def _cost(name: str) -> float:
    """Estimate an experiment's relative duration: training a model costs thrice its scoring."""
    e = EXPERIMENTS[name]
    student, teacher = (4 if "large" in role else 1 for role in (e.student, e.teacher))
    return e.train * e.steps * max(e.max_completion_length, 0.5) * (3 * student + teacher)


def drawable(preset: Preset, figure_names: Sequence[str] | None) -> tuple[list[str], dict]:
    """Separate the figures whose roles a preset fills from those with a role that it leaves open.

    Returns
    -------
    names : list of str
        The requested figures whose roles are all filled, each once.
    left_out : dict of str to list of str
        The other figures, each with the roles it lacks.

    Raises
    ------
    OPDProbeError
        A figure is unknown, or none can be drawn.
    """
    chosen = list(FIGURES) if figure_names is None else list(dict.fromkeys(figure_names))
    needed(chosen)  # refuses unknown names
    left_out = {name: roles for name in chosen if (roles := lacking(preset, name))}
    names = [name for name in chosen if name not in left_out]
    if not names:
        roles = sorted({role for roles in left_out.values() for role in roles})
        raise OPDProbeError(
            f"no figure can be drawn: {', '.join(chosen)} need models or prompts for the roles "
            f"{', '.join(roles)}; name these in the file of --models."
        )
    return names, left_out


def draw_figures(
    preset: Preset,
    folder: Path,
    figure_names: Sequence[str],
    *,
    workers: int,
    on_progress: Progress,
) -> list[Results]:
    """Train the runs behind some figures, analyse them and draw the figures.

    Parameters
    ----------
    preset, folder, workers, on_progress
        As in `reproduce`.
    figure_names
        Figures whose roles the preset fills.

    Returns
    -------
    list of Results
        One per figure, in the order of `figure_names`.
    """
    if find_spec("torch") is None:  # raised here, since the workers would only die
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    work(plan(preset, folder, figure_names), workers=workers, on_progress=on_progress)
    figures.make(folder / "results", folder / "figures", figure_names)
    return [load(jobs.results_path(folder, figure)) for figure in figure_names]


def reproduce(
    preset: Preset,
    folder: Path,
    *,
    figure_names: Sequence[str] | None = None,
    workers: int = 2,
    on_progress: Progress = lambda name, done, total: None,
) -> list[Results]:
    """Run a preset and write its report.

    Parameters
    ----------
    preset
        One of `analyses.presets.PRESETS`, or `analyses.presets.own_preset`.
    folder
        Where everything is written; its name becomes the preset's name.
    figure_names
        Figures to draw. Default: all whose roles the preset fills.
    workers
        Number of processes, with one thread each.
    on_progress
        Called with a job's name, its steps done and its number of steps, whenever one advances.

    Returns
    -------
    list of Results
        One per figure.

    Raises
    ------
    OPDProbeError
        Unknown names, missing models, runs in `folder` made with other settings, or a process
        that was killed.
    """
    chosen, _ = drawable(preset, figure_names)
    results = draw_figures(preset, folder, chosen, workers=workers, on_progress=on_progress)
    write_report(
        folder / "report.html",
        results,
        folder / "figures",
        title=f"On-policy distillation, preset {folder.name}",
    )
    return results
