"""The report's table of token selectors: what it says is what the probe measures."""

import numpy as np

from opdprobe.probes.selectors import SELECTORS, compare_selectors, select_states
from opdprobe.report import selection
from opdprobe.report.course import course
from opdprobe.report.run_report import write_run_report
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_run, synthetic_step

KINDS = dict(enumerate(["number", "word", "sign"] * 100))


def ends_of(*runs, classes=KINDS):
    courses = [course(run) for run in runs]
    return selection.kept_at_ends(runs, courses, [classes for _ in runs])


def rows_of(*runs):
    return selection.selector_rows(ends_of(*runs))


def test_a_row_a_selector_first_and_last_step(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 3, 7], n_rollouts=4, length=10, k=8)
    rows = rows_of(run)
    assert len(rows) == len(selection.TITLES)
    assert list(selection.TITLES) == list(SELECTORS)  # a bit of the viewer's marks is a place here
    first, last = (compare_selectors(run.load(step), fraction=0.2) for step in (0, 7))
    for (_, (cells,)), name in zip(rows, selection.TITLES, strict=True):
        kl, gradient, place = cells
        for text, share in ((kl, "reverse_kl"), (gradient, "gradient")):
            ends = [float(text.split(" %")[0]), float(text.split("→ ")[1].split(" %")[0])]
            want = [100 * float(one[share].sel(selector=name)) for one in (first, last)]
            np.testing.assert_allclose(ends, want, atol=0.51)
        assert place.count("0.") == 2
    by_divergence = dict(rows)["where the models differ most (reverse KL)"][0][0]
    assert float(by_divergence.split(" %")[0]) > 20


def test_kinds_of_tokens_that_are_kept(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 3], n_rollouts=4, length=10, k=8)
    kinds, rows = selection.class_rows(ends_of(run))
    assert kinds == ["number", "word", "sign"]
    assert [title for title, _ in rows] == ["all states", *selection.TITLES.values()]
    for i, step in enumerate((0, 3)):
        ds = run.load(step)
        drawn = ds["sampled_id"].values % 3
        want = [[(drawn == kind).mean() for kind in range(3)]]
        for name in SELECTORS:
            kept = select_states(ds, name, 0.2)
            want.append([kept[drawn == kind].mean() for kind in range(3)])
        shown = [
            [float(cell.split(" → ")[i].removesuffix(" %")) for cell in cells]
            for _, (cells,) in rows
        ]
        np.testing.assert_allclose(shown, 100 * np.array(want), atol=0.51)


def test_tokens_of_one_kind_have_no_table(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0], n_rollouts=2, length=10, k=8)
    for classes in ({}, dict.fromkeys(range(300), "word")):
        assert selection.class_rows(ends_of(run, classes=classes)) == ([], [])
    assert selection.class_rows([]) == ([], [])


def test_a_kind_that_one_end_lacks_is_no_number(tmp_path):
    writer = RunWriter(tmp_path / "run", attrs={}, config={}, resume=False)
    for step, ids in enumerate(([0, 1, 1], [1, 1, 1])):
        ds = synthetic_step(step, n_rollouts=1, length=3, k=4)
        ds["sampled_id"].values[:] = ds["response_ids"].values[:] = ids
        writer.write_step(step, ds)
    kinds, rows = selection.class_rows(ends_of(open_run(tmp_path / "run")))
    assert kinds == ["number", "word"]
    assert rows[0][1] == [["33 % → 0 %", "67 % → 100 %"]]
    assert all(cells[0][0].endswith("→ n/a") for _, cells in rows[1:])


def test_of_a_large_step_whole_rollouts_count(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "run", steps=[0], n_rollouts=5, length=[4, 0, 6, 9, 2], k=4)
    monkeypatch.setattr(selection, "MOST_STATES", 12)
    found = selection._kept(run, 0, {})
    assert found.attrs["n_states"] == 10
    monkeypatch.setattr(selection, "MOST_STATES", 1)  # at least one rollout
    assert selection._kept(run, 0, {}).attrs["n_states"] == 4


def test_a_run_without_lists_has_no_table(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 1], n_rollouts=2, length=5, k=4)
    write_run_report(tmp_path / "r.html", [run], draw=lambda panels: [b""] * len(panels))
    page = (tmp_path / "r.html").read_text()
    assert "Which tokens carry the signal" in page
    assert "Share of each kind of token" not in page  # without a tokenizer
    lists = ["token_id", "logp", "entropy", "reverse_kl", "match", "stop_logp", "support"]
    bare = RunWriter(tmp_path / "bare", attrs={}, config={}, resume=False)
    for step in (0, 1):
        bare.write_step(step, synthetic_step(step, k=4).drop_vars(lists))
    found = open_run(tmp_path / "bare")
    assert rows_of(found) == []
    write_run_report(tmp_path / "b.html", [found], draw=lambda panels: [b""] * len(panels))
    assert "Which tokens carry the signal" not in (tmp_path / "b.html").read_text()
