"""Preflight: its parts against definitions, its rule case by case, the pairs it was made for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rich.console import Console

from opdprobe import ConfigError, Prompt, PromptError, VocabularyError
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.cli.parser import main
from opdprobe.models.load import weight_hash
from opdprobe.preflight import preflight
from opdprobe.preflight.estimates import Number, prompt_mean, prompt_signal
from opdprobe.preflight.show import rendered
from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNKNOWN, UNLIKELY, WORTH, Evidence, judge
from opdprobe.store.prompt_form import prompt_form
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(str(i), text=f"{i} {i + 1}", answer="1") for i in range(6)]
SMALL = {"tokenizer": tiny_tokenizer(), "num_generations": 2, "k": 4, "max_completion_length": 6}


def sharp(seed, vocab_size=64):
    model = tiny_model(vocab_size, seed=seed)
    model.lm_head.weight.data *= 20
    return model


def even(text, prompt):
    return float(len(text) % 2 == 0)


# ---- the pairs whose outcome is known ----


@pytest.mark.parametrize(
    ("student", "teacher", "word", "n_prompts"),
    [
        # sft-small from rl-small, likely to work, is tested with examples/preflight.py.
        ("base-small", "post-large-rl", LIKELY, 192),
        ("sft-small", "sft-large", UNLIKELY, 64),
        ("cold-start-small", "post-large-rl", UNLIKELY, 64),
        ("rl-small", "sft-small", HARMFUL, 64),
    ],
)
def test_the_verdict_on_the_testbeds_pairs(student, teacher, word, n_prompts):
    prompts, grader = resolve_prompts("zoo:train", 256)
    models = resolve_model(f"zoo:{student}"), resolve_model(f"zoo:{teacher}")
    result = preflight(*models, prompts, grader=grader, n_prompts=n_prompts)
    assert result.verdict.word == word, result.verdict.reasons
    assert "pairs of a real language model" in result.verdict.validated
    assert any("of the divergence" in reason for reason in result.verdict.reasons)


# ---- the rule ----

WORKS = Evidence(
    overlap=Number(0.85, 0.84, 0.86),
    reverse_kl=Number(0.6, 0.5, 0.7),
    noise=1e-9,
    learnt=Number(0.7, 0.6, 0.8),
    accuracy=Number(0.6, 0.5, 0.7),
    teacher_accuracy=Number(0.95, 0.9, 1.0),
    gap=Number(0.35, 0.25, 0.45),
    gain=Number(0.3, 0.2, 0.4),
    tail=None,
    truncated=0.0,
    teacher_truncated=0.0,
    repetitive=0.0,
    prompts=64,
)
NOTHING_SHARED = {"learnt": Number(0.0, 0.0, 0.1)}
WORSE = {"gain": Number(-0.4, -0.5, -0.3)}
NO_BETTER = {"gain": Number(0.0, -0.1, 0.1)}
NO_ANSWERS = dict.fromkeys(("accuracy", "teacher_accuracy", "gap", "gain"), Number(np.nan))
ABLE = {"learnt": Number(0.4, 0.2, 0.6)}
WEAKER = {"gap": Number(-0.4, -0.5, -0.3)}


@pytest.mark.parametrize(
    ("changes", "word", "reason"),
    [
        ({}, LIKELY, "it can use the teacher's pattern"),
        ({"learnt": Number(0.3, 0.1, 0.5)}, LIKELY, "unclear"),
        (NO_ANSWERS | {"learnt": Number(0.3, 0.2, 0.4)}, UNKNOWN, "unclear"),
        (NO_ANSWERS | {"learnt": Number(0.1, -0.1, 0.3)}, UNKNOWN, "unclear"),  # 0 is not enough
        (NO_ANSWERS | {"learnt": Number(0.1, 0.01, 0.2)}, UNLIKELY, "share little of a pattern"),
        ({"learnt": Number(np.nan)}, LIKELY, "not measured"),
        ({"gain": Number(0.15, 0.01, 0.29)}, LIKELY, "it can use"),
        ({"gain": Number(0.14, 0.01, 0.27)}, UNKNOWN, "too close to the 0.15"),
        # half of the width is 0.31, the value 0.3: 64 · (0.31 / 0.3)²
        ({"gain": Number(0.3, -0.01, 0.61)}, UNKNOWN, "too few prompts to tell; about 69 would"),
        ({"gain": Number(0.05, -0.15, 0.25)}, UNKNOWN, "about 256 would"),  # 64 · (0.2 / 0.1)²
        ({"gain": Number(0.12, 0.06, 0.18)}, UNKNOWN, "about 256 would"),
        (NO_BETTER | ABLE, UNLIKELY, "by ability rather than by a pattern that the student lacks"),
        ({"gain": Number(0.1, 0.06, 0.14)} | ABLE, UNLIKELY, "by ability"),
        (NO_BETTER, UNKNOWN, "more than the last layer may have to learn it"),
        (NO_BETTER | {"gap": Number(0.3, 0.14, 0.46)}, UNLIKELY, "by ability"),
        (NO_BETTER | {"gap": Number(0.0, -0.1, 0.1)}, UNLIKELY, "no better pattern"),
        (
            NO_BETTER | {"gap": Number(0.1, 0.02, 0.18)},
            UNLIKELY,
            "the teacher is ahead by less",
        ),
        (
            NO_BETTER | {"gap": Number(0.1, -0.1, 0.3)},
            UNLIKELY,
            "take over. But a gain must reach 0.",
        ),
        (NO_BETTER | NOTHING_SHARED, UNLIKELY, "share little of a pattern"),
        ({"gain": Number(0.0, -0.2, 0.2)} | NOTHING_SHARED, UNLIKELY, "too few prompts"),
        (WORSE, HARMFUL, "does not suit this student"),
        ({"gain": Number(-0.3, -0.61, 0.01)}, UNKNOWN, "too few prompts to tell; about 69 would"),
        (WEAKER | WORSE, HARMFUL, "the weaker model"),
        (WEAKER | NO_BETTER | NOTHING_SHARED, HARMFUL, "the weaker model"),
        (WEAKER, UNKNOWN, "the weaker model"),
        ({"gap": Number(-0.09, -0.12, -0.06)} | NO_BETTER, UNLIKELY, "no better pattern"),
        (NO_ANSWERS, UNKNOWN, "No answers are known"),
        (NO_ANSWERS | NOTHING_SHARED, UNLIKELY, "No answers are known"),
        ({"truncated": 0.9}, UNKNOWN, "90% of the student's"),
        (WEAKER | {"teacher_truncated": 0.6}, UNKNOWN, "60% of the teacher's"),
        ({"accuracy": Number(0.0), "teacher_accuracy": Number(0.01)}, UNKNOWN, "solve 0% and 1%"),
        ({"reverse_kl": Number(5e-9)}, UNLIKELY, "the models are the same"),
        ({"reverse_kl": Number(0.0), "noise": 0.0}, UNLIKELY, "the models are the same"),
    ],
)
def test_the_rule(changes, word, reason):
    verdict = judge(replace(WORKS, **changes))
    assert verdict.word == word
    assert any(reason in line for line in verdict.reasons), verdict.reasons


@pytest.mark.parametrize("gap", [Number(0.16, 0.1, 0.2), Number(0.0, -0.1, 0.1)])
def test_a_gain_that_could_be_reached_is_excluded_without_a_but(gap):
    assert not any(
        "excludes little" in r for r in judge(replace(WORKS, **NO_BETTER, gap=gap)).reasons
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"overlap": Number(0.5, 0.45, 0.55)}, "The overlap is low: a cold start"),
        (NO_BETTER | ABLE, "lineage"),
        (NOTHING_SHARED, "keep the learning rate low"),
        ({"tail": 4000}, "After 4000 student tokens"),
        ({"truncated": 0.9}, "--max-completion-length"),
        ({"repetitive": 0.4}, "40% of the student's responses repeat"),
    ],
)
def test_the_advice(changes, advice):
    assert judge(WORKS).advice == ()
    assert [advice in line for line in judge(replace(WORKS, **changes)).advice] == [True]


def test_no_cold_start_on_a_pattern_that_harms():
    assert judge(replace(WORKS, **WORSE, overlap=Number(0.5, 0.45, 0.55))).advice == ()


def test_a_single_prompt_is_said_to_have_no_interval():
    alone = {"overlap": Number(0.85), "gain": Number(0.0), "learnt": Number(0.4)}
    gain, learnt, overlap = judge(replace(WORKS, **alone)).reasons
    assert "by +0.00 (no interval): too few prompts for an interval" in gain
    assert "removes 40% of the divergence (no interval) on the other half: unclear" in learnt
    assert "Overlap ratio 0.85 (no interval), not clearly within" in overlap
    assert "nan" not in gain + learnt + overlap
    gain, learnt, overlap = judge(WORKS).reasons
    assert "by +0.30 [+0.20, +0.40]" in gain
    assert "removes 70% of the divergence [60%, 80%] on the other half" in learnt
    assert "Overlap ratio 0.85 [0.84, 0.86], within" in overlap


def test_short_responses_have_no_tail_to_cut():
    assert judge(replace(WORKS, tail=20)).advice == ()


# ---- intervals ----


@given(
    values=st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=4, max_size=24),
    per=st.integers(1, 4),
)
def test_a_mean_over_prompts(values, per):
    values = np.array(values)
    prompt = np.arange(values.size) // per
    found = prompt_mean(values, prompt, bounds=(0.0, 1.0))
    if np.isnan(values).all():
        assert np.isnan(found.value)
        return
    assert found.value == pytest.approx(np.nanmean(values))
    if not np.isnan(found.low):
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_rollouts_of_one_prompt_are_no_new_evidence():
    values = np.repeat(np.tile([0.0, 1.0, 1.0, 0.0], 5), 50)
    apart = prompt_mean(values, np.arange(values.size))
    together = prompt_mean(values, np.repeat(np.arange(20), 50))
    assert apart.value == together.value
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_single_prompt_has_no_interval():
    found = prompt_mean(np.array([0.0, 1.0]), np.array([0, 0]))
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()
    result = preflight(sharp(0), sharp(1), PROMPTS[:1], grader=even, **SMALL)
    assert result.verdict.word == UNKNOWN
    json.dumps(result.to_dict(), allow_nan=False)


def test_auroc_with_an_interval():
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 2, 200).astype(float)
    reward, length, prompt = correct + rng.normal(size=200), np.ones(200), np.arange(200) // 2
    found = prompt_signal(reward, correct, length, prompt)
    for name in ("reward", "reward_within"):
        assert 0.6 < found[name].low < found[name].value < found[name].high < 0.92
    # All responses are equally long.
    assert found["length"].value == found["length_within"].value == 0.5
    unknown = prompt_signal(reward, np.ones(200), length, prompt)
    assert all(np.isnan(one.value) for one in unknown.values())


# ---- the whole ----


def test_everything_is_reported_as_json():
    result = preflight(
        sharp(0), sharp(1), PROMPTS, grader=even, templates={"twice": "{question} 3"}, **SMALL
    )
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["verdict"]["word"] == result.verdict.word
    assert values["settings"]["n_prompts"] == 6
    assert set(values["templates"]) == {"as given", "twice"}
    assert (
        values["states"]["overlap_ratio"]["value"]
        == values["templates"]["as given"]["overlap_ratio"]["value"]
    )
    assert values["answers"]["student"]["value"] is not None
    assert values["cost"]["bytes_a_step"] > 0
    stops = [row["stop"] for row in values["by_position"]]
    assert [row["start"] for row in values["by_position"]] == [0, *stops[:-1]]
    assert sum(row["states"] for row in values["by_position"]) == values["settings"]["states"]
    assert set(values["seconds"]) == {
        "sample", "score", "noise floor", "readout", "answers", "template twice",
    }  # fmt: skip


def test_a_student_that_is_its_own_teacher_gains_nothing():
    prompts, grader = resolve_prompts("zoo:medium", 32)
    model = resolve_model("zoo:sft-small")
    result = preflight(model, model, prompts, grader=grader, seed=1)
    answers = result.answers
    assert answers.gap.value == 0  # the same random numbers
    # Nothing to fit, nothing to try: no gain on any prompt, which bounds it.
    assert answers.gain.value == 0
    assert -WORTH < answers.gain.low < 0 < answers.gain.high < WORTH
    assert set(answers.continuation) == set(answers.n_continued)
    assert result.verdict.word == UNLIKELY


def adapted(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(init_lora_weights=False, target_modules="all-linear"))


def measured(found):
    return found.to_dict() | {"cost": None, "seconds": None}  # but for the time it took


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of PEFT
def test_a_student_under_adapters_is_the_student_that_they_make():
    student, merged = adapted(sharp(0)), adapted(sharp(0)).merge_and_unload()
    for model in (student, merged):
        model.config._name_or_path = "mine"
    got, want = (preflight(m, sharp(1), PROMPTS, grader=even, **SMALL) for m in (student, merged))
    assert got.settings == want.settings
    assert got.settings["student"] == "mine"
    # Merged weights are rounded once more.
    for name, number in want.states.items():
        assert got.states[name].value == pytest.approx(number.value, rel=1e-3), name
    assert got.answers.student == want.answers.student


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of PEFT
@pytest.mark.parametrize("inside", [False, True])
def test_a_teacher_that_is_the_student_is_it_without_its_adapter(inside):
    twins = [sharp(0) for _ in range(3)]
    for twin in twins:  # most responses have to end, or accuracies count for nothing
        twin.generation_config.eos_token_id = list(range(0, 64, 3))
    student, apart, alone = adapted(twins[0]), adapted(twins[1]), twins[2]
    for name, weight in student.named_parameters():
        weight.requires_grad_("lora_A" in name)
    trained = [weight.requires_grad for weight in student.parameters()]
    teacher = student.get_base_model() if inside else student
    settings = SMALL | {"max_completion_length": 12, "grader": even, "depths": [0, 2]}
    got, want = (
        preflight(*models, PROMPTS, templates={"other": "{question} ?"}, **settings)
        for models in ((student, teacher), (apart, alone))
    )
    assert measured(got) == measured(want)
    assert want.answers.continuation.keys() == {0, 2}
    assert want.states["reverse_kl"].value > 0.1
    assert [weight.requires_grad for weight in student.parameters()] == trained


def test_useless_answers_are_not_measured_further():
    def wrong(text, prompt):
        return 0.0

    answers = preflight(sharp(0), sharp(1), PROMPTS, grader=wrong, **SMALL).answers
    assert answers.student.value == answers.teacher.value == 0
    assert answers.continuation is None
    assert np.isnan(answers.gain.value)


def test_without_answers():
    result = preflight(sharp(0), sharp(1), PROMPTS, **SMALL)
    values = result.to_dict()
    assert values["answers"]["gap"]["value"] is None
    assert values["teacher_responses"] is None
    assert result.verdict.word in (UNKNOWN, UNLIKELY)
    assert any("No answers" in reason for reason in result.verdict.reasons)


def test_nothing_is_changed_and_the_seed_decides():
    student, teacher = sharp(0), sharp(1)
    student.train()
    hashes, random_state = (weight_hash(student), weight_hash(teacher)), torch.get_rng_state()

    def look(seed):
        values = preflight(student, teacher, PROMPTS, grader=even, seed=seed, **SMALL).to_dict()
        del values["seconds"], values["cost"]
        return values

    assert look(1) == look(1)
    assert look(1)["states"] != look(2)["states"]
    assert (weight_hash(student), weight_hash(teacher)) == hashes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert student.training
    assert all(p.grad is None for p in student.parameters())


def test_the_noise_floor_is_rounding():
    noise = preflight(sharp(0), sharp(1), PROMPTS, **SMALL).noise
    assert noise["overlap_ratio"] == 1
    assert 0 <= noise["reverse_kl"] < 1e-6
    assert 0 <= noise["entropy_gap"] < 1e-4


def test_progress_runs_from_none_to_all():
    calls = []
    preflight(sharp(0), sharp(1), PROMPTS, on_progress=lambda *c: calls.append(c), **SMALL)
    assert calls[0] == (0, 4)
    assert calls[-1] == (4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_prompts": 0}, "n_prompts = 0"),
        ({"k": 65}, "k = 65; expected at most 64, the size of the shared vocabulary"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"seed": -1}, "seed = -1; expected 0 or more"),
        ({"tokenizer": None}, "pass tokenizer="),
        ({"templates": {"bad": "no place"}}, "template = 'no place'; expected {question} in it"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        preflight(sharp(0), sharp(1), PROMPTS, **SMALL | settings)


def test_bad_prompts_and_other_vocabularies():
    long = [*PROMPTS, Prompt("long", text="1 " * 40)]
    with pytest.raises(PromptError, match="more than max_prompt_length 20"):
        preflight(sharp(0), sharp(1), long, max_prompt_length=20, **SMALL)
    result = preflight(sharp(0), sharp(1), long, max_prompt_length=20, on_error="skip", **SMALL)
    assert result.settings["n_prompts"] == 6
    with pytest.raises(VocabularyError, match="differ at 10"):
        preflight(sharp(0), sharp(1, 74), PROMPTS, teacher_tokenizer=tiny_tokenizer(74), **SMALL)


# ---- the command ----

COMMAND = [
    "preflight", "--student", "zoo:rl-small", "--teacher", "zoo:sft-small",
    "--prompts", "zoo:medium",
    "--n-prompts", "8", "--num-generations", "2",
]  # fmt: skip


def test_the_command_prints_json(capsys):
    assert main([*COMMAND, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verdict"]["word"] == UNKNOWN  # few prompts are evidence of nothing
    assert values["settings"]["student"] == "zoo:rl-small"


def test_the_command_prints_a_verdict(capsys):
    assert main([*COMMAND, "--template", "please {question}", "--drop-layers", "1-1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "zoo:rl-small without layers 1-1 from zoo:sft-small" in out
    for words in ("overlap ratio", "with known answers", "please {question}", "Tested on"):
        assert words in out
    assert "No gain of training is stated: 16 rollouts are too few; expected 256 or more" in out


def test_the_command_refuses_what_is_no_model(capsys):
    none = ["--student", "zoo:none", "--teacher", "zoo:none"]
    assert main(["preflight", *none, "--prompts", "zoo:easy"]) == 1
    assert "no zoo model 'none'" in capsys.readouterr().err


def test_the_prompts_form_is_stated(capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking %} 11{% endif %}"
    rows = [{"prompt": [{"role": "user", "content": f"{n} 8"}]} for n in range(4)]
    settings = {"tokenizer": tokenizer, "max_completion_length": 4, "num_generations": 1, "k": 4}
    for asked, said in (
        ({}, "enable_thinking = False (default)"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "system_prompt": "5"},
            "enable_thinking = True; system prompt '5'",
        ),
    ):
        result = preflight(sharp(0), sharp(1), rows, **settings, **asked)
        console = Console(width=200, no_color=True)
        console.print(rendered(result))
        assert f"Prompts: {said}" in capsys.readouterr().out
        stated = json.loads(json.dumps(result.to_dict()))["settings"]["chat_template"]
        assert prompt_form({"chat_template": stated}) == said
