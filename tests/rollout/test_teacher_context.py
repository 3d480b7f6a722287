"""A teacher that reads another prompt: what it reads, and that its scores are of that text."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from char_tokenizer import make
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import OPDConfig, OPDTrainer, Prompt, TeacherContext, load_prompts, open_run
from opdprobe.errors import ConfigError, PromptError, RolloutError
from opdprobe.hooks import sample, score_rollouts
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.prompt_files import save_prompts
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.rescore import rescore
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer

OWN = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"


def user(content="2?", id="0", **more):
    return Prompt(id, messages=({"role": "user", "content": content},), **more)


def read(prompts, context=None, **settings):
    """What the student and what the teacher reads; None if it is the same."""
    tokenizer = make()
    encoded = encode_prompts(tokenizer, prompts, teacher=context, **settings)

    def text(ids):
        return ids if ids is None else "".join(tokenizer.convert_ids_to_tokens(list(ids)))

    return [(text(p.ids), text(p.teacher_ids)) for p in encoded]


# --- what it reads


def test_by_default_both_read_the_same():
    assert read([user()]) == [("u:2?/a:-", None)]
    assert read([user()], TeacherContext(prompt="{question}")) == [("u:2?/a:-", None)]


def test_a_wording_names_columns_of_the_row():
    prompts = [
        user(answer="4", meta={"solution": "1+1", "level": 3}),
        user("3?", "1", answer="6", meta={"solution": "2+1", "level": 4}),
    ]
    context = TeacherContext(prompt="{solution}={answer},{level} {}{question}")
    assert read(prompts, context) == [
        ("u:2?/a:-", "u:1+1=4,3 {}2?/a:-"),
        ("u:3?/a:-", "u:2+1=6,4 {}3?/a:-"),
    ]
    text = Prompt("2", text="5+5", answer="10")
    assert read([text], TeacherContext(prompt="{answer}:{question}")) == [("<s>5+5", "<s>10:5+5")]


def test_a_row_says_what_the_teacher_reads():
    prompts = [
        user(teacher=({"role": "user", "content": "4=2?"},)),
        user("3?", "1", teacher="3!"),
        user("5?", "2"),
    ]
    # A row's own prompt precedes the wording; all have one, if any has.
    assert read(prompts, TeacherContext(prompt="w{question}")) == [
        ("u:2?/a:-", "u:4=2?/a:-"),
        ("u:3?/a:-", "<s>3!"),
        ("u:5?/a:-", "u:w5?/a:-"),
    ]
    assert [theirs for _, theirs in read(prompts)] == ["u:4=2?/a:-", "<s>3!", "u:5?/a:-"]


def test_the_new_wording_of_the_student_is_that_of_the_teacher():
    [(student, teacher)] = read(
        [user()], TeacherContext(prompt="{question}!"), template="<{question}>"
    )
    assert (student, teacher) == ("u:<2?>/a:-", "u:<2?>!/a:-")


def test_its_system_prompt_replaces_the_students():
    own = Prompt(
        "1", messages=({"role": "system", "content": "r"}, {"role": "user", "content": "3?"})
    )
    for context, theirs in (
        (TeacherContext(system_prompt="t"), ["s:t/u:2?/a:-", "s:t/u:3?/a:-"]),
        (TeacherContext(system_prompt=""), ["u:2?/a:-", "u:3?/a:-"]),
        (TeacherContext(prompt="{question}."), ["s:q/u:2?./a:-", "s:r/u:3?./a:-"]),
    ):
        found = read([user(), own], context, system_prompt="q")
        assert found == list(zip(["s:q/u:2?/a:-", "s:r/u:3?/a:-"], theirs, strict=True))


def test_variables_of_the_template_that_differ():
    on, off = {"enable_thinking": True}, {"enable_thinking": False}
    asked = [
        user(),
        user(id="1", meta={"chat_template_kwargs": off}),
        user(id="2", meta={"teacher_chat_template_kwargs": off}),
    ]
    found = read(asked, TeacherContext(chat_template_kwargs=on))
    assert found == [
        ("u:2?/a:-", "u:2?/a:"),
        ("u:2?/a:-", "u:2?/a:"),
        ("u:2?/a:-", "u:2?/a:-"),
    ]


def test_its_own_chat_template():
    own = make(OWN)
    assert read([user()], TeacherContext(template="own"), teacher_tokenizer=own) == [
        ("u:2?/a:-", "<s>[2?]")
    ]
    for none in (None, make(None)):
        with pytest.raises(ConfigError, match="teacher_template = 'own', but the teacher's"):
            read([user()], TeacherContext(template="own"), teacher_tokenizer=none)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "the same"}, "expected {question} or another column's name"),
        ({"prompt": 7}, "teacher_prompt = 7; expected a text"),
        ({"system_prompt": ["a"]}, "teacher_system_prompt = .*; expected a text"),
        ({"template": "mine"}, "teacher_template = 'mine'; expected one of student, own"),
    ],
)
def test_a_context_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        TeacherContext(**settings)
    with pytest.raises(ConfigError):
        OPDConfig(**{f"teacher_{name}": value for name, value in settings.items()})


@pytest.mark.parametrize(
    ("row", "context", "message"),
    [
        ({}, TeacherContext(prompt="{solutoin}"), "names {solutoin}, which is None in this row"),
        ({"meta": {"x": [1]}}, TeacherContext(prompt="{x}"), "names {x}, which is .*1.* in this"),
        ({}, TeacherContext(prompt="{answer}"), "names {answer}, which is None"),
        ({"meta": {"teacher_chat_template_kwargs": 3}}, None, "kwargs is 3; expected a mapping"),
    ],
)
def test_a_row_that_lacks_what_the_teacher_needs(row, context, message):
    with pytest.raises(PromptError, match=message):
        read([user(**row)], context)
    good = user("3?", "1", answer="1", meta={"x": 1, "solutoin": "1"})
    assert len(read([user(**row), good], context, on_error="skip")) == 1


@pytest.mark.parametrize("teacher", [" ", (), 3, ({"role": "user"},), ({"role": "assistant"},)])
def test_a_teachers_prompt_that_asks_nothing(teacher):
    with pytest.raises(PromptError, match="the teacher's prompt: "):
        user(teacher=teacher)


def test_it_is_read_from_a_file_and_written_again(tmp_path):
    prompts = [
        user(teacher=({"role": "user", "content": "4=2?"},)),
        user("3?", "1", teacher="3!"),
        user("5?", "2"),
    ]
    save_prompts(prompts, tmp_path / "p.jsonl")
    assert load_prompts(tmp_path / "p.jsonl") == prompts


# --- its scores


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    return student, teacher


@pytest.fixture(scope="module")
def pair():
    return Pair(*models(), tiny_tokenizer())


def alone(model, prompt, response, width):
    """Log-probabilities at the states of one response, by one plain pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, :, :width].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


