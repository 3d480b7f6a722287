"""Selectors: which states are kept, what they hold, how far two agree, by loops."""

import math

import numpy as np
import pytest

from opdprobe import ConfigError, RunWriter, open_run, probes
from opdprobe.errors import StoreError
from opdprobe.probes.selectors import SELECTORS
from opdprobe.testing import synthetic_step

LENGTH = [7, 0, 12, 1, 5]


@pytest.fixture(scope="module")
def steps():
    return [
        synthetic_step(step, n_rollouts=5, length=LENGTH, k=6, agreement=0.5, seed=step)
        for step in (3, 4)
    ]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 1.0])
def test_the_highest_scores_are_kept(steps, selector, fraction):
    ds, _ = steps
    kept = probes.select_states(ds, selector, fraction)
    n = ds.sizes["state"]
    assert kept.sum() == math.ceil(round(fraction * n, 6))
    score = SELECTORS[selector](ds)
    if not kept.all():
        assert score[kept].min() >= score[~kept].max()
    np.testing.assert_array_equal(kept, probes.select_states(ds, selector, fraction))


def test_a_state_without_a_score_comes_last(steps):
    ds, _ = steps
    holes = ds.assign(reverse_kl=ds["reverse_kl"].where(ds["position"] > 0))
    kept = probes.select_states(holes, "reverse_kl", 0.8)
    assert not kept[ds["position"].values == 0].any()


def test_what_is_kept_of_the_signal(steps):
    names = ["reverse_kl", "early", "random"]
    found = probes.compare_selectors(steps[0], fraction=0.3, selectors=names)
    ds = steps[0]
    kl = ds["reverse_kl"].values.astype(float)
    reward = np.abs(np.diff(ds["sampled_logp"].values.astype(float))[:, 0])
    sizes, places = [], []
    for state in range(ds.sizes["state"]):
        logp = ds["logp"].values[state, :, 0].astype(float)
        parts = [math.exp(a) * (a - b - kl[state]) for a, b in zip(logp[0], logp[1], strict=True)]
        sizes.append(math.sqrt(sum(g * g for g in parts)))
        length = LENGTH[int(ds["rollout"][state])]
        places.append(int(ds["position"][state]) / max(length - 1, 1))
    for name in names:
        kept = probes.select_states(ds, name, 0.3)
        row = found.sel(selector=name)
        assert float(row["states"]) == pytest.approx(kept.mean())
        for quantity, values in (("reverse_kl", kl), ("reward", reward), ("gradient", sizes)):
            want = np.array(values)[kept].sum() / np.sum(values)
            assert float(row[quantity]) == pytest.approx(want), quantity
        assert float(row["position"]) == pytest.approx(np.array(places)[kept].mean())


def test_steps_are_selected_from_by_themselves(steps, tmp_path):
    writer = RunWriter(tmp_path, attrs={"k": 6}, config={}, resume=False)
    for step, ds in zip((3, 4), steps, strict=True):
        writer.write_step(step, ds)
    found = probes.compare_selectors(open_run(tmp_path), fraction=0.2)
    kept = {
        name: np.concatenate([probes.select_states(ds, name, 0.2) for ds in steps])
        for name in SELECTORS
    }
    for a in SELECTORS:
        for b in SELECTORS:
            want = (kept[a] & kept[b]).sum() / (kept[a] | kept[b]).sum()
            assert float(found["jaccard"].sel(selector=a, other=b)) == pytest.approx(want), (a, b)
    kl = np.concatenate([ds["reverse_kl"].values.astype(float) for ds in steps])
    # Nothing that keeps as many states of each step holds more of what it sorts by.
    assert float(found["reverse_kl"].sel(selector="reverse_kl")) == pytest.approx(
        kl[kept["reverse_kl"]].sum() / kl.sum()
    )
    assert str(found["reverse_kl"].idxmax().values) == "reverse_kl"
    assert found.attrs == {"fraction": 0.2, "n_states": 50}


def test_by_the_class_of_the_drawn_token(steps, tmp_path):
    ids = np.unique(np.concatenate([ds["sampled_id"].values for ds in steps])).tolist()
    classes = {token: ("even", "odd")[token % 2] for token in ids[2:]} | {-7: "never"}
    writer = RunWriter(tmp_path, attrs={"k": 6}, config={}, resume=False)
    for step, ds in zip((3, 4), steps, strict=True):
        writer.write_step(step, ds)
    names = ["entropy", "random"]
    found = probes.compare_selectors(
        open_run(tmp_path), fraction=0.3, selectors=names, token_classes=classes
    )
    assert sorted(found["token_class"].values) == ["even", "never", "odd", "other"]
    assert str(found["token_class"].values[-1]) == "other"
    drawn = [classes.get(token, "other") for ds in steps for token in ds["sampled_id"].values]
    for name in names:
        kept = np.concatenate([probes.select_states(ds, name, 0.3) for ds in steps])
        for kind in ("even", "odd", "other"):
            among = [k for k, one in zip(kept, drawn, strict=True) if one == kind]
            row = found.sel(token_class=kind)
            assert float(row["class_kept"].sel(selector=name)) == pytest.approx(np.mean(among))
            assert float(row["class_states"]) == pytest.approx(len(among) / len(drawn))
    assert float(found["class_states"].sel(token_class="never")) == 0
    assert np.isnan(found["class_kept"].sel(token_class="never")).all()
    unknown = [ds.drop_vars("sampled_id") for ds in steps]
    bare = probes.compare_selectors(unknown[0], selectors=names, token_classes=classes)
    assert float(bare["class_states"].sel(token_class="other")) == 1


def test_a_state_that_the_teacher_rules_out(steps):
    """Its divergence is infinite: it has all of the signal, and every selector has a score."""
    ds = steps[0].copy(deep=True)
    state = int(np.argmin(ds["reverse_kl"].values))
    ds["reverse_kl"].values[state] = np.inf
    ds["logp"].values[state, 1, 0, 0] = -np.inf
    ds["sampled_logp"].values[state, 1] = -np.inf
    found = probes.compare_selectors(ds, fraction=0.1)
    for name in SELECTORS:
        kept = probes.select_states(ds, name, 0.1)
        assert kept.sum() == math.ceil(0.1 * kept.size)
        for share in ("reverse_kl", "reward", "gradient"):
            assert float(found[share].sel(selector=name)) == kept[state], (name, share)
    for name in ("reverse_kl", "tip"):
        assert probes.select_states(ds, name, 0.1)[state]
    assert not probes.select_states(ds, "reward", 0.9)[state]


def test_settings_out_of_range_are_refused(steps):
    ds, _ = steps
    with pytest.raises(ConfigError, match="selector = 'best'; expected one of entropy"):
        probes.select_states(ds, "best", 0.2)
    for fraction in (0, 1.1):
        with pytest.raises(ConfigError, match=f"fraction = {fraction}"):
            probes.compare_selectors(ds, fraction=fraction)
    with pytest.raises(ValueError, match="no states"):
        probes.compare_selectors(ds.isel(state=slice(0)))
    bare = ds.drop_vars(["token_id", "logp", "entropy", "reverse_kl", "match"])
    with pytest.raises(StoreError):
        probes.compare_selectors(bare)
