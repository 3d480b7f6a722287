"""The report's table of token selectors: what it says is what the probe measures."""

import numpy as np

from opdprobe.probes.selectors import SELECTORS, compare_selectors
from opdprobe.report import selection
from opdprobe.report.course import course
from opdprobe.report.run_report import write_run_report
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_run, synthetic_step


def rows_of(*runs):
    return selection.selector_rows(runs, [course(run) for run in runs])


def test_a_row_a_selector_first_and_last_step(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 3, 7], n_rollouts=4, length=10, k=8)
    rows = rows_of(run)
    assert len(rows) == len(SELECTORS) == len(selection._NAMES)
    first, last = (compare_selectors(run.load(step), fraction=0.2) for step in (0, 7))
    for (_, (cells,)), name in zip(rows, selection._NAMES, strict=True):
        kl, gradient, place = cells
        for text, share in ((kl, "reverse_kl"), (gradient, "gradient")):
            ends = [float(text.split(" %")[0]), float(text.split("→ ")[1].split(" %")[0])]
            want = [100 * float(one[share].sel(selector=name)) for one in (first, last)]
            np.testing.assert_allclose(ends, want, atol=0.51)
        assert place.count("0.") == 2
    by_divergence = dict(rows)["where the models differ most (reverse KL)"][0][0]
    assert float(by_divergence.split(" %")[0]) > 20


def test_of_a_large_step_whole_rollouts_count(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "run", steps=[0], n_rollouts=5, length=[4, 0, 6, 9, 2], k=4)
    monkeypatch.setattr(selection, "MOST_STATES", 12)
    found = selection._kept(run, 0)
    assert found.attrs["n_states"] == 10
    monkeypatch.setattr(selection, "MOST_STATES", 1)  # at least one rollout
    assert selection._kept(run, 0).attrs["n_states"] == 4


def test_a_run_without_lists_has_no_table(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[0, 1], n_rollouts=2, length=5, k=4)
    write_run_report(tmp_path / "r.html", [run], draw=lambda panels: [b""] * len(panels))
    assert "Which tokens carry the signal" in (tmp_path / "r.html").read_text()
    lists = ["token_id", "logp", "entropy", "reverse_kl", "match", "stop_logp", "support"]
    bare = RunWriter(tmp_path / "bare", attrs={}, config={}, resume=False)
    for step in (0, 1):
        bare.write_step(step, synthetic_step(step, k=4).drop_vars(lists))
    found = open_run(tmp_path / "bare")
    assert rows_of(found) == []
    write_run_report(tmp_path / "b.html", [found], draw=lambda panels: [b""] * len(panels))
    assert "Which tokens carry the signal" not in (tmp_path / "b.html").read_text()
