"""`ds.opd` against the functions it wraps, in memory and on dask."""

import numpy as np
import pytest
import xarray as xr

from opdprobe import probes
from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes.accessor import OPDAccessor
from opdprobe.testing import synthetic_step

K = 6


@pytest.fixture
def ds():
    return synthetic_step(n_rollouts=5, length=[4, 0, 7, 1, 9], k=K, agreement=0.5, given=True)


def parts(ds):
    """The arrays behind a step: ids, logp (state, model, support, rank), mask."""
    ids = ds.token_id.values
    return ids, ds.logp.values, probes.overlap_mask(ids[:, 0], ids[:, 1])


# Every method that gives one value per state: what it should be, and its unit.
METHODS = {
    "overlap_ratio": (lambda ids, logp, mask, ds: probes.overlap_ratio(ids[:, 0], ids[:, 1]), "1"),
    "likely_overlap_ratio": (
        lambda ids, logp, mask, ds: probes.overlap_ratio(
            ids[:, 0], ids[:, 1], logp[:, 0, 0], logp[:, 1, 1], min_prob=1e-3
        ),
        "1",
    ),
    "overlap_mass": (lambda ids, logp, mask, ds: probes.overlap_mass(logp[:, 0, 0], mask), "1"),
    "topk_mass": (lambda ids, logp, mask, ds: probes.topk_mass(logp[:, 0, 0]), "1"),
    "mass_set_size": (lambda ids, logp, mask, ds: probes.mass_set_size(logp[:, 0, 0]), "1"),
    "overlap_token_advantage": (
        lambda ids, logp, mask, ds: probes.overlap_token_advantage(
            logp[:, 0, 0], logp[:, 1, 0], mask
        ),
        "nats",
    ),
    "extreme_advantage_gap": (
        lambda ids, logp, mask, ds: probes.extreme_advantage_gap(
            logp[:, 0, 0], logp[:, 1, 0], mask
        ),
        "1",
    ),
    "entropy": (lambda ids, logp, mask, ds: ds.entropy.values[:, 0], "nats"),
    "entropy_gap": (lambda ids, logp, mask, ds: probes.entropy_gap(*ds.entropy.values.T), "nats"),
    "topk_entropy": (lambda ids, logp, mask, ds: probes.topk_entropy(logp[:, 0, 0]), "nats"),
    "reverse_kl": (lambda ids, logp, mask, ds: ds.reverse_kl.values, "nats"),
    "sampled_reward": (
        lambda ids, logp, mask, ds: np.diff(ds.sampled_logp.values.astype(float))[:, 0],
        "nats",
    ),
    "stop_token_mass": (
        lambda ids, logp, mask, ds: np.exp(ds.stop_logp.values[:, 0, 0].astype(float)),
        "1",
    ),
    "sampler_gap": (
        lambda ids, logp, mask, ds: probes.sampler_gap(ds.sampled_logp[:, 0], ds.sampler_logp),
        "nats",
    ),
    "sampler_kl": (
        lambda ids, logp, mask, ds: probes.sampler_kl(ds.sampled_logp[:, 0], ds.sampler_logp),
        "nats",
    ),
    "jaccard": (lambda ids, logp, mask, ds: probes.jaccard(ds.match), "1"),
    "argmax_disagreement": (
        lambda ids, logp, mask, ds: probes.argmax_disagreement(ds.match),
        "1",
    ),
    "top1_acceptance": (lambda ids, logp, mask, ds: probes.top1_acceptance(ds.match), "1"),
    "kendall_tau": (lambda ids, logp, mask, ds: probes.kendall_tau(ds.match), "1"),
    "rank_biased_overlap": (
        lambda ids, logp, mask, ds: probes.rank_biased_overlap(ds.match),
        "1",
    ),
    "nucleus_overlap": (
        lambda ids, logp, mask, ds: probes.nucleus_overlap(logp[:, 0, 0], logp[:, 1, 1], ds.match),
        "1",
    ),
    "drawn_rank": (lambda ids, logp, mask, ds: probes.drawn_rank(ids[:, 0], ds.sampled_id), "1"),
    "effective_support": (
        lambda ids, logp, mask, ds: np.exp(ds.entropy.values[:, 0].astype(float)),
        "tokens",
    ),
    "teacher_unsure": (lambda ids, logp, mask, ds: ds.entropy.values[:, 1] >= 0.8, "1"),
    "forward_kl": (
        lambda ids, logp, mask, ds: probes.forward_kl(logp[:, 0], logp[:, 1], ds.match),
        "nats",
    ),
    "jensen_shannon": (
        lambda ids, logp, mask, ds: probes.jensen_shannon(logp[:, 0], logp[:, 1], ds.match),
        "nats",
    ),
    "bhattacharyya": (
        lambda ids, logp, mask, ds: probes.bhattacharyya(logp[:, 0], logp[:, 1], ds.match),
        "1",
    ),
    "information_to_error": (
        lambda ids, logp, mask, ds: probes.information_to_error(
            logp[:, 0],
            logp[:, 1],
            ds.match,
            ds.sampled_logp,
            ~(ids == ds.sampled_id.values[:, None, None]).any((1, 2)),
        ),
        "1",
    ),
    "positive_reward": (
        lambda ids, logp, mask, ds: ds.sampled_logp.values[:, 1] > ds.sampled_logp.values[:, 0],
        "1",
    ),
}


