"""The table of quantities: what accessor, metrics and curves give is what its rows say."""

import numpy as np
import pytest

from opdprobe import curves
from opdprobe.probes.quantities import LOGGED, MAIN, QUANTITIES, scalar
from opdprobe.rollout.rows import step_metrics
from opdprobe.store.schema import VARIABLES
from opdprobe.testing import synthetic_step

STATE = [name for name, quantity in QUANTITIES.items() if quantity.per == "state"]


@pytest.fixture(scope="module")
def step():
    return synthetic_step(n_rollouts=5, length=[3, 8, 1, 4, 2], k=4, agreement=0.3, given=True)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_has_one_value_per_state_or_rollout(step, name):
    quantity = QUANTITIES[name]
    assert quantity.compute(step).dims == (quantity.per,)
    assert quantity.needs in VARIABLES


@pytest.mark.parametrize("name", STATE)
def test_the_accessor_names_it_as_the_table_does(step, name):
    attrs = QUANTITIES[name].compute(step).attrs
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
