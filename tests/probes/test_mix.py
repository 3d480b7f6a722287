"""Changes at the same positions: a mean can rise although every position's value falls."""

import math

import numpy as np
import pytest
import xarray as xr

from opdprobe import curve, open_run, standardised
from opdprobe.errors import ConfigError
from opdprobe.probes.mix import Mix, position_mix
from opdprobe.report.change_mix import change_mix, mix_finding, mix_rows
from opdprobe.report.course import course
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_run, synthetic_step


def states(*steps):
    """A Dataset of a value at positions; each step is a list of (position, value)."""
    rows = [(i, p, v) for i, step in enumerate(steps) for p, v in step]
    step, position, value = map(np.array, zip(*rows, strict=True))
    return xr.Dataset(
        {"v": ("state", value.astype(float))},
        {
            "step": ("state", step),
            "position": ("state", position),
            "rollout": ("state", np.zeros(len(step), int)),
        },
    )


def value(ds):
    return ds["v"]


# Early states (positions 0-4) have 0.9 at first and 0.8 later, late ones (5-9) 0.3 and 0.2. There
# are 1 early and 3 late ones at first, 3 early and 1 late one later.
SIMPSON = states(
    [(0, 0.9), (5, 0.3), (6, 0.3), (9, 0.3)],
    [(0, 0.8), (3, 0.8), (4, 0.8), (7, 0.2)],
)


def test_a_mean_rises_by_mix_alone():
    found = standardised(SIMPSON, value, bins=[0, 5, 10])
    # (0.9 + 3 · 0.3) / 4 = 0.45 and (3 · 0.8 + 0.2) / 4 = 0.65; at equal positions
    # 0.8 / 4 + 0.2 · 3/4 = 0.35. So +0.20 = -0.10 + 0.30.
    np.testing.assert_allclose(found["value"], [0.45, 0.65])
    np.testing.assert_allclose(found["standardised"], [0.45, 0.35])
    np.testing.assert_allclose(found["by_mix"], [0, 0.30], atol=1e-12)
    np.testing.assert_array_equal(found["covered"], [1, 1])
    np.testing.assert_allclose(found["value"], curve(SIMPSON, value)["value"])


def test_a_change_at_every_position_is_no_mix():
    later = [(p, v - 0.25) for p, v in [(0, 0.9), (5, 0.3), (6, 0.3), (9, 0.3)]]
    found = standardised(states([(p, v + 0.25) for p, v in later], later), value, bins=[0, 5, 10])
    np.testing.assert_allclose(found["standardised"] - found["standardised"][0], [0, -0.25])
    np.testing.assert_allclose(found["by_mix"], 0, atol=1e-12)


def test_ranges_that_one_side_lacks_are_left_out():
    """Late positions are no longer visited: 3 of 4 states have nothing to be compared with."""
    found = standardised(
        states([(0, 0.9), (5, 0.3), (6, 0.3), (9, 0.3)], [(0, 0.8)]), value, bins=2
    )
    np.testing.assert_allclose(found["covered"], [1, 0.25])
    # Early positions: 0.9 and 0.8; the mean itself goes from 0.45 to 0.8.
    np.testing.assert_allclose(found["standardised"], [0.45, 0.8])
    np.testing.assert_allclose(found["by_mix"], [0, 0.35 - (0.8 - 0.9)])
    nothing = standardised(states([(0, 0.9)], [(9, 0.5)]), value, bins=2)
    assert nothing["covered"].values.tolist() == [1, 0]
    assert np.isnan(nothing["standardised"][1])
    missing = standardised(states([(0, 0.9), (5, math.nan)], [(0, 0.5)]), value, bins=2)
    np.testing.assert_allclose(missing["standardised"], [0.9, 0.5])


