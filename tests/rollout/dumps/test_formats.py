"""Each format's dump gives the rollouts that its writer put in."""

import math

import made_dumps as made
import numpy as np
import pytest
from made_dumps import ASKED, LOGP, MAKERS, PROMPT, RESPONSE, TEACHER, TEXT, options

from opdprobe.rollout.dumps import FORMATS, read_dumps
from opdprobe.rollout.dumps.read import DumpReader
from opdprobe.rollout.dumps.row import prompt_name, row_name

NAN = math.nan
IDS = {"prompt_ids": PROMPT, "response_ids": RESPONSE, "prompt_id": prompt_name(PROMPT)}
SAID = {"prompt": ASKED, "response": "9 10", "prompt_id": prompt_name(ASKED)}
AS_TEXT = {"prompt": TEXT, "response": "9 10", "prompt_id": prompt_name(TEXT)}
WHOLE = {**AS_TEXT, "response": "9 10 <eos>"}
ENDED = {**IDS, "finished": True}

# By format: the step of each rollout, and what is known of the first and of the last one.
EXPECTED = {
    "verl": (
        [1, 1, 2, 2],
        {"prompt": "7 8", "response": "9 10", "prompt_id": prompt_name("7 8"), "correct": 1},
        {"prompt": "7 8", "response": "11", "correct": 0},
    ),
    "verl-generation": (
        [1, 1],
        {**SAID, "labels": {"data_source": "sums"}},
        {**SAID, "response": "11"},
    ),
    "trl": ([1, 1, 2, 2], {**SAID, "correct": 1}, {**SAID, "response": "11", "correct": 0}),
    "ms-swift": (
        [1, 1, 2, 2],
        {**AS_TEXT, "correct": 1},
        {**AS_TEXT, "response": "11", "correct": 0},
    ),
    "slime": (
        [0, 0, 1, 1],
        {**ENDED, "sampler_logp": LOGP, "teacher_logp": TEACHER, "mask": None, "correct": NAN},
        {**IDS, "mask": [1, 0, 1], "finished": False, "correct": 1, "teacher_logp": None},
    ),
    "slime-train": (
        [0, 0, 1, 1],
        {
            **IDS,
            "student_logp": LOGP,
            "teacher_logp": TEACHER,
            "sampler_logp": [-0.625, -1.125, -0.375],
        },
        {**IDS, "correct": NAN, "finished": None},
    ),
    "miles": (
        [0, 0, 1, 1],
        {**ENDED, "student_logp": LOGP, "teacher_logp": TEACHER, "sampler_logp": None},
        ENDED,
    ),
    "miles-dashboard": (
        [0, 0, 1, 1],
        {**IDS, "sampler_logp": LOGP, "mask": [1, 0, 1]},
        {**IDS, "finished": None},
    ),
    "prime-rl": (
        [3, 3],
        {
            **IDS,
            "mask": [1, 0, 1],
            "sampler_logp": [-0.5, NAN, -0.25],
            "student_logp": [-0.75, NAN, -0.125],
            "labels": {"environment": "math"},
        },
        {**IDS, "finished": None, "correct": NAN},
    ),
    "verifiers": (
        [4, 4],
        {
            "prompt_ids": PROMPT,
            "response_ids": [15, 16, 4, 17, 5, 2],
            "mask": [1, 1, 0, 0, 0, 1],
            "sampler_logp": [-0.5, -1, NAN, NAN, NAN, -0.25],
            "teacher_logp": [-0.75, -0.5, NAN, NAN, NAN, -0.125],
            "finished": True,
            "correct": 1,
            "labels": {"environment": "gsm8k"},
        },
        {
            "prompt_ids": PROMPT,
            "response_ids": [18, 2],
            "mask": None,
            "sampler_logp": [-0.5, -1],
            "teacher_logp": [-0.75, -0.5],
        },
    ),
    "nemo-rl": (
        [1, 1, 2, 2],
        {**IDS, "sampler_logp": LOGP, "student_logp": TEACHER, "correct": 1, "mask": None},
        IDS,
    ),
    "nemo-rl-distillation": ([1, 1, 2, 2], WHOLE, WHOLE),
    "open-instruct": (
        [1, 1, 2, 2, 3],
        {**ENDED, "sampler_logp": LOGP, "correct": NAN, "labels": {"data_source": "gsm8k"}},
        ENDED,
    ),
    "tinker": (
        [0, 0, 1, 1],
        {**ENDED, "sampler_logp": LOGP, "labels": {"split": "train"}},
        {"prompt_ids": PROMPT, "response_ids": [15, 16], "finished": False},
    ),
    "areal": ([1, 1, 2, 2], {**WHOLE, "correct": 1}, {**WHOLE, "finished": None}),
    "skyrl": (
        [5, 5],
        {
            **WHOLE,
            "finished": True,
            "correct": 1,
            "labels": {"data_source": "gsm8k", "environment": "gsm8k"},
        },
        {**WHOLE, "finished": False, "correct": NAN},
    ),
    "thunlp-eval": ([100, 100], *[{**SAID, "prompt_id": row_name(0, ASKED)}] * 2),
    "thunlp-rollout": ([0, 0], SAID, SAID),
    "lm-eval": (
        [0, 0],
        # The metric of two repeats is of what a filter made of them.
        {**AS_TEXT, "prompt_id": row_name(3, TEXT), "correct": NAN},
        {**AS_TEXT, "prompt_id": row_name(3, TEXT), "response": "11", "correct": NAN},
    ),
    "inspect": (
        [0, 0],
        {**SAID, "prompt_id": row_name("a", ASKED), "correct": 1, "finished": True},
        {**SAID, "prompt_id": row_name("a", ASKED)},
    ),
    "llamafactory": ([0, 0], AS_TEXT, {**AS_TEXT, "finished": None}),
    "token-bank": (
        [0, 0, 1, 1],
        {
            "prompt_ids": [],
            "prompt_id": "0-0",
            "response_ids": RESPONSE,
            "finished": True,
            "student_logp": LOGP,
            "teacher_logp": TEACHER,
            "labels": {"teacher": "big", "student": "small"},
        },
        {"prompt_id": "1-0", "response_ids": RESPONSE},
    ),
}