ids = st.lists(st.integers(6, 60), min_size=1, max_size=9)


@given(
    st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=6),
    st.sampled_from([1, 20, 4096]),
)
def test_each_model_scores_the_response_behind_its_own_prompt(pair, rows, tokens):
    prompts, theirs, responses = map(list, zip(*rows, strict=True))
    n = len(rows)
    rollouts = Rollouts(prompts, responses, [True] * n, list(range(n)), teacher_prompt_ids=theirs)
    got = in_rollout_order(
        [
            (part.batch.state, part.scores)
            for part in pair.scored(rollouts, k=4, micro_batch_tokens=tokens)
        ]
    )
    p, q = (
        torch.cat([alone(m, x, r, pair.width) for x, r in zip(read, responses, strict=True)])
        for m, read in ((pair.student, prompts), (pair.teacher, theirs))
    )
    drawn = torch.tensor([token for response in responses for token in response])
    for m, logp in enumerate((p, q)):
        sampled = logp.gather(1, drawn[:, None])[:, 0]
        torch.testing.assert_close(got.sampled_logp[:, m].double(), sampled, rtol=0, atol=2e-4)
        entropy = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(got.entropy[:, m].double(), entropy, rtol=0, atol=2e-4)
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(got.reverse_kl.double(), kl, rtol=1e-4, atol=1e-4)


PROMPTS = [
    Prompt("a", text="7 8", answer="9"),
    Prompt("b", text="9", answer="10 11 12"),
    Prompt("c", text="10 11 12 13", answer="3"),
]
CONTEXT = TeacherContext(prompt="{answer} {question}")


def look(pair, context, **settings):
    encoded = encode_prompts(pair.tokenizer, PROMPTS, teacher=context)
    settings = {"num_generations": 2, "k": 4, "max_completion_length": 5} | settings
    return probe(pair, encoded, **settings)


