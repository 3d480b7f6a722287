"""A plain torch loop, recorded from its own forward pass."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opdprobe import (
    ConfigError,
    NonFiniteError,
    OPDConfig,
    OPDTrainer,
    Prompt,
    StoreError,
    capture,
    open_run,
    validate,
)
from opdprobe.models.load import weight_hash
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]
ROUNDING = 2**-13  # of logp in the store
# PEFT 0.21 still calls a function that transformers 5.23 renamed.
OLD_NAMES = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    return student, teacher


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One step of our own trainer."""
    student, teacher = models()
    settings = {"k": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 1}
    trainer = OPDTrainer(
        student,
        teacher,
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=OPDConfig(**settings),
        run_dir=tmp_path_factory.mktemp("ours") / "run",
    )
    run = trainer.train()
    return run.load(0), run.prompt_ids(0), run.response_ids(0)


def batch_of(prompt_ids, response_ids, side="right"):
    """The batch that a data collator would make."""
    width = max(len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True))
    ids, labels, mask = [], [], []
    for prompt, response in zip(prompt_ids, response_ids, strict=True):
        pad = width - len(prompt) - len(response)
        row = [*prompt, *response], [-100] * len(prompt) + [*response], [1] * (width - pad)
        for out, values, fill in zip((ids, labels, mask), row, (0, -100, 0), strict=True):
            out.append(values + [fill] * pad if side == "right" else [fill] * pad + values)
    named = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(np.array(value, int)) for name, value in named.items()}


def assert_equals_ours(dataset, ours):
    validate(dataset)
    for name in ("token_id", "sampled_id", "rollout", "position", "length", "finished"):
        np.testing.assert_array_equal(dataset[name], ours[name], err_msg=name)
    for name in ("prompt_ids", "response_ids", "prompt_length"):
        np.testing.assert_array_equal(dataset[name], ours[name], err_msg=name)
    np.testing.assert_allclose(dataset.logp, ours.logp, rtol=ROUNDING, atol=1e-5)
    for name in ("entropy", "reverse_kl", "sampled_logp"):
        np.testing.assert_allclose(dataset[name], ours[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("by", ["labels", "mask"])
def test_a_captured_step_is_our_trainers(recorded, tmp_path, side, parts, by):
    ours, prompt_ids, response_ids = recorded
    student, teacher = models()
    with capture(
        student, teacher, tmp_path / "run", step=0, tokenizer=tiny_tokenizer(), k=4
    ) as captured:
        for rows in np.array_split(np.arange(len(prompt_ids)), parts):
            batch = batch_of([prompt_ids[i] for i in rows], [response_ids[i] for i in rows], side)
            if by == "mask":
                labels = batch.pop("labels")
                student(batch["input_ids"], batch["attention_mask"])  # by position
                captured.record(labels != -100)
            else:
                student(**batch)
    run = open_run(tmp_path / "run")
    assert_equals_ours(run.load(0), ours)
    assert captured.dataset.reverse_kl.identical(run.load(0).reverse_kl)
    assert captured.metrics["overlap_ratio"] == run.metrics.overlap_ratio.sel(step=0)
    # Rollouts of one prompt share its name, which does not depend on the step.
    names = run.load(0).prompt_id.values
    assert list(names[::2]) == list(names[1::2])
    assert len(set(names)) == 3


def captured_by_mask(prompt_ids, response_ids, path, parts=1, side="left", own=None):
    """Record a step whose teacher reads prompts of its own."""
    student, teacher = models()
    with capture(student, teacher, path, step=0, tokenizer=tiny_tokenizer(), k=4) as captured:
        for rows in np.array_split(np.arange(len(prompt_ids)), parts):
            batch = batch_of([prompt_ids[i] for i in rows], [response_ids[i] for i in rows], side)
            mask = batch.pop("labels") != -100
            student(**batch)
            theirs = own if own is None or parts == 1 else [own[i] for i in rows]
            captured.record(mask, teacher_prompt_ids=theirs)
    return open_run(path)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_teacher_may_read_prompts_of_its_own(recorded, tmp_path, parts):
    """As if each text had been given to the teacher alone."""
    _, prompt_ids, response_ids = recorded
    own = [[20 + i, *ids, 7] for i, ids in enumerate(prompt_ids)]
    run = captured_by_mask(prompt_ids, response_ids, tmp_path, parts, own=own)
    step = run.load(0)
    validate(step)
    assert [ids.tolist() for ids in run.teacher_prompt_ids(0)] == own
    student, teacher = models()
    for i, (mine, theirs, response) in enumerate(zip(prompt_ids, own, response_ids, strict=True)):
        logp = []
        for model, prompt in ((student, mine), (teacher, theirs)):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *response]])).logits[0]
            logp.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        p, q = logp
        here = step.isel(state=step.rollout.values == i)
        np.testing.assert_allclose(
            here.reverse_kl, (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-4
        )
        drawn = torch.tensor(np.array(response, int))[:, None]
        np.testing.assert_allclose(
            here.sampled_logp, torch.stack([one.gather(1, drawn)[:, 0] for one in logp], 1),
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


def test_the_students_prompts_as_the_teachers_change_nothing(recorded, tmp_path):
    _, prompt_ids, response_ids = recorded
    shared = captured_by_mask(prompt_ids, response_ids, tmp_path / "shared").load(0)
    same = captured_by_mask(
        prompt_ids, response_ids, tmp_path / "same", own=[list(ids) for ids in prompt_ids]
    ).load(0)
    for name in shared.variables:
        assert shared[name].identical(same[name]), name


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([[5]], "teacher_prompt_ids has 1 prompts for 2 sequences; expected one each"),
        ([[5], []], r"teacher_prompt_ids\[1\] is \[\]; expected at least one token id"),
        ([[5], [-100, 5]], r"teacher_prompt_ids\[1\] is .*; expected .* without padding"),
    ],
)
def test_prompts_that_a_teacher_cannot_read(tmp_path, own, message):
    with pytest.raises(ConfigError, match=message):
        captured_by_mask([[5], [6]], [[7], [8]], tmp_path, own=own)


