"""Checkpoints and the optimiser in them: complete or absent, and restored bit for bit."""

import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch

from opdprobe import NonFiniteError, OPDProbeError, StoreError, load_model
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from opdprobe.train.optim import Optimization

IDS = torch.tensor([[1, 7, 8, 9, 10]])


def optimization(model, *, muon=False, **settings):
    settings = {"learning_rate": 1e-2, "total_steps": 10, "schedule": "cosine"} | settings
    return Optimization(model, muon_learning_rate=1e-2 if muon else None, **settings)


def update(model, optimizer):
    model(input_ids=IDS, labels=IDS).loss.backward()
    return optimizer.step()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def file_size_limit(n_bytes):
    """Make writing fail as on a full disk, also in writers of other languages."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_a_loaded_checkpoint_continues_bit_for_bit(tmp_path, muon, tie):
    model = tiny_model(tie=tie)
    optimizer = optimization(model, muon=muon)
    for _ in range(3):
        update(model, optimizer)
    checkpoint = save_checkpoint(tmp_path, 3, model, tiny_tokenizer(), optimizer)
    with torch.random.fork_rng():
        for _ in range(2):
            update(model, optimizer)
        want_noise = torch.rand(3)

        other = tiny_model(tie=tie, seed=9)
        other_optimizer = optimization(other, muon=muon)
        torch.manual_seed(99)
        load_checkpoint(checkpoint, other, other_optimizer)
        for _ in range(2):
            update(other, other_optimizer)
        assert torch.equal(torch.rand(3), want_noise)
    assert same(weights(other), weights(model))
    assert other_optimizer.learning_rate == optimizer.learning_rate


def test_a_checkpoint_is_an_ordinary_model_directory(tmp_path):
    model = tiny_model()
    checkpoint = save_checkpoint(tmp_path, 3, model, tiny_tokenizer(), optimization(model))
    assert same(weights(load_model(checkpoint.path)), weights(model))


def test_the_newest_is_found_and_the_older_are_deleted(tmp_path):
    model = tiny_model()
    optimizer = optimization(model)
    assert latest_checkpoint(tmp_path) is None
    for step in (2, 10):
        save_checkpoint(tmp_path, step, model, tiny_tokenizer(), optimizer)
        found = Checkpoint(tmp_path / "checkpoints" / f"{step:06d}", step)
        assert latest_checkpoint(tmp_path) == found
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]


def test_a_kill_while_writing_leaves_the_old_one(tmp_path):
    model = tiny_model()
    optimizer = optimization(model)
    old = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimizer)
    # This is on disk if the process dies before the rename.
    shutil.copytree(old.path, old.path.parent / ".tmp-000002")
    assert latest_checkpoint(tmp_path) == old
    new = save_checkpoint(tmp_path, 2, model, tiny_tokenizer(), optimizer)
    assert [path.name for path in new.path.parent.iterdir()] == ["000002"]


def test_a_kill_before_the_old_one_is_deleted_leaves_the_new_one(tmp_path):
    model = tiny_model()
    old = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimization(model))
    shutil.copytree(old.path, old.path.parent / "000002")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2


# Where the limit falls: within the weights (safetensors), within the optimiser (torch.save).
@pytest.mark.parametrize("limit", [10_000, 60_000])
def test_a_full_disk_leaves_the_old_one(tmp_path, limit):
    model = tiny_model(vocab_size=256)
    optimizer = optimization(model)
    update(model, optimizer)
    old = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimizer)
    sizes = [(old.path / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")]
    assert sizes[0] < 60_000 < sizes[1]
    with (
        file_size_limit(limit),
        pytest.raises(StoreError, match=r"could not write .*000002"),
    ):
        save_checkpoint(tmp_path, 2, model, tiny_tokenizer(), optimizer)
    assert latest_checkpoint(tmp_path) == old
    assert [path.name for path in old.path.parent.iterdir()] == ["000001"]
    load_checkpoint(old, model, optimizer)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("size", [None, 0, 10, 5000])
def test_a_torn_file_is_named(tmp_path, file, size):
    model = tiny_model()
    optimizer = optimization(model)
    update(model, optimizer)
    checkpoint = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimizer)
    if size is None:
        (checkpoint.path / file).unlink()
    else:
        os.truncate(checkpoint.path / file, size)
    with pytest.raises(StoreError, match=r"the checkpoint .*000001 cannot be read"):
        load_checkpoint(checkpoint, model, optimizer)


def test_an_optimizer_file_that_is_not_a_tensor_file(tmp_path):
    model = tiny_model()
    checkpoint = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimization(model))
    for content in (b"not a file of torch's", b"\x80\x02N."):
        (checkpoint.path / "optimizer.pt").write_bytes(content)
        with pytest.raises(OPDProbeError, match="000001 cannot be read"):
            load_checkpoint(checkpoint, model, optimization(model))


def test_another_optimizer_or_model_is_refused(tmp_path):
    model = tiny_model()
    checkpoint = save_checkpoint(tmp_path, 1, model, tiny_tokenizer(), optimization(model))
    with pytest.raises(StoreError, match="belongs to another model or optimiser"):
        load_checkpoint(checkpoint, model, optimization(model, muon=True))
    wider = tiny_model(hidden_size=32)
    with pytest.raises(StoreError, match="belongs to another model or optimiser"):
        load_checkpoint(checkpoint, wider, optimization(wider))


def test_muon_trains_the_matrices_of_the_layers_only():
    model = tiny_model()
    adamw, muon = optimization(model, muon=True).optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    in_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    in_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert in_muon | in_adamw == set(names.values())
    assert not in_muon & in_adamw
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= in_adamw
    assert "model.layers.1.mlp.up_proj.weight" in in_muon


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_every_schedule_warms_up(schedule):
    model = tiny_model()
    optimizer = optimization(model, schedule=schedule, warmup_steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.learning_rate)
        update(model, optimizer)
    assert rates == pytest.approx([0, 0.25e-2, 0.5e-2, 0.75e-2, 1e-2])


def test_the_norm_is_of_all_gradients_before_clipping():
    model = tiny_model()
    optimizer = optimization(model, max_grad_norm=1e-3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    want = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert optimizer.step() == pytest.approx(want)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_gradient_changes_no_weight(bad):
    model = tiny_model()
    optimizer = optimization(model)
    before = weights(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    model.lm_head.weight.grad[0, 0] = bad
    with pytest.raises(NonFiniteError, match="the gradient norm is"):
        optimizer.step()
    assert same(weights(model), before)
