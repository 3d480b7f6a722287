"""A reproduction from nothing to its report, killed half-way, and taken up again."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import figures
from analyses.claims import verdict
from analyses.experiments import CROSSED, EXPERIMENTS, MODEL_ROLES
from analyses.presets import PRESETS
from analyses.registry import FIGURES, needed
from analyses.results import VERDICTS, load
from opdprobe import open_run
from opdprobe.cli import jobs, measures, reproduce
from opdprobe.cli import runs as commands
from opdprobe.cli.parser import main
from opdprobe.cli.reproduce import drawable, plan
from opdprobe.errors import ConfigError, OPDProbeError
from opdprobe.testing import synthetic_step

STEPS = 2
# Every role is played by a small model: what is tested is the plan, not the players.
TINY = replace(
    PRESETS["quick"],
    models={
        role: "zoo:rl-small"
        if role.startswith("rl")
        # A student and the larger model that teaches it differ, or there is no gradient to compare.
        else "zoo:cold-start-small"
        if role.endswith("large")
        else "zoo:sft-small"
        for role in MODEL_ROLES
    },
    benchmarks={"easy": "zoo:easy", "hard": "zoo:hard"},
    n_prompts=16,
    n_problems=2,
    n_probe=4,
    depths=(0, 2, 5),
    config=replace(
        PRESETS["quick"].config,
        batch_size=4,
        num_generations=2,
        max_completion_length=24,
        eval_max_completion_length=24,
        max_steps=STEPS,
        eval_every=4,
        eval_n=1,
        save_steps=2,
    ),
)


def here(tasks, *, workers, on_progress):
    """Stands for the pool of processes."""
    done = set()
    for task in tasks:
        assert not task.after - done & {t.label for t in tasks}
        task.function(*task.arguments, lambda i, n, label=task.label: on_progress(label, i, n))
        done.add(task.label)


# Of the runs on a part of the tokens these are trained: kept and not kept, by score and by chance.
TRAINED = ("tokens_entropy_20", "tokens_random_20_rest")


def copied(name, seed, preset, folder, report):
    """Stands for a run on other tokens: two dozen tiny ones would take half a minute."""
    shutil.copytree(jobs.run_dir(folder, TRAINED[0], seed), jobs.run_dir(folder, name, seed))
    report(STEPS, STEPS)


def sparing(tasks, **options):
    """As `here`, with copies of a run on a part of the tokens in the place of others like it."""
    spared = {
        f"{name}-s0" for name in EXPERIMENTS if name.startswith("tokens_") and name not in TRAINED
    }
    here([replace(t, function=copied) if t.label in spared else t for t in tasks], **options)


@pytest.fixture
def inline(monkeypatch):
    """The tiny preset as ``quick``, in this process."""
    monkeypatch.setitem(PRESETS, "quick", TINY)
    monkeypatch.setattr(reproduce, "work", here)


def times(folder, *patterns):
    return {path: path.stat().st_mtime_ns for p in patterns for path in folder.glob(p)}


def rough(figure, save, file, *, format, metadata):
    """Save the PNG of a figure at a low resolution, and leave its PDF empty."""
    if format == "png":
        save(figure, file, format=format, metadata=metadata, dpi=30)


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A reproduction whose process was killed, and which this one then finished.

    Its figures are drawn roughly: how they look is tested with the figures.
    """
    out, recorded, seen = tmp_path_factory.mktemp("out"), {}, []

    def kill(name, done, total):
        # Once, when a run has a checkpoint behind it.
        if not recorded and name.endswith("-s0") and done >= 2:
            steps = out / "quick/runs" / name / "steps"
            recorded.update(times(steps, "00000[01].zarr.zip"))
            os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)

    with pytest.raises(OPDProbeError, match=r"a process was killed.*resumes the work"):
        reproduce.reproduce(TINY, out / "quick", workers=1, on_progress=kill)
    assert not (out / "quick/report.html").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "work", sparing)
        patch.setattr(Figure, "savefig", partialmethod(rough, Figure.savefig))
        results = reproduce.reproduce(
            TINY, out / "quick", on_progress=lambda *state: seen.append(state)
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
        assert len({claim.id for claim in result.claims}) == len(result.claims)
        assert result.meta.preset == "quick"
        assert result.meta.runs[FIGURES[result.figure].experiments[0]]["student"].startswith("zoo:")
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"captions.md", *(f"{f}.{kind}" for f in FIGURES for kind in ("pdf", "png"))}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(result.heading in page for result in results)
    for name, experiment in EXPERIMENTS.items():
        steps = round(experiment.steps * STEPS) if experiment.train else 1
        assert open_run(folder / "runs" / f"{name}-s0").steps == list(range(steps))
    assert {path.stem for path in (folder / "scores").iterdir()} == set(MODEL_ROLES)
    assert {f"{name}-s0" for name, e in EXPERIMENTS.items() if e.train} <= {n for n, *_ in seen}
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_killed_reproduction_went_on_where_it_was(killed_and_resumed):
    """What lay before the checkpoint was not done again."""
    _, _, recorded, _ = killed_and_resumed
    assert len(recorded) == 2
    assert recorded == {path: path.stat().st_mtime_ns for path in recorded}


