"""Nothing on the way of a training step mixes tensors of the device with tensors of the host.

No accelerator is needed: torch's meta device computes shapes and dtypes, and every operation is
checked for tensors of two devices. What a value decides has the value that is given here.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from opdprobe import OPDConfig
from opdprobe.models.head import Head
from opdprobe.rollout.batches import batches
from opdprobe.rollout.decode import Decoding
from opdprobe.rollout.pair import Scored
from opdprobe.rollout.sample import Rollouts, draw, sample
from opdprobe.rollout.score import score
from opdprobe.rollout.top_tokens import TopTokens
from opdprobe.train.losses import distillation_loss

DEVICE = torch.device("meta")
WIDTH, N, D, K = 5000, 300, 16, 16


def nested_zeros(tensor):
    return [nested_zeros(row) for row in tensor] if tensor.ndim else 0


class OneDevice(TorchDispatchMode):
    """Refuse operations on tensors of two devices; only copies, and tensors without axes, may mix.

    A GPU would refuse most of them, and wait for the host at an index from there.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        own = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor) and x.ndim]
        devices = {x.device.type for x in own}
        assert len(devices) < 2 or func is torch.ops.aten.copy_.default, f"{func}: {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_device():
    with OneDevice():
        yield


@pytest.fixture(autouse=True)
def values(monkeypatch):
    """Values of tensors that have none: false, 1000, no index that is not zero."""
    monkeypatch.setattr(Tensor, "__bool__", lambda _: False)
    monkeypatch.setattr(Tensor, "__int__", lambda _: 1000)
    monkeypatch.setattr(Tensor, "tolist", nested_zeros)
    monkeypatch.setattr(
        Tensor, "nonzero", lambda x: x.new_empty((0, x.ndim), dtype=torch.long), raising=True
    )


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device=DEVICE, dtype=dtype)


def heads():
    layers = [nn.Linear(D, WIDTH, bias=False, device=DEVICE, dtype=torch.bfloat16) for _ in "st"]
    return [Head(layer, WIDTH) for layer in layers]


@pytest.mark.parametrize(
    "mix",
    [
        lambda logits: logits + torch.ones(4, 8),
        lambda logits: logits.gather(1, torch.zeros(4, 1, dtype=torch.long)),
        lambda logits: logits[torch.tensor([0, 1])],
        lambda logits: torch.where(logits > 0, torch.ones(4, 8), 0),
    ],
)
def test_a_mixture_is_refused(mix):
    with pytest.raises((AssertionError, RuntimeError), match=r"cpu|device"):
        mix(empty(4, 8))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"temperature": 0}])
def test_draw(settings):
    assert draw(empty(4, WIDTH), empty(4, dtype=torch.float32), **settings).device == DEVICE


def test_score():
    sampled = empty(N, dtype=torch.long)
    settings = {"k": K, "temperature": 0.7, "stop_ids": ([1], [1, 2])}
    scores = score(empty(N, D), empty(N, D), *heads(), sampled, **settings)
    assert {value.device for value in vars(scores).values()} == {DEVICE}
    assert scores.logp.shape == (N, 2, 2, K)
    assert scores.logp.dtype == torch.float32


def test_tied_tokens(monkeypatch):
    monkeypatch.setattr(Tensor, "__int__", lambda _: 20)  # piles that tie for the last place
    top = TopTokens([slice(0, WIDTH)], K, DEVICE)
    logits = empty(1, 2, N, WIDTH)
    assert top._find_among_ties(logits, top.peaks(logits[0])).device == DEVICE


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "full"},
        {"objective": "full", "divergence": "jsd"},
        {"objective": "sampled", "estimator": "policy_gradient"},
        {"estimator": "policy_gradient"},
        {"support": "overlap"},
        {"support": "union", "tail": "bucket"},
        {"support": "non_overlap", "tail": "drop"},
    ],
    ids=str,
)
def test_losses_and_their_gradients(settings):
    student, teacher = heads()
    hidden, theirs, sampled = empty(N, D), empty(N, D), empty(N, dtype=torch.long)
    scores = score(hidden, theirs, student, teacher, sampled, k=K)
    part = Scored(SimpleNamespace(sampled_ids=sampled), hidden.requires_grad_(), theirs, scores)
    pair = SimpleNamespace(student_head=student, teacher_head=teacher)
    distillation_loss(part, pair, OPDConfig(k=K, **settings)).backward()
    for parameter in (hidden, student.projection.weight):
        assert parameter.grad.device == DEVICE
        assert parameter.grad.shape == parameter.shape


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=D,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with DEVICE:
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def test_hidden_states_of_batches(model):
    rollouts = Rollouts([[1, 2], [3]], [[4, 5], [6, 7, 8]], [True, False], [0, 1])
    for batch in batches(rollouts, micro_batch_tokens=3, pad_id=0, device=DEVICE):
        hidden = batch.hidden(model.base_model)
        assert hidden.device == batch.sampled_ids.device == DEVICE
        hidden.sum().backward()
        assert batch.state.device.type == "cpu"  # joined with scores on the host


@pytest.mark.parametrize("prompts", [[[1, 2], [3, 4]], [[1, 2], [3]]])
def test_sampling(model, prompts, monkeypatch):
    # The check of its first use compares values.
    monkeypatch.setattr("opdprobe.rollout.sample.decoding_of", lambda *_: Decoding.PADDED)
    found = sample(
        model, prompts, num_generations=2, max_completion_length=4, eos_ids=[2], pad_id=0
    )
    assert len(found) == 4