def test_a_run_is_read_step_by_step(tmp_path):
    run = synthetic_run(tmp_path, steps=[0, 4, 9], n_rollouts=3, length=[12, 5, 9])
    found = standardised(run, "reverse_kl", bins=3)
    assert found["step"].values.tolist() == [0, 4, 9]
    assert found.attrs == {"units": "nats", "long_name": "reverse KL"}
    np.testing.assert_allclose(found["value"], curve(run, "reverse_kl")["value"])
    joined = xr.concat(
        [run.load(step)[["reverse_kl"]] for step in run.steps], "state", coords="different",
        compat="equals",
    )  # fmt: skip
    np.testing.assert_allclose(
        standardised(joined, "reverse_kl", bins=3)["standardised"], found["standardised"]
    )
    stretch = position_mix(run, {"kl": "reverse_kl"}, [0], [9], bins=3)["kl"]
    last = found.isel(step=-1)
    assert stretch.standardised == pytest.approx(
        float(last["standardised"] - found["standardised"][0])
    )
    assert stretch.by_mix == pytest.approx(float(last["by_mix"]))


def test_bad_ranges():
    with pytest.raises(ConfigError, match="bins = 0"):
        standardised(SIMPSON, value, bins=0)
    with pytest.raises(ValueError, match="no coordinate 'position'"):
        standardised(SIMPSON.drop_vars("position"), value)
    with pytest.raises(ConfigError, match="no states to sort by position"):
        standardised(SIMPSON.isel(state=slice(0)), value)


@pytest.mark.parametrize(
    ("change", "left", "mostly"),
    [
        (0.2, -0.1, True),
        (0.2, 0.09, True),
        (0.2, 0.11, False),
        (-0.2, -0.2, False),
        (0, 0.1, False),
    ],
)
def test_what_counts_as_mostly_mix(change, left, mostly):
    assert Mix(change, left, 1.0).mostly_mix == mostly


def simpson_run(folder):
    """The reverse KL is 1 early and 3 late, 1.1 and 3.1 in the end, when responses are short."""
    writer = RunWriter(folder, attrs={}, config={}, resume=False)
    for step, (length, more) in enumerate([(20, 0.0), (20, 0.0), (8, 0.1), (8, 0.1)]):
        ds = synthetic_step(step, n_rollouts=64, length=length)
        noise = 0.01 * np.random.default_rng(step).normal(size=ds.sizes["state"])
        kl = np.where(ds["position"].values < 6, 1.0, 3.0) + more + noise
        writer.write_step(step, ds.assign(reverse_kl=("state", kl.astype(np.float32))))
    return open_run(folder)


def test_the_report_names_a_change_that_is_mix(tmp_path):
    run = simpson_run(tmp_path / "run")
    found = course(run)
    mix = change_mix(run, found)
    kl = mix["reverse_kl"]
    # Means: (6 · 1 + 14 · 3) / 20 = 2.4 and (6 · 1.1 + 2 · 3.1) / 8 = 1.6. Ten ranges of two
    # positions each, of which the last steps reach four: early and late ones as 3 to 1.
    assert kl.change == pytest.approx(-0.8, abs=0.01)
    assert kl.standardised == pytest.approx(0.1, abs=0.01)
    assert kl.covered == pytest.approx(0.4)
    assert mix_finding(found, mix) == []  # too few positions are left to compare
    ((change, same),) = dict(mix_rows([mix]))["Reverse KL [nats]"]
    assert (float(change.replace("−", "-")), same) == (pytest.approx(-0.8, abs=0.01), "n/a")

    few = position_mix(run, {"reverse_kl": "reverse_kl"}, [0], [3], bins=[0, 6, 20])
    (finding,) = mix_finding(found, few)
    assert finding.name == "other_positions"
    assert finding.kind == "note"
    (evidence,) = finding.evidence
    assert evidence.text.startswith("reverse KL −0.")
    assert evidence.value == pytest.approx(0.1, abs=0.01)
    ((change, same),) = dict(mix_rows([few]))["Reverse KL [nats]"]
    assert change.startswith(("−0.8", "−0.79"))
    assert same.startswith("+0.1") or same.startswith("+0.09")


def test_a_short_run_has_no_change(tmp_path):
    run = synthetic_run(tmp_path, steps=[0])
    assert change_mix(run, course(run)) == {}
    assert mix_rows([{}]) == []
