"""Results files: what goes in comes out, byte for byte, and bad files say what is wrong."""

import json
import os
from dataclasses import asdict, replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.results import Claim, Meta, Results, ResultsError, load, save
from opdprobe.errors import StoreError
from opdprobe.report.panel import KINDS, Heat, Panel, PanelError, Reference, Series

RUNS = {
    "success": {"student": "zoo:sft-small", "teacher": "zoo:rl-small", "steps": 100},
    "failure": {"student": "zoo:sft-small", "teacher": "zoo:sft-large", "steps": 100},
}


def claim(ours=0.9, low=0.8, high=0.95, verdict: Any = "supported", seeds=(0.85, 0.95)):
    text = ("closes the gap", "> 80 %")
    return Claim(
        "fig06.recovery", *text, ours, low, high, 0.95, list(seeds), "gap recovery > 0.8", verdict
    )


def example(numbers=(0.5, nan, inf), values=(-0.1, -inf)):
    x = list(range(len(numbers)))
    line = Series("success", "RL'd teacher", x, *[list(numbers)] * 3)
    sample = Series("correct", "correct", values=list(values))
    bars = Series("teacher", "teacher", x=[0, 1], y=[0.5, nan], low=[0.4, nan], high=[0.6, inf])
    heat = Heat([0, 10, 20], [16, 48], [[0.9, nan, 0.8], [inf, -inf, 0.0]], "entropy [nats]")
    return Results(
        figure="fig06",
        title="Success and failure",
        section="4.1",
        claim="The overlap rises.",
        meta=Meta("quick", [0, 1], 16, 64, 512, "95 % bootstrap", RUNS, "abc", "0.1.0"),
        panels=[
            Panel("a", "A", "step", "y", "line", [line], [Reference("large", "larger", 0.7)]),
            Panel("b", "B", "reward [nats]", "density", "histogram", [sample]),
            Panel("c", "C", "benchmark", "y", "bar", [bars], ticks=["AIME24", "AMC23"]),
            Panel("d", "D", "step", "position", "heatmap", [], heat=heat),
        ],
        claims=[claim(), claim(nan, nan, -inf, "inconclusive", [nan, inf])],
    )


def saved(results, folder):
    path = folder / "fig06.json"
    save(results, path)
    return path


