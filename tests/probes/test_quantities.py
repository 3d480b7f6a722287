"""The table of quantities: what accessor, metrics and curves give is what its rows say."""

from pathlib import Path

import numpy as np
import pytest

from opdprobe import curves
from opdprobe.probes.quantities import (
    DIAGNOSTICS,
    LOGGED,
    MAIN,
    PER_STATE,
    QUANTITIES,
    SHARES,
    bounds_of,
    scalar,
)
from opdprobe.rollout.rows import step_metrics
from opdprobe.store.schema import VARIABLES
from opdprobe.testing import synthetic_step

STATE = list(PER_STATE)


@pytest.fixture(scope="module")
def step():
    return synthetic_step(n_rollouts=5, length=[3, 8, 1, 4, 2], k=6, agreement=0.3, given=True)


@pytest.mark.parametrize("name", [*QUANTITIES, *DIAGNOSTICS])
def test_a_quantity_has_one_value_per_state_or_rollout(step, name):
    quantity = {**QUANTITIES, **DIAGNOSTICS}[name]
    assert quantity.compute(step).dims == (quantity.per,)
    assert quantity.needs in VARIABLES


@pytest.mark.parametrize("name", STATE)
def test_the_accessor_names_it_as_the_table_does(step, name):
    attrs = PER_STATE[name].compute(step).attrs
    assert attrs == {"units": scalar(name).units, "long_name": scalar(name).long_name}


def test_the_logged_means_are_those_of_the_table(step):
    metrics = step_metrics(step)
    assert set(metrics) == {*QUANTITIES, "empty_overlap"}
    assert set(metrics) - set(QUANTITIES) <= set(LOGGED)
    for name, quantity in QUANTITIES.items():
        mean = float(quantity.compute(step).astype(np.float64).mean())
        assert metrics[name] == pytest.approx(mean, rel=1e-6, nan_ok=True), name


def test_curves_take_every_quantity_of_states_by_name(step):
    found = curves(step, STATE)
    assert found["long_name"].values.tolist() == [scalar(name).long_name for name in STATE]
    assert set(MAIN) <= set(STATE)


def test_a_heading_begins_with_a_capital_and_keeps_the_others():
    assert scalar("reverse_kl").title == "Reverse KL"
    assert scalar("grad_norm").label == "gradient norm"
    assert scalar("student_entropy").label == "student entropy [nats]"


@pytest.mark.parametrize("name", [*QUANTITIES, *DIAGNOSTICS])
def test_values_are_within_their_bounds(step, name):
    values = {**QUANTITIES, **DIAGNOSTICS}[name].compute(step)
    low, high = bounds_of(name)
    assert ((values >= low - 1e-6) & (values <= high + 1e-6) | values.isnull()).all()
    assert (low, high) == (0, 1) or name not in SHARES
    # What can be negative is not bounded below.
    assert low == 0 or scalar(name).units in ("1", "tokens") or float(values.min()) < 0


def test_diagnostics_go_through_the_one_pass_stream(step):
    found = curves(step, list(DIAGNOSTICS))
    for name, quantity in DIAGNOSTICS.items():
        values = quantity.compute(step)
        want = float(values.mean()) if values.notnull().any() else np.nan
        assert float(found["value"].sel(probe=name)[0]) == pytest.approx(want, nan_ok=True), name


def test_the_page_of_diagnostics_has_them_all():
    page = (Path(__file__).parents[2] / "docs/diagnostics.md").read_text(encoding="utf-8")
    assert [name for name in DIAGNOSTICS if f"`{name}`" not in page] == []