def test_every_format_has_a_dump_here():
    assert list(MAKERS) == list(FORMATS)
    assert EXPECTED.keys() == FORMATS.keys()


def check(rollout, expected):
    for name, value in expected.items():
        found = getattr(rollout, name)
        if name in ("mask", "sampler_logp", "student_logp", "teacher_logp") and value is not None:
            np.testing.assert_array_equal(found, np.array(value, found.dtype), name)
        elif name in ("prompt_ids", "response_ids"):
            assert list(found) == value, name
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(found), name
        else:
            assert found == value, name


@pytest.mark.parametrize("name", MAKERS)
def test_a_dump_is_read(name, tmp_path):
    steps, first, last = EXPECTED[name]
    reader = DumpReader(MAKERS[name](tmp_path / "dump"), **options(name))
    rollouts = list(reader)
    assert reader.format.name == name
    assert [rollout.step for rollout in rollouts] == steps
    check(rollouts[0], first)
    check(rollouts[-1], last)
    assert all(str(tmp_path) in rollout.source for rollout in rollouts)


@pytest.mark.parametrize(
    ("name", "student_on_teacher", "teacher_on_student"),
    # Of tokens that only the other model lists, the bank has no log-probabilities.
    [("miles", [-6.0, -7.0], [-4.0, -5.0]), ("token-bank", [NAN, NAN], [NAN, NAN])],
)
def test_both_top_lists_are_laid_out(name, student_on_teacher, teacher_on_student, tmp_path):
    rollout = next(read_dumps(MAKERS[name](tmp_path), **options(name)))
    ids = [[[15, 17], [17, 15]], [[18, 16], [16, 19]], [[2, 15], [2, 20]]]
    np.testing.assert_array_equal(rollout.top.token_id, ids)
    (s1, s2), (t1, t2) = student_on_teacher, teacher_on_student
    logp = [  # by token: student on both lists, teacher on both lists
        [[[-0.5, -1.5], [-1.5, -0.5]], [[-0.75, -0.6875], [-0.6875, -0.75]]],
        [[[-0.75, -1.0], [-1.0, s1]], [[t1, -0.5], [-0.5, -1.5]]],
        [[[-0.25, -2.0], [-0.25, s2]], [[-0.125, t2], [-0.125, -3.0]]],
    ]
    np.testing.assert_array_equal(rollout.top.logp, np.array(logp, np.float32))