def changed(path, change):
    """Rewrite a file's content."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_what_is_saved_is_loaded_with_nan_and_infinity(tmp_path):
    results = example()
    back = load(saved(results, tmp_path / "made" / "on demand"))
    # assert_equal treats NaN as equal to itself, also deep inside.
    np.testing.assert_equal(asdict(back), {**asdict(results)} | _lists(results))
    assert list(back.meta.runs) == ["success", "failure"]  # not sorted: the order to list them in


def _lists(results):
    """What defaults to an empty tuple, JSON gives back as a list."""
    as_lists = {"references": list, "ticks": list}
    panels = [
        {**fields, **{name: to(fields[name]) for name, to in as_lists.items()}}
        for fields in map(asdict, results.panels)
    ]
    return {"panels": panels}


def test_every_kind_is_among_those_saved_and_loaded():
    assert tuple(p.kind for p in example().panels) == KINDS


@given(st.lists(st.floats()), st.lists(st.floats(allow_subnormal=True)))
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path_factory, numbers, values):
    folder = tmp_path_factory.mktemp("results")
    path = saved(example(numbers, values), folder)
    first = path.read_bytes()
    save(load(path), path)
    assert path.read_bytes() == first
    assert [p.name for p in folder.iterdir()] == ["fig06.json"]  # no temporary file is left


def test_the_file_is_strict_json_that_says_what_it_is(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = saved(example(), tmp_path).read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert (content["format"], content["format_version"]) == ("opdprobe-results", 3)
    assert content["panels"][0]["series"][0]["y"] == [0.5, None, "inf"]
    assert content["panels"][3]["heat"]["z"] == [[0.9, None, 0.8], ["inf", "-inf", 0.0]]
    assert content["claims"][1]["ours"] is None
    assert content["claims"][1]["seeds"] == [None, "inf"]


def test_numpys_floats_are_written_as_numbers(tmp_path):
    path = saved(replace(example(), claims=[claim(ours=np.float64(0.25))]), tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["claims"][0]["ours"] == 0.25


def test_a_claim_gives_json_values():
    values = claim(nan, -inf, 0.5).to_dict()
    assert (values["ours"], values["low"], values["high"]) == (None, "-inf", 0.5)
    json.dumps(values, allow_nan=False)


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(ResultsError, match=r"no results for fig14.*reproduce --only fig14`"):
        load(tmp_path / "fig14.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "fig06.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=r"is not a JSON file.*reproduce --only fig06`"):
        load(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "something"}'])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "fig06.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ResultsError, match="is not a results file"):
        load(path)


@pytest.mark.parametrize("version", [1, 2, 4, "3", None])
def test_another_format_asks_for_an_update(tmp_path, version):
    path = changed(saved(example(), tmp_path), lambda c: c.update(format_version=version))
    with pytest.raises(ResultsError, match=rf"format version {version}; .* 3: update opdprobe"):
        load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("panels"),
        lambda c: c.update(unheard_of=1),
        lambda c: c["meta"].pop("seeds"),
        lambda c: c["meta"].update(runs="none"),
        lambda c: c["claims"][0].update(ours="much"),
        lambda c: c["claims"][0].update(seeds=["much"]),
        lambda c: c["claims"][0].pop("seeds"),
        lambda c: c["claims"][0].update(verdict="perhaps"),
        lambda c: c["panels"][0].update(kind="heatmap"),
        lambda c: c["panels"][0]["series"][0]["y"].pop(),
        lambda c: c["panels"][1]["series"][0].update(values=[[1.0]]),
        lambda c: c["panels"][2].update(ticks=[]),
        lambda c: c["panels"][3]["heat"]["z"].pop(),
        lambda c: c["panels"][3]["heat"]["z"][0].pop(),
        lambda c: c["panels"][3]["heat"].update(x=[0, None, 20]),
        lambda c: c["panels"][3].update(heat=None),
        lambda c: c.update(figure="six"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = changed(saved(example(), tmp_path), damage)
    with pytest.raises(ResultsError, match=r"fig06\.json is damaged .*reproduce --only fig06`"):
        load(path)


def test_a_heading_tells_sections_from_appendices():
    assert example().heading == "Figure 6 (§4.1)"
    assert replace(example(), figure="fig18", section="B.1").heading == "Figure 18 (App. B.1)"
    selection = replace(example(), figure="selection", section="5.2")
    assert selection.heading == "Data selection (§5.2)"
    assert replace(example(), figure="rates", section="3").heading == "Learning rates (§3)"
    assert replace(example(), figure="fig25", section="").heading == "Figure 25"
    controls = replace(example(), figure="controls")
    assert controls.heading == "Negative controls (§4.1)"


def test_contradictions_are_refused():
    line, sample = Series("success", "s", [0], [1], [1], [1]), Series("correct", "c", values=[1])
    with pytest.raises(PanelError, match=r"x, y, low, high have 2, 2, 0, 0 values"):
        Series("success", "s", x=[0, 1], y=[1, 2])
    with pytest.raises(PanelError, match="has a line and a sample"):
        Series("success", "s", [0], [1], [1], [1], values=[1])
    with pytest.raises(PanelError, match="kind 'pie'; choose one of line, histogram, bar"):
        Panel("a", "A", "x", "y", "pie", [])  # pyright: ignore[reportArgumentType]  # the point
    with pytest.raises(PanelError, match="is a line, but has values in c"):
        Panel("a", "A", "x", "y", "line", [sample])
    with pytest.raises(PanelError, match="is a histogram, but has x in s"):
        Panel("a", "A", "x", "y", "histogram", [line])
    with pytest.raises(ResultsError, match="verdict 'maybe'; choose one of supported, inc"):
        claim(verdict="maybe")
    for name in ("6", "selections", "fig123"):
        with pytest.raises(ResultsError, match=f"'{name}'; expected figNN.*, rates or controls"):
            replace(example(), figure=name)


@pytest.mark.parametrize("x", [[2], [-1], [0.5], [nan], [0, 1, 2]])
@pytest.mark.parametrize("kind", ["line", "bar"])
def test_an_x_that_has_no_tick_is_refused(x, kind):
    series = Series("success", "run", x, *[[0.5] * len(x)] * 3)
    with pytest.raises(PanelError, match=f"has x {x[-1]} in run, but 2 ticks; .* from 0 to 1"):
        Panel("a", "A", "x", "y", kind, [series], ticks=["one", "two"])


def test_ticks_may_be_passed_over_and_come_in_any_order():
    series = Series("success", "run", [2.0, 0], *[[0.5, 0.4]] * 3)
    for kind in ("line", "bar"):
        Panel("a", "A", "x", "y", kind, [series], ticks=["one", "two", "three"])


def test_each_kind_has_what_it_shows_and_nothing_else():
    heat = Heat([0], [1], [[2]], "z")
    line, sample = Series("success", "s", [0], [1], [1], [1]), Series("correct", "c", values=[1])

    def refused(match, kind, series=(), references=(), **fields):
        with pytest.raises(PanelError, match=match):
            Panel("a", "A", "x", "y", kind, series, references, **fields)

    refused("is a heatmap with no heat", "heatmap")
    for kind in ("line", "histogram", "bar"):
        refused(f"is a {kind} with heat", kind, heat=heat, ticks=["one"])
    refused("is a heatmap, but has series", "heatmap", [line], heat=heat)
    reference = [Reference("large", "larger", 0.7)]
    refused("is a heatmap, but has series or references", "heatmap", [], reference, heat=heat)
    refused("is a heatmap, which has no ticks", "heatmap", heat=heat, ticks=["one"])
    refused("is a histogram, which has no ticks", "histogram", [sample], ticks=["one"])
    refused("is a bar without ticks; name its categories", "bar", [line])
    refused("is a bar, but has values in c", "bar", [sample], ticks=["one"])


@pytest.mark.parametrize(
    ("x", "y", "z", "match"),
    [
        ([], [1], [[]], r"x is \[\]; give increasing"),
        ([0], [], [], r"y is \[\]; give increasing"),
        ([0, 0], [1], [[1, 2]], r"x is \[0, 0\]; give increasing"),
        ([0], [2, 1], [[1], [2]], r"y is \[2, 1\]; give increasing"),
        ([nan], [1], [[1]], r"x is \[nan\]; give increasing"),
        ([0], [1], [[1], [2]], "z has 2 rows of 1 numbers; give 1 .* of 1"),
        ([0, 1], [1, 2], [[1, 2], [3]], "z has 2 rows of 1 or 2 numbers; give 2 .* of 2"),
    ],
)
def test_a_heat_map_of_another_shape_is_refused(x, y, z, match):
    with pytest.raises(PanelError, match=f"heat map 'entropy': {match}"):
        Heat(x, y, z, "entropy")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(example(), tmp_path)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"disk full while writing .*No space"):
        save(replace(example(), title="another"), path)
    assert path.read_bytes() == before
