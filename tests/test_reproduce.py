"""A reproduction from nothing to its report, killed half-way, and taken up again."""

import json
import multiprocessing
import os
import signal
from concurrent.futures import Future
from dataclasses import replace

import pytest

import figures
from analyses.experiments import EXPERIMENTS, FIGURES, PRESETS, ROLES, needed
from analyses.results import VERDICTS, load
from opdprobe import commands, open_run, reproduce
from opdprobe.cli import main
from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.reproduce import ANALYSES, Job, plan

STEPS = 3
TINY = replace(
    PRESETS["quick"],
    n_prompts=8,
    n_problems=8,
    n_probe=4,
    config=replace(
        PRESETS["quick"].config,
        batch_size=4,
        num_generations=2,
        max_completion_length=32,
        max_steps=STEPS,
        eval_every=2,
        eval_n=2,
        save_steps=2,
    ),
)


class InThisProcess:
    """Stands for the pool of processes: does a job when it is submitted."""

    def __init__(self, max_workers, mp_context, initializer, initargs):
        initializer(*initargs)

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, wait, cancel_futures):
        pass


@pytest.fixture
def inline(monkeypatch):
    """The tiny preset as ``quick``, in this process."""
    monkeypatch.setitem(PRESETS, "quick", TINY)
    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", InThisProcess)