def test_other_forms_of_a_format_give_the_same(tmp_path):
    def bare(rollouts):
        kept = ("step", "prompt_id", "response", "response_ids", "finished", "correct")
        return [tuple(getattr(rollout, name) for name in kept) for rollout in rollouts]

    bank = made.token_bank(tmp_path / "bank", "jsonl")
    csv = made.token_bank(tmp_path / "csv")
    np.testing.assert_equal(bare(read_dumps(bank)), bare(read_dumps(csv)))
    log = made.inspect_json(tmp_path / "log")
    zipped = made.inspect(tmp_path / "zip")
    assert bare(read_dumps(log, step=0)) == bare(read_dumps(zipped, step=0))
    rows = [
        {"gen_step": step, "prompt": TEXT, "completion": text, "reward": reward}
        for step in (1, 2)
        for text, reward in (("9 10", 1.0), ("11", 0.0))
    ]
    ray = made.lines(tmp_path / "ray.jsonl", rows)
    swift = made.ms_swift(tmp_path / "swift")
    assert bare(read_dumps(ray)) == bare(read_dumps(swift))
    # A row of tinker's store has one sample.
    row = {"iteration": 0, "prompt_tokens": PROMPT, "sampled_tokens": RESPONSE, "logprobs": LOGP}
    flat = made.lines(tmp_path / "flat.jsonl", [{**row, "metadata": {"stop_reason": "stop"}}])
    first = next(read_dumps(made.tinker(tmp_path / "tinker")))
    check(next(read_dumps(flat)), {**ENDED, "sampler_logp": LOGP, "step": first.step})
    # What a worker of thunlp/OPD wrote, before it is merged.
    record = {"global_index": 4, "rollout_index": 0, "instruction": "7 8", "input": ""}
    worker = made.lines(tmp_path / "step_0.jsonl", [{**record, "output": "9 10"}])
    check(next(read_dumps(worker)), {**SAID, "prompt_id": row_name(4, ASKED)})


def test_an_evaluation_in_the_midst_of_training_is_left_out_unless_named(tmp_path):
    folder = made.slime(tmp_path)
    reader = DumpReader(folder, "slime")
    assert [path.name for path in reader.files] == ["0.pt", "1.pt"]
    assert "eval_0.pt: of an evaluation" in reader.left_out[0]
    assert len(list(read_dumps(folder / "rollout_data" / "eval_0.pt", "slime"))) == 1


def test_what_was_trained_on_is_read_once(tmp_path):
    reader = DumpReader(made.verifiers(tmp_path))
    assert [path.parent.name for path in reader.files] == ["effective"]
    assert "also in effective/" in reader.left_out[0]


def test_files_that_are_named_by_their_task_come_by_version(tmp_path):
    rollout = made.areal(tmp_path) / "rollout"
    (rollout / "1" / "7.jsonl").rename(rollout / "1" / "9.jsonl")
    again = (rollout / "1" / "9.jsonl").read_text()
    (rollout / "1" / "3.jsonl").write_text(again)
    assert [one.step for one in read_dumps(rollout)] == [1, 1, 1, 1, 2, 2]
