"""The estimate of a job's memory: sizes without weights, and sums that can be done by hand."""

import pytest
import torch

from opdprobe.models.sizes import ModelSize, UnknownSizeError
from opdprobe.testing import tiny_model
from opdprobe.train import memory
from opdprobe.train.memory import Job, need, told

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# 1000 weights, 2 layers of width 10 with 4 keys, 100 logits.
SIZE = ModelSize(1000, 2, 10, 20, 10, 4, 100)


@pytest.mark.parametrize("tie", [False, True])
def test_a_size_is_that_of_the_model(tmp_path, tie):
    model = tiny_model(tie=tie)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # weights are not read
    assert ModelSize.of(tmp_path) == ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=2,
        hidden=16,
        intermediate=32,
        heads=16,
        kv=8,
        vocabulary=64,
        saved=torch.float32,
    )


def test_sums_by_hand():
    job = Job(rollouts=100, prompt_length=3, max_completion_length=5, micro_batch_tokens=64)
    settings = {"device": GPU, "dtype": torch.float32, "teacher_dtype": torch.bfloat16}
    found = need(SIZE, SIZE, job, **settings)
    assert found.weights == 4 * 1000 + 2 * 1000
    assert found.optimizer == 0
    # Keys and values of 8 tokens, with a quarter of room; logits, and their float32 exponentials.
    assert found.sampling == 100 * (1.25 * 8 * 2 * 2 * 4 * 4 + 100 * 12)
    trained = need(SIZE, SIZE, Job(100, 3, 5, 64, trained=True), **settings)
    assert trained.optimizer == 8 * 1000
    kept = 64 * 2 * (6 * 10 + 5 * 10 + 4 * 20) * 4
    assert trained.scoring == found.scoring + kept + 4 * 1000
    low = settings | {"dtype": torch.bfloat16}
    assert need(SIZE, SIZE, Job(100, 3, 5, 64, trained=True), **low).optimizer == 12 * 1000


def test_a_teachers_longer_prompts_count():
    """By hand: the same 4 rollouts for both, of 8 tokens for the student, 16 for the teacher."""
    settings = {"device": GPU, "dtype": torch.float32, "teacher_dtype": torch.bfloat16}

    def found(**job):
        return need(SIZE, SIZE, Job(100, 3, 5, 64, **job), **settings)

    shared, own = found(trained=True), found(trained=True, teacher_prompt_length=11)
    layer = 6 * 10 + 5 * 10 + 4 * 20
    # The teacher's 64 tokens of 2 bytes each are as much as the student's 32 of 4.
    assert own.scoring - shared.scoring == (32 - 64) * layer * 4 + (32 - 64) * 2 * layer * 4
    assert own.sampling == shared.sampling  # the student's
    sampled = found(sampled=("teacher",), teacher_prompt_length=11).sampling
    assert sampled == 100 * (1.25 * 16 * 2 * 2 * 4 * 2 + 100 * 10)
    # A single rollout is scored, however long.
    alone = need(SIZE, SIZE, Job(100, 3, 5, 64, teacher_prompt_length=251), **settings)
    assert alone.scoring - found().scoring == (256 * 2 - 64 * 4) * layer
    assert found(teacher_prompt_length=3) == found()


def test_a_cpu_packs_weights_for_few_rows_and_caps_the_micro_batch():
    settings = {"device": CPU, "dtype": torch.float32, "teacher_dtype": torch.float32}
    few, many = (need(SIZE, SIZE, Job(n, 3, 5), **settings).sampling for n in (8, 80))
    assert few - many / 10 == 4 * 1000
    one, two = (need(SIZE, SIZE, Job(10**6, 3, 5, n), **settings).scoring for n in (2048, 4096))
    assert one == two


def test_the_line_compares_with_what_there_is(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    job = Job(rollouts=2, prompt_length=3, max_completion_length=5, trained=True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    line, short = told(tmp_path, [tmp_path], job, device=CPU)
    assert short
    assert line.startswith("memory: about 60 MB of 1 MB free on cpu: weights 0 MB (student float32")
    assert line.endswith("; that is more than there is: lower micro_batch_tokens.")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    line, short = told(tmp_path, [tmp_path], job, device=GPU)
    assert "teacher bfloat16, the default there), AdamW" in line
    assert not short
    line, _ = told(tmp_path, [tmp_path], job, device=GPU, dtype="float32")
    assert "teacher float32), AdamW" in line


def test_several_teachers_are_held_together_or_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    sizes = {}
    for name, size in (("small", 1_000_000), ("large", 50_000_000)):
        tiny_model().save_pretrained(tmp_path / name)
        sizes[tmp_path / name] = ModelSize(size, 2, 10, 20, 10, 4, 100)
    monkeypatch.setattr(memory.ModelSize, "of", sizes.__getitem__)
    small, large = sizes
    job = Job(rollouts=2, prompt_length=3, max_completion_length=5)
    line, _ = told(small, [small, large], job, device=CPU)
    assert "weights 0.2 GB (student float32, 2 teachers float32)" in line  # 4 (1 + 1 + 50) MB
    line, _ = told(small, [small, large], job, device=CPU, together=False)
    assert "2 teachers, one at a time, float32" in line
    assert told(small, [large], job, device=CPU)[0].split(",")[0] == line.split(",")[0]
    line, _ = told(small, [large], job, device=CPU, workers=3)  # 2 · 4 (1 + 50) MB + 3 · 0.3 GB
    assert "weights and 3 processes 1.3 GB (student float32" in line
    assert "sampling 6 responses" in line


def test_no_estimate(tmp_path):
    job = Job(rollouts=2, prompt_length=3, max_completion_length=5)
    assert told(tmp_path / "absent", [tmp_path], job, device=CPU) == ("", False)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0\xff\xff")
    line, short = told(tmp_path / "model.gguf", [tmp_path], job, device=CPU)
    assert line == (
        f"memory: no estimate, since the header of {tmp_path / 'model.gguf'} does not tell (error)."
    )
    assert not short
    with pytest.raises(UnknownSizeError):
        ModelSize.of(tmp_path / "model.gguf")
