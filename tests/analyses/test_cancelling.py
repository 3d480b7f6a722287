"""Figure 27 from numbers as they are measured; every verdict can fall out both ways."""

from statistics import mean

import numpy as np
import pytest
from oracle import claims_of

from analyses import cancelling
from analyses.evidence import Evidence
from analyses.experiments import POINTS
from analyses.presets import PRESETS
from analyses.registry import FIGURES
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step

NAMES = FIGURES["fig27"].experiments
SEEDS = 5


def one(between, norm, chance=0.1, within=0.5):
    """A measurement; more in common leaves more of the sum, and a larger first eigenvalue."""
    return {
        "token_norm": norm,
        "survives": chance * (1 + 10 * between),
        "by_chance": chance,
        "cosine_within": within,
        "cosine_between": between,
        "spectrum": [0.1 + between, 0.05, 0.01],
    }


def run_of(folder, name, seed, kl):
    attrs = {"seed": seed, "k": 4, "student": {"name": "s"}, "teacher": {"name": "t"}}
    writer = RunWriter(folder / f"{name}-{seed}", attrs=attrs, config={}, resume=False)
    step = synthetic_step(n_rollouts=2, length=3, k=4)
    step["reverse_kl"] = step["reverse_kl"] * 0 + kl
    writer.write_step(0, step)
    return open_run(folder / f"{name}-{seed}")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make the evidence of measurements (arm, end, seed) and of each arm's reverse KL."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}

    def evidence(measure, kl):
        for name in NAMES:
            of = kl["failure" if name == "failure" else "success"]
            if (name, of) not in runs:
                part = folder / f"{of}"
                runs[name, of] = [run_of(part, name, seed, of) for seed in range(SEEDS)]
        chosen = {n: runs[n, kl["failure" if n == "failure" else "success"]] for n in NAMES}
        found = {
            ("coherence", name): [
                {end: measure(name, end, seed) for end in ("start", "end")} for seed in range(SEEDS)
            ]
            for name in NAMES
        }
        sums: dict = {}
        return Evidence("quick", PRESETS["quick"].models, chosen, {}, measured=found, sums=sums)

    return evidence


FAILING = ("failure", "large_same", "post_same")


def as_supposed(name, end, seed):
    common = 0.002 * seed if name in FAILING else 0.3 + 0.01 * seed
    return one(common, 8.0 + 0.1 * seed)


def otherwise(name, end, seed):
    common = 0.3 + 0.01 * seed if name in FAILING else 0.002 * seed
    started = name not in FAILING or end == "start"
    return one(common, (8.0 if name not in FAILING else 2.0 if started else 1.0), within=0.0)


def test_numbers_as_the_paper_supposes_support_it(make):
    found = claims_of(cancelling.analyse(make(as_supposed, {"success": 1.0, "failure": 0.9})))
    assert {claim.verdict for claim in found.values()} == {"supported"}


def test_numbers_that_fall_out_otherwise_refute_it(make):
    found = claims_of(cancelling.analyse(make(otherwise, {"success": 1.0, "failure": 0.2})))
    assert {claim.verdict for claim in found.values()} == {"refuted"}


def test_every_number_is_of_the_run_and_the_end_that_its_claim_says(make):
    rng = np.random.default_rng(0)
    table = {
        (name, end, seed): one(*rng.uniform(0.1, 0.9, 4))
        for name in NAMES
        for end in ("start", "end")
        for seed in range(SEEDS)
    }
    results = cancelling.analyse(make(lambda *key: table[key], {"success": 1.0, "failure": 0.5}))
    found = claims_of(results)

    def each(number, *runs):
        def value(at, seed):
            m = table[(*at, seed)]
            return m["survives"] / m["by_chance"] if number == "chance" else m[number]

        return [mean(value(at, seed) for at in runs) for seed in range(SEEDS)]

    def minus(a, b):
        return [x - y for x, y in zip(a, b, strict=True)]

    s0, s48, s192 = ("success", "start"), ("baseline", "end"), ("success", "end")
    f0, f96, f192 = ("failure", "start"), ("large_same", "end"), ("failure", "end")
    cosine, norm = "cosine_between", "token_norm"
    first = [[table[(*at, seed)]["spectrum"][0] for seed in range(SEEDS)] for at in (s0, f0)]
    rl = [("large_rl", end) for end in ("start", "end")]
    post = [[(name, end) for end in ("start", "end")] for name in ("post_rl", "post_same")]
    want = {
        "cancel": minus(each(cosine, s0, s48), each(cosine, f0, f96)),
        "cancel_start": minus(each(cosine, s0), each(cosine, f0)),
        "cancel_later": minus(each(cosine, s48, s192), each(cosine, f96, f192)),
        "nothing": each(cosine, f96, f192),
        "chance": each("chance", f96, f192),
        "within": each("cosine_within", f96, f192),
        "spectrum": minus(*first),
        "large": [a / b for a, b in zip(each(norm, f0), each(norm, s0), strict=True)],
        "large_later": [a / b for a, b in zip(each(norm, f96, f192), each(norm, f0), strict=True)],
        "divergence": [0.5] * SEEDS,
        "same_size": minus(each(cosine, *rl), each(cosine, f0, f96)),
        "family": minus(*(each(cosine, *of) for of in post)),
        "family_nothing": each(cosine, ("post_same", "end")),
    }
    assert set(found) == {f"fig27.{name}" for name in want}
    for name, values in want.items():
        assert list(found[f"fig27.{name}"].seeds) == pytest.approx(values, rel=1e-6), name
    lines = {panel.name: panel for panel in results.panels}
    for series, steps in zip(lines["cosine_between"].series, ((s0, s48, s192), (f0, f96, f192)),
                             strict=True):  # fmt: skip
        assert list(series.x) == list(POINTS[series.role])
        assert series.y == pytest.approx([mean(each(cosine, at)) for at in steps])
    before, after = lines["same_size"].series
    assert before.y == pytest.approx([mean(each(cosine, at)) for at in (f0, f96, *post[1])])
    assert after.y == pytest.approx([mean(each(cosine, at)) for at in (*rl, *post[0])])