def test_the_table_is_complete():
    methods = {name for name in dir(OPDAccessor) if not name.startswith("_")}
    assert methods == METHODS.keys() | {
        *("overlap_mask", "overlap_statistics", "sequence_mean_reward", "union_statistics")
    }


def test_statistics_are_exactly_what_the_methods_give(ds):
    for data in (ds, ds.chunk(state=4)):
        got = data.opd.overlap_statistics()
        for model in ("student", "teacher"):
            mass = data.opd.overlap_mass(model)
            xr.testing.assert_identical(
                got[f"{model}_overlap_mass"], mass.rename(f"{model}_overlap_mass")
            )
        xr.testing.assert_identical(
            got["overlap_token_advantage"], data.opd.overlap_token_advantage()
        )


def test_many_states_are_taken_in_blocks(ds, monkeypatch):
    expected = {name: getattr(ds.opd, name)() for name in [*METHODS, "overlap_mask"]}
    monkeypatch.setattr("opdprobe.probes.accessor._BLOCK", 4)
    for name, one in expected.items():
        xr.testing.assert_identical(getattr(ds.opd, name)(), one)
        first = ds.isel(state=0)  # a single state has no axis to cut
        xr.testing.assert_allclose(getattr(first.opd, name)(), one[0])


@pytest.mark.parametrize("name", METHODS)
def test_method_gives_what_the_function_gives(ds, name):
    expected, units = METHODS[name]
    got = getattr(ds.opd, name)()
    assert got.dims == ("state",)
    assert got.dtype == np.float64
    assert got.name == name
    assert got.attrs.keys() == {"units", "long_name"}
    assert got.attrs["units"] == units
    np.testing.assert_allclose(got, expected(*parts(ds), ds), rtol=1e-12)
    assert {"rollout", "position", "step"} <= set(got.coords)  # ready for groupby


@pytest.mark.parametrize("name", [*METHODS, "overlap_mask"])
@pytest.mark.parametrize("stored", [True, False])
def test_dask_is_lazy_and_gives_the_same(ds, name, stored):
    ds = ds if stored else ds.drop_vars("match")
    lazy = getattr(ds.chunk(state=4).opd, name)()
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(), getattr(ds.opd, name)())


def test_models_supports_and_parameters(ds):
    _, logp, mask = parts(ds)
    opd = ds.opd
    np.testing.assert_allclose(
        opd.overlap_mass("teacher"), probes.overlap_mass(logp[:, 1, 0], mask)
    )
    np.testing.assert_allclose(opd.topk_mass("student", "teacher"), probes.topk_mass(logp[:, 0, 1]))
    np.testing.assert_array_equal(
        opd.mass_set_size("teacher", mass=0.5), probes.mass_set_size(logp[:, 1, 1], mass=0.5)
    )
    np.testing.assert_allclose(opd.topk_entropy("teacher"), probes.topk_entropy(logp[:, 1, 1]))
    np.testing.assert_array_equal(opd.entropy("teacher"), ds.entropy.values[:, 1])
    for definition in ("sum", "thunlp", "verl"):
        got = opd.overlap_token_advantage(definition)
        expected = probes.overlap_token_advantage(
            logp[:, 0, 0], logp[:, 1, 0], mask, definition=definition
        )
        np.testing.assert_allclose(got, expected)
        assert got.attrs["long_name"] == f"overlap-token advantage ({definition})"
    assert opd.overlap_mass("teacher").attrs["long_name"] == "teacher overlap mass"