def test_a_probe_records_what_the_teacher_read(pair):
    shared, own = look(pair, None), look(pair, CONTEXT)
    assert "teacher_prompt_ids" not in shared
    words = tiny_tokenizer().convert_ids_to_tokens(own.teacher_prompt_ids.values)
    assert " ".join(words) == " ".join(f"{p.answer} {p.text}" for p in PROMPTS for _ in range(2))
    assert own.teacher_prompt_length.values.tolist() == [3, 3, 4, 4, 5, 5]
    for name in ("prompt_ids", "response_ids", "sampled_id"):
        np.testing.assert_array_equal(shared[name], own[name])
    mine, theirs = (own.entropy.sel(model=m) for m in ("student", "teacher"))
    np.testing.assert_allclose(mine, shared.entropy.sel(model="student"), atol=1e-5)
    assert not np.allclose(theirs, shared.entropy.sel(model="teacher"), atol=1e-2)


def test_the_same_contexts_are_scored_again_as_they_were_read(pair):
    own = look(pair, CONTEXT)
    again = rescore(pair, own, k=4)
    np.testing.assert_array_equal(again.teacher_prompt_ids, own.teacher_prompt_ids)
    np.testing.assert_allclose(again.reverse_kl, own.reverse_kl, rtol=1e-5, atol=1e-5)


def test_rollouts_of_ones_own_carry_it(tmp_path):
    student, teacher = models()
    tokenizer = tiny_tokenizer()
    settings = {"num_generations": 2, "max_completion_length": 5, "tokenizer": tokenizer}
    rollouts = sample(student, PROMPTS, teacher_context=CONTEXT, **settings)
    run = score_rollouts(student, teacher, rollouts, tmp_path / "a", k=4, tokenizer=tokenizer)
    want = look(Pair(student, teacher, tokenizer), CONTEXT)
    got = run.load(0)
    assert set(want) <= set(got)
    for name in want.variables:
        np.testing.assert_array_equal(got[name], run_rounded(want, name), err_msg=name)
    theirs = [ids.tolist() for ids in run.teacher_prompt_ids(0)]
    assert theirs == [list(r.teacher_prompt_ids) for r in rollouts]
    frame = run.to_dataframe(0, by="rollout")
    assert frame["teacher_prompt_ids"].tolist() == theirs

    later = [replace(r, step=1) for r in rollouts]
    bare = [replace(r, teacher_prompt_ids=None) for r in rollouts]
    with pytest.raises(RolloutError, match=r"a prompt of its own .* another run"):
        score_rollouts(
            *(student, teacher, [*bare, *later], tmp_path / "b"), k=4, tokenizer=tokenizer
        )


def run_rounded(ds, name):
    """Values as a store keeps them: `logp` has 12 bits of mantissa."""
    values = ds[name].values
    if name != "logp":
        return values
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * 2.0**13) / 2.0**13, exponent).astype(np.float32)


def train(path, **settings):
    student, teacher = models()
    config = OPDConfig(
        **{
            "k": 4, "batch_size": 3, "num_generations": 2, "max_completion_length": 5,
            "max_steps": 2, "learning_rate": 1e-3, **settings,
        }
    )  # fmt: skip
    trainer = OPDTrainer(
        student, teacher, tokenizer=tiny_tokenizer(), prompts=PROMPTS, config=config, run_dir=path
    )
    trainer.train()
    return open_run(path), torch.cat([p.detach().flatten() for p in student.parameters()])


def test_a_context_that_changes_nothing_gives_the_same_run_bit_for_bit(tmp_path, caplog):
    shared, before = train(tmp_path / "shared")
    assert "the teacher's prompts" not in caplog.text
    same, after = train(tmp_path / "same", teacher_prompt="{question}")
    assert "asked for the teacher's prompts changes none of them" in caplog.text
    assert torch.equal(before, after)
    for step in shared.steps:
        assert shared.load(step).identical(same.load(step))


def test_training_follows_the_teacher_in_its_own_context(tmp_path):
    """The gradient is that of the divergence between the two texts' distributions."""
    run, after = train(tmp_path / "own", teacher_prompt="{answer} {question}")
    _, shared = train(tmp_path / "shared")
    assert not torch.equal(after, shared)
    first = run.load(0)
    student, teacher = models()
    for i, (mine, theirs, response) in enumerate(
        zip(run.prompt_ids(0), run.teacher_prompt_ids(0), run.response_ids(0), strict=True)
    ):
        p, q = (
            alone(m, ids.tolist(), response.tolist(), 64)
            for m, ids in ((student, mine), (teacher, theirs))
        )
        kl = (p.exp() * (p - q)).sum(-1).numpy()
        recorded = first.reverse_kl.values[first.rollout.values == i]
        np.testing.assert_allclose(recorded, kl, rtol=1e-3, atol=1e-4)
    assert run.attrs["chat_template"]["teacher"] == {
        "prompt": "{answer} {question}",
        "prompts": 3,
    }
