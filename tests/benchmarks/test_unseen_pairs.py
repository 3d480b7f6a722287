"""benchmarks/unseen_pairs.py: the design, what a stop leaves, and the table's arithmetic."""

import importlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNKNOWN, UNLIKELY
from opdprobe.testing.testbed.world import Corpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The scripts as modules: the zoo's, the pairs' and the table's."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return [importlib.import_module(f"unseen_{name}") for name in ("zoo", "pairs", "table")]


# ---- the design ----


def test_the_design_follows_from_the_seed(modules):
    zoo = modules[0]
    assert zoo.design(1) == zoo.design(1)
    (one, _), (two, _) = zoo.design(1), zoo.design(2)
    assert one.keys() == two.keys()
    assert all(one[name].seed != two[name].seed for name in one)
    assert len({member.seed for member in one.values()}) == len(one)


def test_the_design_has_distinct_pairs_of_all_lineages(modules):
    zoo = modules[0]
    members, cases = zoo.design(3)
    assert len({(case.student, case.teacher) for case in cases}) == len(cases) >= 40
    assert all(case.student != case.teacher for case in cases)
    names = list(members)
    for place, member in enumerate(members.values()):
        assert (member.parent is None) == (member.size is not None)
        assert member.parent is None or member.parent in names[:place]
    for first in range(0, len(cases), 16):  # each round has every lineage equally often
        assert set(Counter(c.lineage for c in cases[first : first + 16]).values()) == {4}
    across = [c for c in cases if c.teacher.split("-")[0] != c.lineage]
    assert {c.kind for c in across} == {k for some in zoo.KINDS for k in some if "lineage" in k}


def test_a_corpus_has_shares(modules):
    zoo = modules[0]
    for seed in range(20):
        for member in zoo.design(seed)[0].values():
            if member.corpus is not None:
                assert sum(member.corpus.mixture) == pytest.approx(1)
                assert all(0.02 < share < 0.9 for share in member.corpus.mixture)


# ---- running ----


@pytest.fixture
def tiny(modules, monkeypatch):
    """Two tiny models and one pair."""
    zoo, pairs, _ = modules
    corpus = Corpus((0.5, 0.25, 0.25))
    members = {
        "a-early": zoo.Member("a-early", 2, 1, (16, 1), corpus=corpus),
        "a-rl": zoo.Member("a-rl", 1, 2, parent="a-early"),
    }
    cases = [zoo.Case("a-early", "a-rl", "its own RL")]
    monkeypatch.setattr(pairs, "design", lambda seed: (members, cases))
    predict, train, config = pairs.predict, pairs.train, pairs.config
    monkeypatch.setattr(pairs, "predict", lambda *a: predict(*a, n_prompts=4))
    monkeypatch.setattr(pairs, "train", lambda *a: train(*a, n_problems=2))
    monkeypatch.setattr(pairs, "config", lambda s: config(s, max_steps=2, batch_size=2))
    monkeypatch.setattr(zoo, "measure", lambda model, tokenizer: 0.0)
    return pairs


@pytest.mark.slow  # builds, samples and trains, though tiny
def test_a_pair_is_predicted_before_it_is_trained_and_never_twice(tiny, tmp_path, monkeypatch):
    train = tiny.train

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, 0, None)
    before = (tmp_path / "predictions.jsonl").read_text()
    assert json.loads(before)["preflight"]["verdict"]["word"]
    assert not (tmp_path / "gains.jsonl").exists()
    built = (tmp_path / "zoo/a-rl/model.safetensors").stat().st_mtime_ns

    monkeypatch.setattr(tiny, "train", train)
    tiny.run(tmp_path, 0, None)
    (line,) = tiny.done(tmp_path / "gains.jsonl").values()
    assert line["case"] == "a-early--a-rl"
    assert set(line["accuracy"]) == {"0", "2"}
    assert line["gain"] == line["accuracy"]["2"] - line["accuracy"]["0"]

    monkeypatch.setattr(tiny, "train", killed)  # nothing is left to do
    tiny.run(tmp_path, 0, None)
    assert (tmp_path / "predictions.jsonl").read_text() == before
    assert (tmp_path / "zoo/a-rl/model.safetensors").stat().st_mtime_ns == built


def test_the_gain_is_that_of_the_last_quarter(modules):
    pairs = modules[1]
    accuracy = {0: 0.3, 24: 0.9, 48: 0.9, 72: 0.5, 96: 0.6}
    assert pairs.gain(accuracy) == pytest.approx(0.55 - 0.3)


def test_trained_pairs_are_predicted_again_and_give_a_line(modules, tmp_path, monkeypatch):
    pairs = modules[1]
    gains = importlib.import_module("expected_gain")
    lines = [
        line(UNLIKELY, 0.1 * i, "ab"[i % 2], gap=0.3, readout=0.2 * i, name=str(i)) | {"seed": 5}
        for i in range(4)
    ]
    for one in lines[:3]:  # the last is not trained yet
        pairs.add(tmp_path / "gains.jsonl", {k: one[k] for k in ("case", "lineage", "gain")})
    for one in lines:
        pairs.add(tmp_path / "predictions.jsonl", one)
    found = gains.trained_pairs(tmp_path, 512)
    assert [one["readout"] for one in found] == pytest.approx([0, 0.2, 0.4])
    assert gains.fit_line(*zip(*((o["readout"], o["gain"]) for o in found), strict=True)).slope == (
        pytest.approx(0.5)
    )

    asked = []

    def predict(case, zoo, seed, n_prompts):
        asked.append((case.name, seed, n_prompts))
        return {"preflight": line(UNLIKELY, 0, readout=0.1 * len(asked))["preflight"]}

    monkeypatch.setattr(pairs, "predict", predict)
    pairs.predict_again(tmp_path, 64)
    pairs.predict_again(tmp_path, 64)  # nothing is left to do
    assert asked == [("a-s--a-t", 1005, 64), ("b-s--b-t", 1006, 64), ("a-s--a-t", 1007, 64)]
    assert [o["readout"] for o in gains.trained_pairs(tmp_path, 256)] == pytest.approx([
        0.1, 0.2, 0.3
    ])  # fmt: skip