def test_a_second_time_nothing_is_trained_or_measured(
    killed_and_resumed, inline, capsys, monkeypatch
):
    """Of each kind of job: chosen prompts, roles on either side, a student that is not trained."""
    monkeypatch.setattr(figures, "make", lambda *_: [])  # drawn already
    again = ["selection", "fig02", "fig05", "fig27", "fig28"]
    folder, results, *_ = killed_and_resumed
    kept = ("runs/*/steps/*", "runs/*/checkpoints/*/*", "scores/*", "runs/*/*.npz", "runs/*/*.json")
    before = times(folder, *kept)
    bytes_before = {p: p.read_bytes() for p in folder.rglob("*.json")}
    only = [argument for name in again for argument in ("--only", name)]
    assert main(["reproduce", "--out", str(folder.parent), "--json", *only]) == 0
    assert times(folder, *kept) == before
    assert {p: p.read_bytes() for p in folder.rglob("*.json")} == bytes_before
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(folder / "report.html")
    claims = {r.figure: [claim.to_dict() for claim in r.claims] for r in results}
    assert printed["claims"] == [claim for name in again for claim in claims[name]]
    assert printed["left_out"] == {}


def test_one_line_for_each_figure(killed_and_resumed, inline, capsys, monkeypatch):
    monkeypatch.setattr(commands.console, "width", 80)
    folder, results, *_ = killed_and_resumed
    only = ["--only", "fig05", "--only", "fig05"]  # named twice, done once
    assert main(["reproduce", "--out", str(folder.parent), *only]) == 0
    out = capsys.readouterr().out
    assert "6 runs, measurements and analyses in 2 processes" in out
    (fig05,) = (result for result in results if result.figure == "fig05")
    (line,) = (line for line in out.splitlines() if line.startswith("fig05"))
    supported = [claim.verdict for claim in fig05.claims].count("supported")
    main_claim = verdict(fig05.claims[0])
    assert line.split() == f"fig05 Reverse distillation {main_claim} {supported} of 4".split()
    assert not any(claim.claim in out for claim in fig05.claims)
    assert f"claims   {folder / 'report.html'}\n" in out


@pytest.mark.slow
def test_one_figure_does_only_what_it_needs(inline, tmp_path):
    folder = tmp_path / "quick"
    (result,) = reproduce.reproduce(TINY, folder, figure_names=["fig14"])
    assert result.figure == "fig14"
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


def test_continuations_are_read_back_as_they_were_found(killed_and_resumed):
    folder, *_ = killed_and_resumed
    (gain,) = jobs.evidence(TINY, folder, ["probe_success"]).continuations["probe_success"]
    correct = open_run(jobs.run_dir(folder, "probe_success", 0)).load(0)["correct"]
    assert gain["depth"].values.tolist() == list(TINY.depths)
    # At depth 0 every rollout is continued, and the student's own continuation is the rollout.
    np.testing.assert_array_equal(gain["student"].sel(depth=0), correct)
    rollouts = open_run(jobs.run_dir(folder, "probe_success", 0)).rollouts()
    assert gain["prompt_id"].values.tolist() == rollouts["prompt_id"].values.tolist()
    np.testing.assert_array_equal(gain["gain"], gain["teacher"] - gain["student"])