def test_parameters_of_diagnostics(ds):
    ids, logp, _ = parts(ds)
    opd = ds.opd
    lists = logp[:, 0], logp[:, 1], ds.match.values
    for name in ("jensen_shannon", "bhattacharyya"):
        found = getattr(opd, name)(upper=True)
        np.testing.assert_allclose(found, getattr(probes, name)(*lists, upper=True))
        assert found.attrs["long_name"].endswith("upper bound")
    np.testing.assert_array_equal(
        opd.drawn_rank("teacher"), probes.drawn_rank(ids[:, 1], ds.sampled_id)
    )
    found = opd.top1_acceptance(n=2)
    np.testing.assert_array_equal(found, probes.top1_acceptance(ds.match, n=2))
    assert found.attrs["long_name"] == "student's first choice in the teacher's top 2"
    np.testing.assert_allclose(
        opd.rank_biased_overlap(persistence=0.5),
        probes.rank_biased_overlap(ds.match, persistence=0.5),
    )
    np.testing.assert_allclose(
        opd.nucleus_overlap(mass=0.5),
        probes.nucleus_overlap(logp[:, 0, 0], logp[:, 1, 1], ds.match, mass=0.5),
    )
    np.testing.assert_array_equal(opd.teacher_unsure(nats=0), np.ones(ds.sizes["state"]))


def test_overlap_mask(ds):
    mask = ds.opd.overlap_mask()
    assert mask.dims == ("state", "rank")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, parts(ds)[2])
    xr.testing.assert_identical(mask, ds.drop_vars("match").opd.overlap_mask())


def test_stored_match_is_used_and_ids_are_not_read(ds):
    bare = ds.drop_vars(["token_id", "logp"])
    np.testing.assert_array_equal(bare.opd.overlap_ratio(), ds.opd.overlap_ratio())
    nothing_shared = ds.assign(match=xr.full_like(ds.match, -1))
    assert (nothing_shared.opd.overlap_ratio() == 0).all()
    assert np.isnan(nothing_shared.opd.overlap_token_advantage()).all()


def test_sequence_mean_reward(ds):
    reward = ds.opd.sequence_mean_reward()
    assert reward.dims == ("rollout",)
    assert reward.shape == (5,)
    sampled = ds.opd.sampled_reward().values
    for row, value in enumerate(reward.values):
        mine = sampled[ds["rollout"].values == row]
        assert np.isnan(value) if mine.size == 0 else value == pytest.approx(mine.mean())
    # Ready to be compared with correctness, one row per rollout.
    assert 0 <= probes.reward_auroc(reward, ds.correct) <= 1


def test_sequence_mean_reward_covers_rollouts_at_the_end_without_states(ds):
    first = ds.isel(state=ds["rollout"].values == 0)
    assert np.isnan(first.opd.sequence_mean_reward().values[1:]).all()
    assert first.opd.sequence_mean_reward().shape == (5,)
    alone = first.drop_dims(["rollout", "prompt_token", "response_token"])
    assert alone.opd.sequence_mean_reward().shape == (1,)


def test_equal_models():
    opd = synthetic_step(agreement=1.0).opd
    assert (opd.overlap_ratio() == 1).all()
    for zero in (
        opd.overlap_token_advantage(),
        opd.extreme_advantage_gap(),
        opd.entropy_gap(),
        opd.reverse_kl(),
        opd.sampled_reward(),
        opd.sequence_mean_reward(),
    ):
        np.testing.assert_array_equal(zero, 0)
    xr.testing.assert_equal(opd.overlap_mass("student"), opd.overlap_mass("teacher"))


def test_from_logits_is_ready_to_use():
    student, teacher = np.random.default_rng(0).normal(size=(2, 2, 3, 12))
    without = probes.from_logits(student, teacher, k=4)
    assert without.opd.overlap_ratio().shape == (6,)
    with pytest.raises(StoreError, match=r"no variable 'sampled_logp'.* with sampled_ids"):
        without.opd.sampled_reward()


def test_refusals(ds):
    with pytest.raises(StoreError, match=r"no variable 'entropy'; it has .*token_id"):
        ds.drop_vars("entropy").opd.entropy_gap()
    with pytest.raises(StoreError, match="no variable 'token_id'"):
        ds.drop_vars(["match", "token_id"]).opd.overlap_ratio()
    with pytest.raises(
        ConfigError, match=r"model = 'techer'; expected one of \('student', 'teacher"
    ):
        ds.opd.overlap_mass("techer")
    with pytest.raises(ConfigError, match="support = 'union'"):
        ds.opd.topk_mass(support="union")
