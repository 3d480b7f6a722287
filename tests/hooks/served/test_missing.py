"""A step may lack only what a model named in `missing` does not report."""

import numpy as np
import pytest

from opdprobe import StoreError, validate
from opdprobe.store.schema import MODELS
from opdprobe.testing import synthetic_step


def untold(model="teacher"):
    """A step of which one model reports only its own list."""
    ds = synthetic_step(n_rollouts=2, length=3, k=8, agreement=0.3)
    m = MODELS.index(model)
    logp, entropy = ds["logp"].values, ds["entropy"].values
    own = ds["token_id"].values[:, m]
    other = ds["token_id"].values[:, 1 - m]
    alone = ~(other[:, :, None] == own[:, None, :]).any(-1)
    logp[:, m, 1 - m][alone] = np.nan
    entropy[:, m] = np.nan
    return ds.assign(reverse_kl=ds["reverse_kl"] * np.nan), alone


@pytest.mark.parametrize("model", MODELS)
def test_missing_values_need_a_named_model(model):
    ds, _ = untold(model)
    validate(ds.assign_attrs(missing=[model]))
    validate(ds.assign_attrs(missing=list(MODELS)))
    validate(synthetic_step().assign_attrs(missing=[model]))  # everything may still be known
    other = MODELS[1 - MODELS.index(model)]
    for attrs in ({}, {"missing": []}, {"missing": [other]}):
        with pytest.raises(StoreError, match="logp = nan"):
            validate(ds.assign_attrs(attrs))
    for wrong in (model, ["nobody"], {"teacher": 1}, 3):
        with pytest.raises(StoreError, match=r"missing = .* expected a list of models"):
            validate(ds.assign_attrs(missing=wrong))


def test_what_is_in_both_lists_may_not_be_missing():
    ds, alone = untold()
    state, rank = np.argwhere(~alone)[0]
    ds["logp"].values[state, 1, 0, rank] = np.nan
    with pytest.raises(StoreError, match=rf"logp = nan at index \({state}, 1, 0, {rank}\)"):
        validate(ds.assign_attrs(missing=["teacher"]))


@pytest.mark.parametrize(
    ("name", "index"), [("logp", (0, 1, 1, 0)), ("logp", (0, 0, 0, 0)), ("sampled_logp", (0, 1))]
)
def test_a_models_own_list_and_a_drawn_token_in_it_may_not_be_missing(name, index):
    ds, _ = untold()
    for drawn in ("sampled_id", "response_ids"):
        ds[drawn].values[0] = ds["token_id"].values[0, 1, 0]
    ds[name].values[index] = np.nan
    with pytest.raises(StoreError, match=f"{name} = nan"):
        validate(ds.assign_attrs(missing=["teacher"]))


def test_a_drawn_token_may_be_missing_if_it_is_not_in_the_models_own_list():
    """A cache of lists may not tell it; a model that ran tells every one."""
    ds, _ = untold()
    for name in ("sampled_id", "response_ids"):
        ds[name].values[0] = ds["token_id"].values.max() + 1
    ds["sampled_logp"].values[0, 1] = np.nan
    validate(ds.assign_attrs(missing=["teacher"]))
    ds["sampled_logp"].values[0, 0] = np.nan
    with pytest.raises(StoreError, match="sampled_logp = nan"):
        validate(ds.assign_attrs(missing=["teacher"]))