def test_other_settings_in_the_same_place_are_refused(inline, killed_and_resumed):
    folder, *_ = killed_and_resumed
    faster = replace(TINY, config=replace(TINY.config, learning_rate=1.0))
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.0002 before, 1\.0 now"):
        reproduce.reproduce(faster, folder, figure_names=["fig06"])


def silent(done, total):
    pass


@pytest.mark.slow
def test_other_evaluation_settings_and_other_weights_are_measured_anew(tmp_path):
    path = tmp_path / "scores/student.json"

    def scores(preset):
        jobs.score("student", 0, preset, tmp_path, silent)
        return path.read_bytes()

    first = scores(TINY)
    assert {k: len(v) for k, v in json.loads(first)["scores"].items()} == dict.fromkeys(
        TINY.benchmarks, 2
    )
    fewer = json.loads(scores(replace(TINY, n_problems=1)))["scores"]
    assert {len(v) for v in fewer.values()} == {1}
    assert scores(TINY) == first
    assert scores(replace(TINY, config=replace(TINY.config, eval_temperature=2.0))) != first
    other = replace(TINY, models={"student": "zoo:rl-small"})
    assert json.loads(scores(other))["settings"] != json.loads(first)["settings"]


def test_a_benchmark_without_answers_cannot_be_scored(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "add 1 2 3 4 5"}\n')
    preset = replace(TINY, benchmarks={"mine": str(tmp_path / "p.jsonl")})
    with pytest.raises(OPDProbeError, match=r"p\.jsonl: some prompts have no answer"):
        jobs.score("student", 0, preset, tmp_path, silent)
    assert not (tmp_path / "scores").exists()


def test_training_that_is_cut_short_is_evaluated_at_full_length(killed_and_resumed):
    folder, *_ = killed_and_resumed
    for name, share in (("length_1", 0.03125), ("length_6", 2.5), ("success", 1)):
        config = open_run(folder / "runs" / f"{name}-s0").config
        assert config["max_completion_length"] == round(share * TINY.config.max_completion_length)
        assert config["eval_max_completion_length"] == TINY.config.eval_max_completion_length


def test_prompts_are_selected_as_the_experiment_says(killed_and_resumed):
    folder, *_ = killed_and_resumed

    def kinds(name):
        ids = open_run(folder / "runs" / f"{name}-s0").rollouts()["prompt_id"].values
        return {str(i).split("-")[0] for i in ids}

    assert kinds("success") == {"train"}
    assert kinds("select_template") == {"other"}
    assert kinds("select_mixed") == {"train", "other"}
    assert kinds("select_divergence") <= {"train", "other"}


def test_other_kinds_of_problems_are_tested_where_an_experiment_says_so(killed_and_resumed):
    folder, *_ = killed_and_resumed
    own = {"easy", "hard"}
    for name, benchmarks in (
        ("baseline", own | set(CROSSED)),
        ("success", own),
        ("length_6", own | {"deep"}),
        ("control_permuted", own),
    ):
        assert set(open_run(folder / "runs" / f"{name}-s0").benchmarks) == benchmarks


# The plan


def test_the_plan_has_every_run_once_seed_by_seed_and_the_longest_first():
    seeds = (0, 1, 2)
    tasks = plan(replace(TINY, seeds=seeds), Path("out"), list(FIGURES))
    assert len({task.label for task in tasks}) == len(tasks)
    runs = [t.arguments[:2] for t in tasks if t.function in (jobs.train, jobs.probe)]
    assert sorted(runs) == sorted((name, seed) for name in EXPERIMENTS for seed in seeds)
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    assert runs[0][0] == "large_failure" or EXPERIMENTS[runs[0][0]].student == "large"
    assert not EXPERIMENTS[runs[len(EXPERIMENTS) - 1][0]].train


