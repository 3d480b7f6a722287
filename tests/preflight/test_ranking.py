"""Ranking several teachers of one student."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError, VocabularyError
from opdprobe.preflight import preflight, rank_teachers
from opdprobe.preflight.ranking import _best
from opdprobe.preflight.show import rendered_ranking
from opdprobe.rollout.prompts import Prompt
from opdprobe.testing import tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "max_completion_length": 48,
    "num_generations": 2,
    "n_prompts": 20,
    "seed": 1,
}
WORSE, BETTER = "zoo:sft-large", "zoo:rl-small"


@pytest.fixture(scope="module")
def ranking():
    prompts, grader = resolve_prompts("zoo:medium", 32)
    teachers = {name: resolve_model(name) for name in (WORSE, BETTER)}
    return rank_teachers(
        resolve_model("zoo:sft-small"), teachers, prompts, grader=grader, **SETTINGS
    )


def test_the_teacher_that_teaches_comes_first(ranking):
    # Training gains 0.32 with the one and -0.01 with the other (docs/verdicts.md).
    assert ranking.teachers == (BETTER, WORSE)
    assert ranking.best[0] > 0.95
    assert sum(ranking.best) == pytest.approx(1)
    assert ranking.finding.startswith("zoo:rl-small promises most (+")
    assert "the best of 2 with a probability of" in ranking.finding
    close = replace(ranking, best=(0.6, 0.4))
    assert close.finding.startswith("Not settled: zoo:rl-small comes first (+")
    assert "with a probability of only 0.60." in close.finding


def test_each_teacher_is_judged_as_it_would_be_alone(ranking):
    prompts, grader = resolve_prompts("zoo:medium", 32)
    models = resolve_model("zoo:sft-small"), resolve_model(WORSE)
    alone = preflight(*models, prompts, grader=grader, **SETTINGS)
    # The second that was measured, on rollouts that were given.
    given = ranking.found[0]
    assert given.rollouts.response_ids == alone.rollouts.response_ids
    ours = ranking.found[1]
    for part in ("states", "answers", "learnt", "verdict"):
        assert ours.to_dict()[part] == alone.to_dict()[part]
    assert np.isnan(given.cost["seconds_a_step"])
    assert ours.cost["seconds_a_step"] > 0


def test_a_ranking_is_reported_as_json(ranking):
    values = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert [one["teacher"] for one in values["teachers"]] == [BETTER, WORSE]
    assert values["teachers"][0]["settings"]["teacher"] == BETTER
    assert len(values["teachers"][0]["answers"]["gain_by_prompt"]) == 20
    assert values["finding"] == ranking.finding


def test_a_first_teacher_that_does_not_help_is_no_recommendation(ranking):
    worse = ranking.found[1]
    assert worse.verdict.word != "likely to work"
    alone = replace(ranking, teachers=ranking.teachers[1:], found=(worse,), best=(1.0,))
    assert alone.finding.endswith(f"But its verdict is *{worse.verdict.word}*.")


def test_the_probability_is_that_of_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=64)  # how hard each prompt is does not matter: it is the same for all
    ahead = rng.normal(0.25, 1.0, 64)
    found = _best(np.array([shared + ahead, shared]))
    drawn = rng.integers(64, size=(20_000, 64))
    assert found[0] == pytest.approx((ahead[drawn].mean(-1) > 0).mean(), abs=0.04)
    assert sum(found) == pytest.approx(1)
    assert _best(np.zeros((3, 20))) == pytest.approx([1 / 3] * 3)
    assert np.isnan(_best(np.zeros((2, 15)))).all()


def test_without_answers_nothing_is_ranked():
    models = {str(seed): tiny_model(seed=seed) for seed in (1, 2)}
    found = rank_teachers(
        tiny_model(seed=0),
        models,
        [Prompt("a", text="7 8"), Prompt("b", text="9")],
        tokenizer=tiny_tokenizer(),
        max_completion_length=4,
    )
    assert found.teachers == ("1", "2")
    assert np.isnan(found.best).all()
    assert found.finding.startswith("The teachers cannot be ranked: ")
    assert "No answers are known" in found.finding


def test_one_teacher_or_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="1 teachers; expected two or more"):
        rank_teachers(tiny_model(), {"a": tiny_model()}, [], tokenizer=tiny_tokenizer())
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    teachers = {"mine": tmp_path, "other": resolve_model(BETTER)}
    with pytest.raises(VocabularyError):
        rank_teachers(tmp_path, teachers, [Prompt("a", text="7 8")])


def test_rollouts_of_other_prompts_are_refused(ranking):
    prompts, grader = resolve_prompts("zoo:medium", 32)
    models = resolve_model("zoo:sft-small"), resolve_model(WORSE)
    settings: dict[str, Any] = SETTINGS | {"num_generations": 1}
    with pytest.raises(ConfigError, match="40 rollouts that are not 1 of each of these 20"):
        preflight(*models, prompts, grader=grader, rollouts=ranking.found[0].rollouts, **settings)


def test_a_ranking_fits_a_terminal(ranking):
    console = Console(width=80, file=io.StringIO())
    console.print(rendered_ranking(ranking))
    shown = console.file.getvalue()
    first, second = (shown.index(f" {name} ") for name in (BETTER, WORSE))
    assert first < second
    assert "from 2 teachers: 20 prompts × 2 rollouts, the same for all" in " ".join(shown.split())
    assert "zoo:rl-small promises most" in shown


def test_on_the_command_line(capsys):
    command = (
        "preflight --student zoo:sft-small --prompts zoo:medium --n-prompts 2 --json "
        "--num-generations 1 --max-completion-length 8"
    ).split()
    assert main([*command, "--teacher", WORSE, "--teacher", BETTER]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {one["teacher"] for one in values["teachers"]} == {WORSE, BETTER}
    assert values["teachers"][0]["settings"]["student"] == "zoo:sft-small"


def test_a_mixture_is_not_judged(capsys):
    models = tiny_model(), {"a": tiny_model(seed=1), "b": tiny_model(seed=2)}
    with pytest.raises(ConfigError, match=r"2 teachers; expected one, which also answers"):
        preflight(*models, [Prompt("a", text="7")], tokenizer=tiny_tokenizer())
    for given in (["0.7=zoo:rl-small", "0.3=zoo:sft-large"], ["math=zoo:rl-small"]):
        teachers = [text for name in given for text in ("--teacher", name)]
        code = main(["preflight", "--student", "zoo:sft-small", *teachers, "--prompts", "zoo:easy"])
        assert code == 1
        said = capsys.readouterr().err
        assert f"--teacher {given[0]}; expected --teacher MODEL, once for each model" in said