def test_all_passes_of_a_step_have_teachers_prompts_or_none(tmp_path):
    student, teacher = models()
    batch = batch_of([[5, 6]], [[7, 8]])
    mask = batch.pop("labels") != -100

    def record(*given):
        with capture(student, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4) as c:
            for own in given:
                student(**batch)
                c.record(mask, teacher_prompt_ids=own)

    with pytest.raises(ConfigError, match="step 0: only some of its passes have teacher_prompt_"):
        record(None, [[9]])


def updates(student, teacher, batch, run_dir=None, autocast=False):
    """Two steps of a plain loop, observed or not."""
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    torch.manual_seed(0)
    lost = []
    for step in range(2):

        def update():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = student(**batch).loss
            loss.backward()
            optimizer.step()  # inside the block: the record describes the pass before it
            optimizer.zero_grad()
            lost.append(loss.item())

        if run_dir is None:
            update()
            continue
        with capture(student, teacher, run_dir, step=step, tokenizer=tiny_tokenizer(), k=4):
            update()
    return lost


@pytest.mark.parametrize("autocast", [False, True])
def test_a_captured_loop_learns_the_same(recorded, tmp_path, autocast):
    _, *rows = recorded
    batch = batch_of(*rows)
    results = []
    for run_dir in (None, tmp_path / "run"):
        student, teacher = models()
        for layer in student.model.layers:
            layer.self_attn.attention_dropout = 0.2
        teacher.train()
        results.append((updates(student, teacher, batch, run_dir, autocast), weight_hash(student)))
        assert student.training
        assert teacher.training
        hooked = sum(len(module._forward_hooks) for module in student.modules())
        assert hooked == 0
    assert results[0] == results[1]
    run = open_run(tmp_path / "run")
    assert run.steps == [0, 1]
    assert run.attrs["student"]["weight_hash"] == weight_hash(models()[0])


