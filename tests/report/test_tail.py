"""The tail of the reverse KL: shares by hand, and the finding that names a heavy one."""

import numpy as np
import pytest

from opdprobe import open_run
from opdprobe.report.course import course
from opdprobe.report.signs import heavy_tail
from opdprobe.report.tail import top_share
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_step


@pytest.mark.parametrize(
    ("values", "share"),
    [
        (np.ones(200), 0.01),
        (np.r_[np.full(198, 0.5), 49.5, -49.5], 0.5),  # sizes count
        (np.r_[np.nan, np.zeros(99), 3.0], 1.0),
        (np.array([2.0, 6.0]), 0.75),  # at least one state
    ],
)
def test_the_share_of_the_largest_states(values, share):
    assert top_share(values) == pytest.approx(share)


@pytest.mark.parametrize(
    "values", [np.zeros(5), np.full(3, np.nan), np.zeros(0), np.array([1.0, np.inf])]
)
def test_nothing_has_no_share(values):
    assert np.isnan(top_share(values))


@pytest.fixture
def recorded(tmp_path):
    def write(heavy):
        writer = RunWriter(tmp_path / str(heavy), attrs={}, config={}, resume=False)
        ds = synthetic_step(n_rollouts=20, length=10)
        values = np.full(200, 0.1, np.float32)
        values[[7, 100]] = heavy
        ds["reverse_kl"].values[:] = values
        writer.write_step(0, ds)
        return course(open_run(tmp_path / str(heavy)))

    return write


def test_a_divergence_of_few_states_is_named_with_a_bounded_companion(recorded):
    finding = heavy_tail(recorded(30.0))
    # 60 of 79.8 nats; capped, 2 of 200 states have 1 nat and 198 have 0.1
    assert "1 % of the last states hold 75% of the reverse KL" in finding.text
    mean, capped = finding.evidence
    assert mean.value == pytest.approx(79.8 / 200)
    assert capped.value == pytest.approx(21.8 / 200)
    assert np.isnan(mean.low)  # 20 prompts are too few for a heavy tail


def test_a_light_tail_is_not_named(recorded):
    assert heavy_tail(recorded(0.5)) is None