# ---- the table ----


def line(word, gain, lineage="a", gap=0.0, readout=0.0, kl=0.5, helps=0.5, name="x"):
    numbers = {"gap": {"value": gap}, "gain": {"value": readout}}
    stated = {"value": gain, "low": gain - 0.1, "high": gain + 0.1}
    stated |= {"helps": helps, "neither": (1 - helps) / 2, "harms": (1 - helps) / 2}
    return {
        "case": name, "student": f"{lineage}-s", "teacher": f"{lineage}-t", "kind": "k",
        "lineage": lineage, "gain": gain,
        "preflight": {
            "verdict": {"word": word}, "answers": numbers, "expected": stated,
            "states": {"reverse_kl": {"value": kl}}, "learnt": {"value": 0.5},
        },
    }  # fmt: skip


def test_words_against_outcomes(modules):
    table = modules[2]
    lines = [
        line(LIKELY, 0.2), line(LIKELY, 0.0), line(UNLIKELY, 0.05), line(HARMFUL, -0.06),
        line(UNKNOWN, 0.3),
    ]  # fmt: skip
    found = table.counts(lines, table.word_of)
    assert found[LIKELY] == {"helps": 1, "neither": 1}
    assert found[UNLIKELY] == {"neither": 1}
    assert found[HARMFUL] == {"harms": 1}
    assert found[UNKNOWN] == {"helps": 1}


@pytest.mark.parametrize(
    ("gap", "kl", "by_gap", "by_both"),
    [
        (0.2, 0.5, LIKELY, LIKELY),
        (0.2, 0.1, LIKELY, UNLIKELY),
        (0.05, 0.5, UNLIKELY, UNLIKELY),
        (-0.2, 0.1, HARMFUL, HARMFUL),
    ],
)
def test_the_free_rules(modules, gap, kl, by_gap, by_both):
    one = line(UNKNOWN, 0.0, gap=gap, kl=kl)
    assert modules[2].by_gap(one) == by_gap
    assert modules[2].by_gap_and_divergence(one) == by_both


def test_the_rank_correlation_over_units(modules):
    table, rng = modules[2], np.random.default_rng(0)
    values = rng.normal(size=40)
    assert table.rank_correlation(values, 3 * values, ["a", "b"] * 20)[0] == pytest.approx(1)
    value, low, high = table.rank_correlation(
        values, values + rng.normal(size=40), [str(i) for i in range(40)]
    )
    assert low < value < high
    # Each unit four times: no more evidence.
    four = np.repeat(values, 4), np.repeat(values + rng.normal(size=40), 4)
    units = [str(i // 4) for i in range(160)]
    _, low, high = table.rank_correlation(*four, units)
    _, apart_low, apart_high = table.rank_correlation(*four, [str(i) for i in range(160)])
    assert high - low > 1.5 * (apart_high - apart_low)
    assert math.isnan(table.rank_correlation(values, values, ["a"] * 40)[1])


def test_brier(modules):
    table = modules[2]
    sure, third = [1.0, 0.0, 0.0], [1 / 3] * 3
    assert table.brier([sure], ["helps"]) == 0
    assert table.brier([sure], ["harms"]) == 2
    assert table.brier([third, third], ["helps", "neither"]) == pytest.approx(2 / 3)


def test_base_rates_leave_the_lineage_out(modules):
    lines = [line(LIKELY, 0.2, "a"), line(LIKELY, 0.2, "b"), line(LIKELY, -0.2, "b")]
    assert modules[2].base_rates(lines, "a") == pytest.approx([2 / 5, 1 / 5, 2 / 5])


def test_reliability(modules):
    found = modules[2].reliability([0.1, 0.15, 0.2, 1.0], [False, True, True, True])
    assert found == [
        pytest.approx((0.0, 0.2, 2, 0.125, 0.5)),
        pytest.approx((0.2, 0.4, 1, 0.2, 1.0)),
        pytest.approx((0.8, 1.0, 1, 1.0, 1.0)),
    ]


def test_the_table_is_printed_and_the_figure_drawn(modules, tmp_path, capsys):
    lines = [
        line(LIKELY, 0.1 * i, "ab"[i % 2], gap=0.1 * i, readout=-0.1 * i, helps=0.9, name=str(i))
        for i in range(6)
    ]
    modules[2].print_table(lines, tmp_path / "figure.png")
    out = capsys.readouterr().out
    assert "6 pairs of 2 lineages" in out
    assert "| accuracy gap | 6 | 1.00 |" in out
    assert "| gain of the refitted readout | 6 | -1.00 |" in out
    assert "Readout minus accuracy gap, on the same pairs: -2.00" in out
    assert "preflight: right on 5 of 6 pairs" in out  # one gains nothing
    # The gap is 0.1 or more where it should be, but for the pair that gains nothing, rightly.
    assert out.count("On the 6 pairs that preflight judges: right on 5.") == 1
    assert out.count("On the 6 pairs that preflight judges: right on 6.") == 2
    assert "the 80% interval holds 100% of the gains" in out
    assert (tmp_path / "figure.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="no pair is trained yet"):
        modules[2].print_table([], None)
