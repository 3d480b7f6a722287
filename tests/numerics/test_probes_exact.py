"""Every probe against its definition in 60 digits, and what storing does to it."""

import mp_definitions as mp
import numpy as np
import pytest
import stored_error
from error_bounds import PAGE, PROBES, rendered
from hard_logits import PAIRS, RULED_OUT, tensors

from opdprobe import RunWriter, open_run, probes
from opdprobe.probes.divergence import overlap_statistics
from opdprobe.testing import synthetic_step

CASES = PAIRS | RULED_OUT
DEFINITIONS = ("paper", "sum", "thunlp", "verl")


def check(got, want):
    want = mp.mpf(want)
    if mp.mp.isnan(want) or mp.mp.isinf(want):
        np.testing.assert_equal(float(got), float(want))
    else:
        assert abs(float(got) - want) <= PROBES.at(want, 0), (float(got), float(want))


@pytest.mark.parametrize("k", [1, 2, 5, 24])
@pytest.mark.parametrize("name", CASES)
def test_probes(name, k):
    pair = tensors(CASES[name], "float64")
    k = min(k, pair[0].shape[1])
    step = probes.from_logits(*pair, k=k, sampled_ids=[0])
    ids, logp = step["token_id"].values[0], step["logp"].values[0]
    # From here on the definitions start where the probes do: at the float32 log-probabilities.
    exact = [[mp.exact(logp[m, s]) for s in range(2)] for m in range(2)]
    shared = [rank for rank in range(k) if ids[0, rank] in ids[1]]
    mask = probes.overlap_mask(*ids)
    assert np.flatnonzero(mask).tolist() == shared
    assert probes.overlap_ratio(*ids) == len(shared) / k

    p, q = exact[0][0], exact[1][0]
    arrays = logp[0, 0], logp[1, 0], mask
    masses = [mp.mass([row[rank] for rank in shared]) for row in (p, q)]
    for m in range(2):
        check(probes.overlap_mass(arrays[m], mask), masses[m])
        check(probes.topk_mass(arrays[m]), mp.mass(exact[m][0]))
        check(probes.topk_entropy(logp[m, m]), mp.entropy(mp.renormalised(exact[m][m])))
    for definition in DEFINITIONS:
        want = advantage(p, q, shared, definition)
        check(probes.overlap_token_advantage(*arrays, definition=definition), want)
    together = [*masses, advantage(p, q, shared, "paper")]
    for got, want in zip(overlap_statistics(*arrays), together, strict=True):
        check(got, want)
    check_extreme(probes.extreme_advantage_gap(*arrays), p, q, shared)
    for share in (0.5, 0.97, 1.0):
        got = probes.mass_set_size(logp[0, 0], mass=share)
        sizes = [mp.mass_set_size(p, share - slack) for slack in (1e-6 + 1e-12, 1e-6 - 1e-12)]
        assert sizes[0] <= got <= sizes[1]

    entropy = step["entropy"].values[0]
    check(probes.entropy_gap(*entropy), abs(mp.mpf(float(entropy[1])) - mp.mpf(float(entropy[0]))))
    drawn = mp.exact(step["sampled_logp"].values[0])
    reward = mp.mp.nan if drawn[0] == drawn[1] == -mp.mp.inf else drawn[1] - drawn[0]
    check(step.opd.sequence_mean_reward()[0], reward)


def advantage(p, q, shared, definition):
    """The definition, and NaN where a model has no probability on what it is renormalised on."""
    if definition in ("paper", "sum") and 0 in (
        mp.mass([row[rank] for rank in shared]) for row in (p, q)
    ):
        return mp.mp.nan
    return mp.advantage(p, q, shared, definition)


def check_extreme(got, p, q, shared):
    """The gap at some token whose advantage is the largest, give or take float64's rounding."""
    if mp.mp.isnan(advantage(p, q, shared, "paper")):
        assert np.isnan(got)
        return
    sizes = [abs(term) for term in mp.advantage_terms(p, q, shared, "paper")]
    gaps = [
        mp.mp.exp(p[rank]) - mp.mp.exp(q[rank])
        for rank, size in zip(shared, sizes, strict=True)
        if size == max(sizes) or size >= max(sizes) - PROBES.at(max(sizes), 0)
    ]
    assert min(abs(float(got) - gap) for gap in gaps) <= PROBES.at(1, 0)


def test_sequence_mean_reward_over_many_states():
    rng = np.random.default_rng(0)
    student, teacher = -rng.exponential(5, size=(2, 999)).astype(np.float32)
    rollout = rng.integers(0, 7, 999)
    got = probes.sequence_mean_reward(student, teacher, rollout)
    for row in range(7):
        p, q = (mp.exact(logp[rollout == row]) for logp in (student, teacher))
        check(got[row], (mp.mp.fsum(q) - mp.mp.fsum(p)) / len(p))


def test_storing_costs_at_most_what_the_page_says():
    computed, _ = stored_error.steps()
    bounds, errors = stored_error.bounds(computed), stored_error.errors()
    assert bounds.keys() == errors.keys()
    for name, error in errors.items():
        known = ~np.isnan(error)
        assert (np.abs(error[known]) <= bounds[name][known]).all(), name
        assert np.abs(error[known]).max() > bounds[name][known].max() / 200, (
            f"{name}: a loose bound"
        )


def test_storing_changes_counts_and_choices_only_where_they_are_close():
    computed, stored = stored_error.steps()
    off = 1.01 * stored_error.STEP * np.log(stored_error.K)
    for share in (0.5, 0.9):
        few, many, got = (
            ds.opd.mass_set_size(mass=m).values
            for ds, m in ((computed, share - off), (computed, share + off), (stored, share))
        )
        assert ((few <= got) & (got <= many)).all()
        assert 0 < (few < many).mean() < 0.05  # close ones are there, and rare
    mask = computed["match"].values >= 0
    student, teacher = computed["logp"].values[:, :, 0].astype(float).swapaxes(0, 1)
    gaps = np.exp(student) - np.exp(teacher)
    got = stored.opd.extreme_advantage_gap().values
    defined = ~np.isnan(got)
    # Each probability of the difference moves by at most the largest p |log p| = 1/e.
    near = np.abs(gaps - got[:, None]) <= 2 * 1.01 * stored_error.STEP / np.e
    assert (near & mask).any(-1)[defined].all()
    same = np.abs(computed.opd.extreme_advantage_gap().values - got) <= 1e-4
    assert same[defined].mean() > 0.999


def test_everything_else_is_stored_bit_for_bit(tmp_path):
    computed = synthetic_step(k=16)
    RunWriter(tmp_path, attrs={}, config={}, resume=False).write_step(0, computed)
    stored = open_run(tmp_path).load(0)
    for name in ("overlap_ratio", "entropy_gap", "reverse_kl", "sampled_reward"):
        np.testing.assert_array_equal(
            getattr(stored.opd, name)(), getattr(computed.opd, name)(), err_msg=name
        )
    np.testing.assert_array_equal(
        stored.opd.sequence_mean_reward(), computed.opd.sequence_mean_reward()
    )
    error = np.abs(stored["logp"] - computed["logp"]) / np.abs(computed["logp"])
    assert 0 < error.max() <= stored_error.STEP


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == rendered(), (
        "docs/numerics.md is stale: python tests/numerics/error_bounds.py"
    )
