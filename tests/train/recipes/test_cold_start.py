"""Cold start: what is sampled and kept; no interruption changes the result."""

import json
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, Prompt, PromptError, StoreError, VocabularyError
from opdprobe.models.load import load_model, load_tokenizer, weight_hash
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.sample import Rollouts, sample, step_generator
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.config import SFTConfig
from opdprobe.train.recipes import teacher_responses as sampling_module
from opdprobe.train.recipes.cold_start import ColdStart, cold_start
from opdprobe.train.recipes.teacher_responses import (
    TeacherResponse,
    TeacherSampling,
    teacher_examples,
)
from opdprobe.train.sft import sft, shuffled

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
PROMPTS = [Prompt(f"p{i}", text=f"{i} {i + 1}") for i in range(7)]
ENCODED = encode_prompts(TOKENIZER, PROMPTS)
SAMPLING = TeacherSampling(num_generations=2, max_completion_length=40, batch_size=3)
CONFIG = SFTConfig(learning_rate=1e-2, batch_size=2, num_train_epochs=2, save_steps=3)


def student(seed=0):
    """A student whose training draws random numbers, as with dropout."""
    made = tiny_model(seed=seed)
    for layer in made.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return made


def teacher():
    return tiny_model(seed=1)


def start(out_dir, model=None, **changes):
    settings = {
        "tokenizer": TOKENIZER,
        "prompts": PROMPTS,
        "config": CONFIG,
        "num_generations": 2,
        "max_completion_length": 40,
        "batch_size": 3,
    }
    taught_by = changes.pop("teacher", None) or teacher()
    return cold_start(model or student(), taught_by, out_dir=out_dir, **(settings | changes))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An unbroken cold start: its directory, what it returned, the student in memory."""
    out_dir, model = tmp_path_factory.mktemp("cold") / "start", student()
    made = start(out_dir, model)
    return out_dir, made, model


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# what the teacher answers


def test_each_batch_of_responses_has_its_own_random_numbers(tmp_path):
    seen = []
    got = teacher_examples(
        teacher(),
        TOKENIZER,
        ENCODED,
        tmp_path / "said.jsonl",
        SAMPLING,
        on_progress=lambda *progress: seen.append(progress),
    )
    want, finished = [], []
    for number, first in enumerate(range(0, 7, 3)):
        rollouts = sample(
            teacher(),
            [prompt.ids for prompt in ENCODED[first : first + 3]],
            num_generations=2,
            max_completion_length=40,
            eos_ids=[2],
            pad_id=0,
            temperature=0.7,
            top_p=0.95,
            generator=step_generator(0, number, "cpu"),
        )
        want += rollouts.response_ids
        finished += rollouts.finished
    assert [response.response_ids for response in got] == want
    assert [response.prompt_id for response in got] == [p.id for p in PROMPTS for _ in range(2)]
    assert [response.outcome for response in got] == [
        "kept" if ended else "truncated" for ended in finished
    ]
    assert 0 < sum(finished) < 14
    assert seen == [("teacher responses", done, 14) for done in (0, 6, 12, 14)]
    assert [TeacherResponse(**line) for line in lines(tmp_path / "said.jsonl")] == got


def test_a_response_is_kept_only_if_it_ends_and_does_not_repeat(tmp_path, monkeypatch):
    words = np.random.default_rng(0).integers(6, 64, 200).tolist()
    loop = [7, 8, 9] * 200
    responses = {"kept": [*words, 2], "truncated": words, "repetitive": loop}
    said = [*responses.values(), [*loop, 2]]
    monkeypatch.setattr(
        sampling_module,
        "sample_in_parts",
        lambda model, prompts, **settings: Rollouts(
            [list(p) for p in prompts], said, [True, False, False, True], [0, 1, 2, 3]
        ),
    )
    got = teacher_examples(
        teacher(), TOKENIZER, ENCODED[:4], tmp_path / "said.jsonl", TeacherSampling()
    )
    assert [response.outcome for response in got] == [*responses, "repetitive"]
    assert got[0].response == " ".join(str(word - 6) for word in words)


@pytest.mark.parametrize("torn", ["", '{"prompt_id": "p3", "outco', None])
def test_sampling_resumes_after_the_last_complete_batch(tmp_path, monkeypatch, torn):
    def say(path, model=None):
        return teacher_examples(model or teacher(), TOKENIZER, ENCODED, path, SAMPLING)

    want = say(tmp_path / "unbroken.jsonl")
    whole, path = tmp_path / "unbroken.jsonl", tmp_path / "said.jsonl"
    kept = whole.read_text().splitlines(keepends=True)
    # Killed in the second batch: after some complete lines, or within one.
    path.write_text("".join(kept[:6] if torn is None else kept[:8]) + (torn or ""))
    calls = []
    monkeypatch.setattr(
        sampling_module,
        "sample_in_parts",
        lambda *args, **settings: calls.append(len(args[1])) or sample(*args, **settings),
    )
    assert say(path) == want
    assert path.read_bytes() == whole.read_bytes()
    assert calls == [3, 1]
    assert say(path) == want  # complete: nothing is left to sample
    assert calls == [3, 1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_generations": 0}, "num_generations = 0; expected a number above 0"),
        ({"temperature": -1.0}, r"temperature = -1\.0; expected 0 or more"),
        ({"top_p": 1.5}, r"top_p = 1\.5; expected at most 1"),
        ({"batch_size": 2.5}, "batch_size = 2.5 is of type float"),
    ],
)
def test_settings_out_of_range(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        TeacherSampling(**settings)


# what the student learns


def test_the_student_is_trained_on_what_was_kept(finished, tmp_path):
    out_dir, made, model = finished
    responses = lines(out_dir / "examples.jsonl")
    by_id = {encoded.prompt.id: list(encoded.ids) for encoded in ENCODED}
    kept = [(by_id[r["prompt_id"]], r["response_ids"]) for r in responses if r["outcome"] == "kept"]
    batch_at, n_steps = shuffled(kept, CONFIG)
    want = student()
    with torch.random.fork_rng():
        torch.manual_seed(CONFIG.seed)
        metrics = list(sft(want, TOKENIZER, batch_at, n_steps, CONFIG))
    assert weight_hash(model) == weight_hash(want) != weight_hash(student())
    assert lines(out_dir / "metrics.jsonl") == metrics
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    counts = {"kept": len(kept), "truncated": 14 - len(kept), "repetitive": 0}
    assert made == ColdStart(out_dir / "model", counts, n_steps)


def test_the_model_is_ready_to_start_from(finished):
    out_dir, made, model = finished
    assert weight_hash(load_model(made.path)) == weight_hash(model)
    assert load_tokenizer(made.path).get_vocab() == TOKENIZER.get_vocab()
    assert not model.training
    names = {"cold_start.json", "examples.jsonl", "metrics.jsonl", "model"}
    assert {path.name for path in out_dir.iterdir()} == names


def test_a_finished_one_is_only_opened(finished):
    out_dir, made, model = finished
    before, again, seen = contents(out_dir), student(), []
    times = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*")}
    assert start(out_dir, again, on_progress=lambda *line: seen.append(line)) == made
    assert contents(out_dir) == before
    assert {path: path.stat().st_mtime_ns for path in out_dir.rglob("*")} == times
    assert weight_hash(again) == weight_hash(model)
    assert {stage for stage, *_ in seen} == {"teacher responses"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("stage", "at"), [("teacher responses", 6), ("SFT step", 1), ("SFT step", 5)]
)
def test_a_resumed_one_equals_an_unbroken_one(finished, tmp_path, stage, at):
    out_dir, made, _ = finished

    def interrupt(name, done, total):
        if (name, done) == (stage, at):
            raise Killed

    folder = tmp_path / "start"
    with pytest.raises(Killed):
        start(folder, on_progress=interrupt)
    assert not (folder / "model").exists()
    torch.manual_seed(1)  # a new process
    state = torch.get_rng_state()
    assert start(folder) == replace(made, path=folder / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert contents(folder) == contents(out_dir)


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="the signal would kill pytest"
)
@pytest.mark.parametrize(
    ("stage", "at", "said"),
    [
        ("teacher responses", 6, "stopped by SIGTERM after 12 of 14 teacher responses; the same"),
        ("SFT step", 1, "stopped by SIGTERM after 2 of {n} SFT steps; the same command resumes"),
        # The model is not yet written when the last step is done.
        ("SFT step", -1, "stopped by SIGTERM after {n} of {n} SFT steps; the same command resumes"),
        ("SFT step", 0, "finished; stopped by SIGTERM"),
    ],
)
def test_sigterm_stops_it_with_everything_on_disk(finished, tmp_path, caplog, stage, at, said):
    out_dir, made, _ = finished
    folder, reached = tmp_path / "start", []

    def send(name, done, total):
        if name == stage and done == (at if at > 0 else made.n_steps + at):
            signal.raise_signal(signal.SIGTERM)
        reached.append((name, done))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        start(folder, on_progress=send)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert said.format(n=made.n_steps) in caplog.text
    assert (folder / "model").exists() == (at == 0)
    again = []
    assert start(folder, on_progress=lambda name, done, total: again.append((name, done))) == (
        replace(made, path=folder / "model")
    )
    assert contents(folder) == contents(out_dir)
    # Work done before the signal is not repeated.
    assert {line for line in again if line[0] == "SFT step"}.isdisjoint(reached)


def test_a_full_disk_leaves_no_model_and_the_call_can_be_repeated(finished, tmp_path, monkeypatch):
    out_dir, *_ = finished

    def full(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    folder = tmp_path / "start"
    with monkeypatch.context() as patch:
        patch.setattr(type(student()), "save_pretrained", full)
        with pytest.raises(StoreError, match=r"could not write .*model .*No space left.*free"):
            start(folder, config=replace(CONFIG, save_steps=0))
    names = {"cold_start.json", "examples.jsonl", "metrics.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    start(folder, config=replace(CONFIG, save_steps=0))
    model = "model/model.safetensors"
    assert contents(folder)[model] == contents(out_dir)[model]  # saving changes nothing


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, r"sampling\.seed: 0 before, 1 now"),
        ({"num_generations": 1}, r"sampling\.num_generations: 2 before, 1 now"),
        ({"config": replace(CONFIG, batch_size=4)}, r"sft\.batch_size: 2 before, 4 now"),
        ({"prompts": PROMPTS[:6]}, r"prompts\.count: 7 before, 6 now; prompts\.hash: "),
        ({"teacher": tiny_model(seed=2)}, r"teacher\.weight_hash: '"),
        ({"model": student(seed=2)}, r"student\.weight_hash: '"),
    ],
)
def test_other_settings_are_refused_with_the_difference(finished, changes, reason):
    out_dir, *_ = finished
    before = contents(out_dir)
    with pytest.raises(ConfigError, match=f"was begun with other settings: .*{reason}"):
        start(out_dir, **changes)
    assert contents(out_dir) == before


def test_names_are_loaded(finished, tmp_path):
    _, made, _ = finished
    for name, saved in (("student", tiny_model()), ("teacher", teacher())):
        saved.save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    got = start(
        tmp_path / "start", tmp_path / "student", teacher=tmp_path / "teacher", tokenizer=None
    )
    assert got.counts == made.counts


def test_padding_is_never_sampled(tmp_path):
    wide = tiny_model(80, seed=1)
    wide.lm_head.weight.data[64:] += 10 * wide.lm_head.weight.data[:16]
    start(tmp_path / "start", teacher=wide)
    said = [line["response_ids"] for line in lines(tmp_path / "start" / "examples.jsonl")]
    assert max(map(max, said)) < 64


def test_the_student_ends_where_the_teacher_does(tmp_path):
    ending = teacher()
    ending.generation_config.eos_token_id = [7, 9]
    made = start(tmp_path / "start", teacher=ending)
    assert load_model(made.path).generation_config.eos_token_id == [2, 7, 9]
    last = {line["response_ids"][-1] for line in lines(tmp_path / "start" / "examples.jsonl")}
    assert last & {7, 9}


def test_bad_prompts_can_be_left_out(tmp_path):
    prompts = [*PROMPTS, Prompt("long", text="1 " * 30)]
    with pytest.raises(PromptError, match=r"row 7 \(id 'long'\)"):
        start(tmp_path / "start", prompts=prompts, max_prompt_length=9)
    assert not (tmp_path / "start").exists()
    made = start(tmp_path / "start", prompts=prompts, max_prompt_length=9, on_error="skip")
    assert sum(made.counts.values()) == 14


def test_when_nothing_can_be_used_it_says_why(tmp_path):
    with pytest.raises(
        ConfigError, match="none of the teacher's 14 responses can be used: 14 do not end within"
    ):
        start(tmp_path / "start", max_completion_length=1, temperature=0.0)
    assert len(lines(tmp_path / "start" / "examples.jsonl")) == 14


def test_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match="The tokenizers differ"):
        start(tmp_path / "start", teacher_tokenizer=tiny_tokenizer(60))
    with pytest.raises(ConfigError, match="pass tokenizer= along"):
        start(tmp_path / "start", tokenizer=None)
    assert not (tmp_path / "start").exists()


def test_directories_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        StoreError, match=r"is not empty \(thesis.tex is in it\) and not a cold start"
    ):
        start(tmp_path)
    with pytest.raises(StoreError, match="is a file; expected a directory"):
        start(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "cold").mkdir()
    (tmp_path / "cold" / "cold_start.json").write_text('{"a"')
    with pytest.raises(
        StoreError, match=r"cold_start\.json is not JSON .*; delete .* to start again"
    ):
        start(tmp_path / "cold")