def test_the_record_describes_the_pass_and_not_the_update(recorded, tmp_path):
    ours, *rows = recorded
    student, teacher = models()
    updates(student, teacher, batch_of(*rows), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert_equals_ours(run.load(0), ours)
    assert not np.array_equal(run.load(1).entropy, run.load(0).entropy)


def test_there_is_no_second_pass_and_others_are_not_recorded(recorded, tmp_path):
    ours, *rows = recorded
    student, teacher = models()
    batch = batch_of(*rows)
    with capture(student, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4):
        calls = []
        handle = student.model.register_forward_hook(lambda *_: calls.append(1))
        student.generate(batch["input_ids"][:, :2], max_new_tokens=2, do_sample=False)
        before = len(calls)
        student(**batch)
        assert len(calls) == before + 1
        handle.remove()
    assert_equals_ours(open_run(tmp_path).load(0), ours)


def growing():
    """A model whose rope depends on the longest row beyond 8 tokens."""
    torch.manual_seed(3)
    config = tiny_model().config.to_dict() | {
        "max_position_embeddings": 8,
        "initializer_range": 0.5,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    }
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_of_the_teacher_depends_on_no_other_row(tmp_path, side, caplog):
    rows = [[7, 8], [9], [10, 11, 12]], [[40, 41], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [9] * 7]
    student, teacher = models()[0], growing()
    with capture(student, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4) as captured:
        student(**batch_of(*rows, side))
    want = []
    for prompt, response in zip(*rows, strict=True):
        with torch.no_grad():
            logits = growing()(torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :]
        want += logits.log_softmax(-1)[range(len(response)), response].tolist()
    got = captured.dataset.sampled_logp.sel(model="teacher")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert "change each other" not in caplog.text


def test_rows_of_the_loop_that_depend_on_each_other_are_named(tmp_path, caplog):
    batch = batch_of([[7, 8], [9]], [[40, 41], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    student = growing()
    with capture(student, models()[1], tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4):
        student(**batch)
    assert "rows change each other's distributions" in caplog.text


def test_masked_stretches_inside_a_response_are_not_states(recorded, tmp_path):
    _, prompt_ids, response_ids = recorded
    whole = [i for i, response in enumerate(response_ids) if len(response) == 6][:2]
    batch = batch_of([prompt_ids[i] for i in whole], [response_ids[i] for i in whole])
    start = len(prompt_ids[whole[0]])
    batch["labels"][0, start + 2 : start + 4] = -100
    student, teacher = models()
    with capture(student, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4):
        student(**batch)
    dataset = open_run(tmp_path).load(0)
    validate(dataset)
    assert dataset.length.values.tolist() == [6, 6]
    assert dataset.position.values.tolist() == [0, 1, 4, 5, 0, 1, 2, 3, 4, 5]


def test_a_first_token_and_an_empty_row(tmp_path):
    student, teacher = models()
    ids = torch.tensor([[1, 7, 8], [1, 9, 2]])
    with capture(student, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4) as captured:
        student(input_ids=ids)
        captured.record(torch.tensor([[0, 0, 0], [1, 1, 1]]), correct=[0.25, 1])
    dataset = open_run(tmp_path).load(0)
    validate(dataset)
    assert dataset.length.values.tolist() == [0, 2]
    assert dataset.prompt_length.values.tolist() == [3, 1]  # nothing predicts a first token
    assert dataset.finished.values.tolist() == [False, True]
    assert dataset.correct.values.tolist() == [0.25, 1]


@OLD_NAMES
def test_a_head_that_is_not_a_projection(recorded, tmp_path, caplog):
    """An adapter on the head: logits come from the model's own output."""
    peft = pytest.importorskip("peft")
    ours, *rows = recorded
    student, teacher = models()
    adapted = peft.get_peft_model(student, peft.LoraConfig(target_modules=["lm_head"]))
    with capture(adapted, teacher, tmp_path, step=0, tokenizer=tiny_tokenizer(), k=4):
        adapted(**batch_of(*rows))
    assert "not a plain projection" in caplog.text
    assert_equals_ours(open_run(tmp_path).load(0), ours)


def test_a_step_is_replaced_and_the_run_continues(tmp_path):
    student, teacher = models()
    ids = torch.tensor([[1, 7, 8, 9]])

    def step(number, **more):
        settings = {"tokenizer": tiny_tokenizer(), "k": 4} | more
        with capture(student, teacher, tmp_path, step=number, **settings):
            student(input_ids=ids, labels=ids)

    for number in (0, 5, 5, 10):
        step(number)
    assert open_run(tmp_path).steps == [0, 5, 10]
    with pytest.raises(StoreError, match="k: 4 before, 8 now"):
        step(15, k=8)


MISUSES = {
    "no response token": lambda s, c: s(input_ids=torch.tensor([[1, 7]])),
    "saw 0 forward passes": lambda s, c: None,
    "no forward pass to record": lambda s, c: c.record(torch.ones(1, 2)),
    "is recorded once": lambda s, c: (
        s(input_ids=torch.tensor([[1, 7]]), labels=torch.tensor([[1, 7]])),
        c.record(torch.ones(1, 2)),
    ),
    r"shape \(1, 3\); expected that of input_ids, \(1, 2\)": lambda s, c: (
        s(input_ids=torch.tensor([[1, 7]])),
        c.record(torch.ones(1, 3)),
    ),
    "2 grades for 1 sequences": lambda s, c: (
        s(input_ids=torch.tensor([[1, 7]])),
        c.record(torch.ones(1, 2), correct=[1, 0]),
    ),
    "do not pass logits_to_keep": lambda s, c: (
        s(input_ids=torch.tensor([[1, 7]]), logits_to_keep=1),
        c.record(torch.ones(1, 2)),
    ),
    "gave no input_ids": lambda s, c: (
        s(inputs_embeds=torch.zeros(1, 2, 16)),
        c.record(torch.ones(1, 2)),
    ),
    "packed into one row": lambda s, c: (
        s(input_ids=torch.tensor([[1, 7, 1, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]])),
        c.record(torch.ones(1, 4)),
    ),
    "attention_mask has shape": lambda s, c: (
        s(
            input_ids=torch.tensor([[1, 7]]),
            attention_mask=torch.zeros(1, 1, 2, 2),
            labels=torch.tensor([[1, 7]]),
        ),
    ),
}


@pytest.mark.parametrize("message", MISUSES)
def test_capture_names_what_is_wrong(message, tmp_path):
    student, teacher = models()
    captured = capture(student, teacher, tmp_path / "run", step=3, tokenizer=tiny_tokenizer(), k=4)
    with pytest.raises(ConfigError, match=message), captured as c:
        MISUSES[message](student, c)
    assert not (tmp_path / "run").exists()
    assert not student._forward_hooks


def test_capture_wants_a_loaded_teacher(tmp_path):
    for teacher in ("my/teacher", {"a": tiny_model(seed=1)}):
        captured = capture(models()[0], teacher, tmp_path, step=0, tokenizer=tiny_tokenizer())
        with (
            pytest.raises(ConfigError, match="expected one model that is already loaded"),
            captured,
        ):
            pass


def test_a_failing_block_writes_nothing(tmp_path):
    student, teacher = models()
    ids = torch.tensor([[1, 7, 8]])

    def update():
        student(input_ids=ids, labels=ids)
        raise KeyError

    block = capture(student, teacher, tmp_path / "run", step=0, tokenizer=tiny_tokenizer())
    with pytest.raises(KeyError), block:
        update()
    assert not (tmp_path / "run").exists()


def test_nan_in_the_loop_is_named(tmp_path):
    student, teacher = models()
    ids = torch.tensor([[1, 7, 8]])
    teacher.lm_head.weight.data.fill_(float("nan"))
    block = capture(student, teacher, tmp_path / "run", step=2, tokenizer=tiny_tokenizer())
    with pytest.raises(NonFiniteError, match="step 2: the teacher gave NaN"), block:
        student(input_ids=ids, labels=ids)


def test_other_processes_capture_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    student, teacher = models()
    with capture(student, teacher, tmp_path / "run", step=0, tokenizer=tiny_tokenizer()) as c:
        student(input_ids=torch.tensor([[1, 7]]))
        c.record(torch.ones(1, 2))
    assert c.metrics == {}
    assert not (tmp_path / "run").exists()