def times(folder, *patterns):
    return {path: path.stat().st_mtime_ns for p in patterns for path in folder.glob(p)}


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A reproduction of which a process was killed, and which was then taken up again."""
    out, recorded, seen = tmp_path_factory.mktemp("out"), {}, []

    def kill(name, done, total):
        # Once, when a run has a checkpoint behind it.
        if not recorded and name.endswith("-s0") and done >= 2:
            steps = out / "quick/runs" / name / "steps"
            recorded.update(times(steps, "00000[01].zarr.zip"))
            os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        with pytest.raises(OPDProbeError, match=r"a process was killed.*goes on where"):
            reproduce.reproduce("quick", out=out, workers=2, on_progress=kill)
        assert not (out / "quick/report.html").exists()
        results = reproduce.reproduce(
            "quick", out=out, workers=1, on_progress=lambda *state: seen.append(state)
        )
    return out / "quick", results, recorded, seen


def test_everything_is_there(killed_and_resumed):
    folder, results, _, seen = killed_and_resumed
    assert [r.figure for r in results] == list(FIGURES)
    for result in results:
        assert load(folder / "results" / f"{result.figure}.json") == result
        assert result.claims
        assert {claim.verdict for claim in result.claims} <= set(VERDICTS)
        assert all(claim.id.startswith(f"{result.figure}.") for claim in result.claims)
        assert result.meta.preset == "quick"
        assert result.meta.runs[FIGURES[result.figure][0]]["student"].startswith("zoo:")
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"captions.md", *(f"{f}.{kind}" for f in FIGURES for kind in ("pdf", "png"))}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(result.heading in page for result in results)
    for name, experiment in EXPERIMENTS.items():
        steps = round(experiment.steps * STEPS) if experiment.train else 1
        assert open_run(folder / "runs" / f"{name}-s0").steps == list(range(steps))
    assert {path.stem for path in (folder / "scores").iterdir()} == set(ROLES)
    assert {f"{name}-s0" for name, e in EXPERIMENTS.items() if e.train} <= {n for n, *_ in seen}
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_killed_reproduction_went_on_where_it_was(killed_and_resumed):
    """What lay before the checkpoint was not done again."""
    _, _, recorded, _ = killed_and_resumed
    assert len(recorded) == 2
    assert recorded == {path: path.stat().st_mtime_ns for path in recorded}


def test_a_second_time_nothing_is_trained_or_measured(killed_and_resumed, inline, capsys):
    folder, results, *_ = killed_and_resumed
    kept = ("runs/*/steps/*", "runs/*/checkpoints/*/*", "scores/*")
    before = times(folder, *kept)
    bytes_before = {p: p.read_bytes() for p in folder.rglob("*.json")}
    assert main(["reproduce", "--out", str(folder.parent), "--json"]) == 0
    assert times(folder, *kept) == before
    assert {p: p.read_bytes() for p in folder.rglob("*.json")} == bytes_before
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(folder / "report.html")
    assert printed["claims"] == [claim.to_dict() for r in results for claim in r.claims]


def test_the_verdicts_as_a_table(killed_and_resumed, inline, capsys, monkeypatch):
    monkeypatch.setattr(commands.console, "width", 250)
    folder, results, *_ = killed_and_resumed
    only = ["--only", "fig05", "--only", "fig05"]  # named twice, done once
    assert main(["reproduce", "--out", str(folder.parent), *only]) == 0
    out = capsys.readouterr().out
    assert "5 runs and measurements on 2 processes" in out
    assert all(out.count(claim.claim) == 1 for claim in results[0].claims)
    assert f"Report: {folder / 'report.html'}" in out


def test_one_figure_does_only_what_it_needs(inline, tmp_path):
    (result,) = reproduce.reproduce("quick", figure_names=["fig14"], out=tmp_path)
    assert result.figure == "fig14"
    folder = tmp_path / "quick"
    assert {p.name for p in (folder / "runs").iterdir()} == {"probe_success-s0", "probe_failure-s0"}
    assert not (folder / "scores").exists()
    assert [p.name for p in (folder / "results").iterdir()] == ["fig14.json"]
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "fig14.pdf", "fig14.png", "captions.md"
    }  # fmt: skip
    runs = [open_run(p) for p in sorted((folder / "runs").iterdir())]
    # Both teachers judge the same rollouts, and every one is graded.
    failure, success = (run.load(0) for run in runs)
    assert failure.sizes["rollout"] == TINY.n_probe * TINY.config.num_generations
    assert (failure.response_ids == success.response_ids).all()
    assert failure.correct.notnull().all()
    assert not any((run.path / "checkpoints").exists() for run in runs)


def test_other_settings_in_the_same_place_are_refused(inline, killed_and_resumed, monkeypatch):
    folder, *_ = killed_and_resumed
    faster = replace(TINY, config=replace(TINY.config, learning_rate=1.0))
    monkeypatch.setitem(PRESETS, "quick", faster)
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.0002 before, 1\.0 now"):
        reproduce.reproduce("quick", figure_names=["fig06"], out=folder.parent)


def test_other_evaluation_settings_are_measured_anew(inline, tmp_path):
    path = tmp_path / "student.json"
    reproduce._score("student", TINY, path)
    first = path.read_bytes()
    reproduce._score("student", replace(TINY, n_problems=4), path)
    scores = json.loads(path.read_text())["score"]
    assert len(scores) == 4
    reproduce._score("student", TINY, path)
    assert path.read_bytes() == first
    hot = replace(TINY, config=replace(TINY.config, eval_temperature=2.0))
    reproduce._score("student", hot, path)
    assert path.read_bytes() != first


def test_a_benchmark_without_answers_cannot_be_scored(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "add 1 2 3 4 5"}\n')
    preset = replace(TINY, benchmark=str(tmp_path / "p.jsonl"))
    with pytest.raises(OPDProbeError, match=r"p\.jsonl has prompts without answers"):
        reproduce._score("student", preset, tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_an_unknown_preset_lists_those_there_are(tmp_path):
    with pytest.raises(OPDProbeError, match="no preset 'huge'; there are quick, full, paper"):
        reproduce.reproduce("huge", out=tmp_path)


# The plan


def test_the_plan_has_every_run_once_and_starts_with_the_largest_model():
    seeds = (0, 1, 2)
    jobs = plan(replace(TINY, seeds=seeds), list(EXPERIMENTS))
    runs = [job for job in jobs if job.kind == "run"]
    assert {(job.name, job.seed) for job in runs} == {(n, s) for n in EXPERIMENTS for s in seeds}
    assert len(set(jobs)) == len(jobs)
    large = [EXPERIMENTS[job.name].teacher == "large" for job in runs]
    assert large == sorted(large, reverse=True)


@pytest.mark.parametrize(
    ("figure", "roles"),
    [
        ("fig05", {"student", "rl_student", "large"}),
        ("fig06", {"student", "rl_student", "large"}),
        ("fig07", {"student", "rl_student"}),
        ("fig14", set()),
    ],
)
def test_the_plan_measures_the_models_that_a_figure_needs(figure, roles):
    jobs = plan(TINY, needed([figure]))
    assert {job.name for job in jobs if job.kind == "run"} == set(FIGURES[figure])
    assert {job.name for job in jobs if job.kind == "score"} == roles


def test_jobs_have_names_of_their_own():
    jobs = [*plan(replace(TINY, seeds=(0, 1)), list(EXPERIMENTS)), Job("analyse", "fig06")]
    assert len({job.label for job in jobs}) == len(jobs)


def test_figures_analyses_and_experiments_fit_together():
    assert list(FIGURES) == list(ANALYSES) == figures.figure_names()
    assert needed(None) == list(EXPERIMENTS)  # no experiment is for nothing
    assert needed(["fig14", "fig06"]) == ["success", "failure", "probe_success", "probe_failure"]
    with pytest.raises(OPDProbeError, match="no figure fig99; there are fig05, fig06,"):
        needed(["fig06", "fig99"])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_a_preset_has_all_roles_and_settings_that_hold_together(preset):
    assert set(preset.models) == set(ROLES)
    for experiment in EXPERIMENTS.values():
        assert {experiment.student, experiment.teacher} <= set(ROLES)
        replace(preset.config, **experiment.overrides)  # refuses what cannot train
    assert len(set(preset.seeds)) == len(preset.seeds) >= 1
