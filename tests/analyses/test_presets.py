"""Presets of one's own: what a file may say, and what is refused."""

from pathlib import Path

import pytest
import yaml

from analyses.presets import PRESETS, lacking, own_preset, real_preset
from analyses.registry import FIGURES
from opdprobe.cli.names import resolve_prompts
from opdprobe.errors import ConfigError
from opdprobe.testing.real.members import MEMBERS

QUICK = PRESETS["quick"]
MINE = {
    "models": {"student": "a/student", "rl_student": "a/teacher"},
    "prompts": {"train": "p.parquet"},
    "benchmarks": {"mine": "b.jsonl"},
}


def write(path, **changes):
    path.write_text(yaml.safe_dump({**MINE, **changes}))
    return path


def test_what_is_not_said_is_the_presets(tmp_path):
    preset = own_preset(write(tmp_path / "my.yaml"), QUICK)
    assert preset.models == MINE["models"]
    assert preset.prompts == MINE["prompts"]
    assert preset.benchmarks == MINE["benchmarks"]
    assert (preset.config, preset.seeds, preset.n_prompts) == (
        QUICK.config,
        QUICK.seeds,
        QUICK.n_prompts,
    )


def test_what_is_said_replaces_it(tmp_path):
    path = write(
        tmp_path / "my.yaml",
        seeds=[3, 4],
        n_prompts=None,
        n_probe=7,
        depths=[0, 100],
        config={"max_steps": 5, "learning_rate": 0.5},
    )
    preset = own_preset(path, QUICK)
    assert (preset.seeds, preset.n_prompts, preset.n_probe) == ((3, 4), None, 7)
    assert preset.depths == (0, 100)
    assert (preset.config.max_steps, preset.config.learning_rate) == (5, 0.5)
    assert preset.config.batch_size == QUICK.config.batch_size


def test_a_role_may_have_a_model_for_each_seed(tmp_path):
    models = {"student": "a", "rl_student": ["t/7", "t/3", "t/5"]}
    preset = own_preset(write(tmp_path / "my.yaml", seeds=[7, 3, 5], models=models), QUICK)
    assert preset.models == {"student": "a", "rl_student": ("t/7", "t/3", "t/5")}
    assert [preset.model("rl_student", seed) for seed in preset.seeds] == ["t/7", "t/3", "t/5"]
    assert [preset.model("student", seed) for seed in preset.seeds] == ["a"] * 3
    one = own_preset(write(tmp_path / "one.yaml", models={"student": ["a"]}), QUICK)
    assert one.model("student", QUICK.seeds[0]) == "a"


def test_tests_of_other_kinds_are_those_that_the_file_names(tmp_path):
    assert own_preset(write(tmp_path / "my.yaml"), QUICK).crossed == {}
    crossed = {"other": "c.jsonl", "original": "d.jsonl"}
    assert own_preset(write(tmp_path / "my.yaml", crossed=crossed), QUICK).crossed == crossed


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_every_role_of_a_preset_has_a_model_for_every_seed(preset):
    for role in preset.models:
        assert all(isinstance(preset.model(role, seed), str) for seed in preset.seeds)
    assert not set(preset.crossed) & {*preset.benchmarks, *preset.long_benchmarks}
    for names in preset.models.values():
        assert isinstance(names, str) or len(set(names)) == len(preset.seeds)


def test_the_figures_of_the_models_made_from_one_base():
    preset = PRESETS["real"]
    allowed = {figure for figure in FIGURES if not lacking(preset, figure)}
    assert {f"fig{n:02}" for n in (1, 5, 6, 7, 8, 9, 14, 15, 16, 18, 19, 21, 22)} <= allowed
    assert not {"fig02", "fig04", "fig10", "fig11", "fig20"} & allowed


def test_the_real_preset_names_models_and_problems_that_there_are(tmp_path):
    preset = real_preset(tmp_path)
    for path in preset.models.values():
        assert Path(path).parent == tmp_path
        assert Path(path).name in MEMBERS
    sources = [preset.prompts, preset.benchmarks, preset.crossed]
    for name in {name for source in sources for name in source.values()}:
        assert len(resolve_prompts(name, 2)[0]) == 2
    # The pilot's seed is not among those that are reported.
    assert 0 not in preset.seeds


def test_the_figures_that_two_models_allow(tmp_path):
    preset = own_preset(write(tmp_path / "my.yaml"), QUICK)
    allowed = [figure for figure in FIGURES if not lacking(preset, figure)]
    assert allowed == ["fig07", "fig15", "fig16", "fig25", "fig26"]
    assert lacking(preset, "fig06") == ["large"]
    assert lacking(preset, "fig10") == ["base", "other", "rl_base_large"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"studnet": "x"}}, "unknown role in models: studnet; expected one of base, "),
        ({"prompts": {"other": "x"}}, "prompts lack the role 'train'"),
        ({"prompts": {"train": "x", "trian": "y"}}, "unknown role in prompts: trian"),
        ({"models": {}}, "models = {}; expected a mapping of roles to names"),
        ({"models": {"student": 3}}, "expected a mapping of roles to names"),
        ({"models": {"student": ["a", 3]}}, "expected a mapping of roles to names"),
        (
            {"models": {"student": ["a", "b"]}},
            "my.yaml: student names 2 models; expected one, or one for each of the 1 seeds",
        ),
        (
            {"seeds": [0, 1], "models": {"student": []}},
            "student names 0 models; expected one, or one for each of the 2 seeds",
        ),
        ({"prompts": {"train": ["x"]}}, "expected a mapping of roles to names"),
        ({"crossed": {"long": "x"}}, "unknown role in crossed: long; expected one of original, "),
        ({"crossed": ["x"]}, "crossed = .*; expected a mapping of roles to names"),
        ({"benchmarks": ["x"]}, "benchmarks = .*; expected a mapping of roles to names"),
        (
            {"stepz": 3},
            "unknown field: stepz; expected one of attn_implementation, ",
        ),
        ({"device": 0}, "device = 0; expected a name"),
        ({"seeds": 3}, "seeds = 3; expected a list of numbers"),
        ({"seeds": [True]}, "seeds = .True.; expected a list"),
        ({"depths": [-1]}, "depths = .-1.; expected a list"),
        ({"n_probe": "many"}, "n_probe = 'many'; expected a whole number"),
        ({"config": 3}, "config is not a mapping; expected name: value lines"),
        ({"config": {"max_stepz": 3}}, "unknown setting max_stepz"),
        ({"config": {"k": 0}}, "k = 0; expected a number above 0"),
    ],
)
def test_what_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        own_preset(write(tmp_path / "my.yaml", **changes), QUICK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file .*my.yaml"),
        (b"- a\n- b\n", "holds a list; expected name: value lines"),
        (b"", "holds a NoneType"),
        (b"models: {", "not readable as YAML"),
        (b"\xff\xfe\xff", "not readable as YAML"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        own_preset(tmp_path / "my.yaml", QUICK)