@pytest.mark.parametrize(
    ("figure", "roles"),
    [
        ("fig05", {"student", "rl_student", "large"}),
        ("fig06", {"student", "rl_student", "large"}),
        ("fig07", {"student", "rl_student"}),
        ("fig14", set()),
    ],
)
def test_the_plan_does_what_a_figure_needs_and_analyses_it_last(figure, roles):
    *before, last = plan(TINY, Path("out"), [figure])
    assert {t.label for t in before} == {f"{n}-s0" for n in FIGURES[figure].experiments} | {
        f"accuracy of {role}" for role in roles
    }
    assert last.function == jobs.analyse
    assert last.after == {t.label for t in before}


def test_what_is_measured_on_a_run_waits_for_it_and_is_waited_for():
    *before, last = plan(TINY, Path("out"), ["fig28"])
    (forced,) = (task for task in before if task.function == measures.force)
    assert forced.label == "forced of probe_success-s0"
    assert forced.after == {"probe_success-s0"}
    assert last.after == {task.label for task in before}
    tasks = plan(replace(TINY, seeds=(0, 1)), Path("out"), ["fig27", "fig06"])
    measured = [task.arguments[:2] for task in tasks if task.function == measures.cohere]
    assert sorted(measured) == sorted((n, s) for n in FIGURES["fig27"].experiments for s in (0, 1))


def test_states_with_a_choice_are_drawn_one_of_a_prompt():
    step = synthetic_step(n_rollouts=8, length=6, k=3)
    second = np.full(step.sizes["state"], -9.0)
    second[::2] = np.log(0.1) + 1e-6  # positions 0, 2 and 4
    logp = step["logp"].transpose("state", "support", "rank", "model").copy()
    logp.loc[{"support": "student", "model": "student"}] = np.stack([second * 0, second, second], 1)
    step["logp"] = logp.transpose(*step["logp"].dims)
    prompts = step["prompt_id"].values
    for limit, places in ((6, {0, 2, 4}), (4, {0, 2}), (1, set())):
        seen = [measures.branching(step, limit, np.random.default_rng(s)) for s in range(20)]
        for states in seen:
            of = prompts[step["rollout"].values[states]]
            assert len(of) == len(set(of)) == (len(set(prompts)) if places else 0)
        assert {int(p) for states in seen for p in step["position"].values[states]} == places


def test_figures_analyses_and_experiments_fit_together():
    assert needed(None) == list(EXPERIMENTS)  # no experiment is for nothing
    assert needed(["fig14", "fig06"]) == ["success", "failure", "probe_success", "probe_failure"]
    with pytest.raises(OPDProbeError, match="no figure fig99; expected one of fig01, fig02,"):
        needed(["fig06", "fig99"])


def test_figures_that_lack_a_role_are_left_out_with_its_name():
    some = replace(TINY, models={"student": "a", "rl_student": "b"}, prompts={"train": "c"})
    names, left_out = drawable(some, ["fig07", "fig06", "fig09", "fig07"])
    assert names == ["fig07"]
    assert left_out == {"fig06": ["large"], "fig09": ["original"]}
    assert drawable(TINY, None) == (list(FIGURES), {})
    with pytest.raises(OPDProbeError, match=r"no figure can be drawn: .* for the roles large"):
        drawable(some, ["fig06"])


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_has_all_roles_and_settings_that_hold_together(name):
    preset = PRESETS[name]
    # The models made from one base have no second family, and none is larger than the base.
    missing = {"extra_large", "rl_base_large", "post", "post_large", "rl_post_large"}
    assert set(MODEL_ROLES) - set(preset.models) == (missing if name == "real" else set())
    for experiment in EXPERIMENTS.values():
        assert {experiment.student, experiment.teacher} <= set(MODEL_ROLES)
        replace(preset.config, **experiment.overrides)  # refuses what cannot train
    assert len(set(preset.seeds)) == len(preset.seeds) >= 1
