"""Losses and their gradients against definitions in 60 digits, differentiated numerically."""

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from error_bounds import LARGE_VOCABULARY, LOSSES, ROUNDING, SMALLEST
from hard_logits import DTYPES, PAIRS, large_vocabulary
from mp_definitions import exact, gradient, log_softmax, objective
from torch import nn

from opdprobe import OPDConfig
from opdprobe.models.head import Head
from opdprobe.rollout.pair import Scored
from opdprobe.rollout.score import score
from opdprobe.rollout.tiles import log_softmax as torch_log_softmax
from opdprobe.train.full_vocabulary import full_divergence
from opdprobe.train.losses import distillation_loss

pytestmark = pytest.mark.slow

WIDTH, K = 10, 3
KINDS = ("reverse_kl", "forward_kl", "jsd")
TAILS = ("renormalise", "bucket", "drop")
CONFIGS = [
    *({"objective": "full", "divergence": kind} for kind in KINDS),
    {"objective": "sampled", "estimator": "policy_gradient"},
    *(
        {"support": support, "divergence": kind, "tail": tail}
        for (support, kind), tail in itertools.product(
            zip(("student", "overlap", "union"), KINDS, strict=True), TAILS
        )
    ),
    {"support": "teacher", "tail": "bucket", "divergence": "jsd"},
    *(
        {"support": support, "tail": tail, "estimator": "policy_gradient"}
        for support, tail in (("student", "renormalise"), ("non_overlap", "drop"))
    ),
]


def logits_of(name):
    """Logits that every dtype can hold, so that one definition serves all."""
    return [torch.tensor(row[None, :WIDTH]).bfloat16().half().bfloat16() for row in PAIRS[name]]


@functools.cache
def definition(name, config):
    pair = [exact(row[0].double()) for row in logits_of(name)]
    loss = objective(
        *pair,
        objective=config.objective,
        support=config.support,
        divergence_kind=config.divergence,
        tail=config.tail,
        estimator=config.estimator,
        temperature=config.temperature,
        k=config.k,
        sampled=len(pair[0]) - 1,
    )
    return float(loss(pair[0])), np.array(gradient(loss, pair[0]), float)


def production(student, teacher, config, heads=None):
    """Loss of all states, as the trainer computes it; the hidden states may be logits."""
    width = student.shape[-1]
    heads = heads or (Head(None, width),) * 2
    sampled = torch.full((len(student),), heads[0].width - 1)
    scores = score(
        student.detach(), teacher, *heads, sampled, k=config.k, temperature=config.temperature
    )
    part = Scored(SimpleNamespace(sampled_ids=sampled), student, teacher, scores)
    pair = SimpleNamespace(student_head=heads[0], teacher_head=heads[1])
    return distillation_loss(part, pair, config)


def within(got, want, bound, largest_logit, scale, dtype):
    """Allow the bound, and that a gradient is written down in the leaf's dtype."""
    allowed = bound.at(0, largest_logit, scale)
    return np.abs(got - want) <= allowed + ROUNDING[dtype] * np.abs(want) + SMALLEST[dtype]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", PAIRS)
def test_losses_and_gradients(name, temperature):
    for settings, dtype in itertools.product(CONFIGS, DTYPES):
        student, teacher = (row.to(DTYPES[dtype]) for row in logits_of(name))
        config = OPDConfig(k=min(K, student.shape[1]), temperature=temperature, **settings)
        want, slope = definition(name, config)
        loss = production(student.requires_grad_(), teacher, config)
        (grad,) = torch.autograd.grad(loss, student)
        bounds = LOSSES["float64" if dtype == "float64" else "float32"]
        scale = max(1.0, abs(want), np.abs(slope).max())
        # `full` normalises the logits as they are, whatever the temperature.
        largest = float(max(row.detach().abs().max() for row in (student, teacher))) / temperature
        largest *= temperature != 1 or config.objective == "full"
        about = name, dtype, settings
        assert abs(loss.item() - want) <= bounds["loss"].at(0, largest, scale), about
        got = grad[0].double().numpy()
        assert within(got, slope, bounds["gradient"], largest, scale, dtype).all(), about


@pytest.mark.parametrize("objective", ["full", "sampled", "topk"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_gradients_of_a_head_in_the_models_own_dtype(dtype, objective):
    """Hidden states and weights: products in the model's dtype, everything between in float32."""
    torch_dtype, generator = DTYPES[dtype], torch.Generator().manual_seed(0)
    heads = []
    for _ in range(2):
        layer = nn.Linear(4, WIDTH, bias=False, dtype=torch_dtype)
        layer.weight.data.copy_(torch.randn(WIDTH, 4, generator=generator))
        heads.append(Head(layer, WIDTH))
    hidden, teacher_hidden = torch.randn(2, 1, 4, generator=generator).to(torch_dtype)
    estimator = "policy_gradient" if objective == "sampled" else "direct"
    config = OPDConfig(objective=objective, estimator=estimator, k=K)
    production(hidden.requires_grad_(), teacher_hidden, config, heads).backward()
    weight = heads[0].projection.weight
    exact_weight, exact_hidden = weight.detach().double(), hidden[0].detach().double()
    # The logits are what the model gives: rounded to its dtype.
    exact_logits = exact_weight @ exact_hidden
    logits = heads[0](hidden)[0].detach()
    size = exact_weight.abs() @ exact_hidden.abs()
    error = (logits.double() - exact_logits).abs()
    assert (error <= 2 * ROUNDING[dtype] * size).all()
    teacher_logits = heads[1](teacher_hidden)[0].detach()
    loss = objective_of(logits, teacher_logits, config)
    slope = [float(g) for g in gradient(loss, exact(logits.double()))]
    slope = torch.tensor(slope, dtype=torch.float64)
    # One rounding of the slope, one of each product and one of the sum.
    rounding = 4 * ROUNDING[dtype] if dtype != "float64" else 1e-13
    products = {
        "hidden": (hidden.grad[0], slope @ exact_weight, slope.abs() @ exact_weight.abs()),
        "weight": (
            weight.grad,
            slope[:, None] * exact_hidden,
            slope[:, None].abs() * exact_hidden.abs(),
        ),
    }
    for what, (got, want, size) in products.items():
        allowed = rounding * size + (5e-6 if dtype != "float64" else 0) + SMALLEST[dtype]
        assert ((got.double() - want).abs() <= allowed).all(), what


def objective_of(logits, teacher_logits, config):
    return objective(
        *(exact(row.double()) for row in (logits, teacher_logits)),
        objective=config.objective,
        support=config.support,
        divergence_kind=config.divergence,
        tail=config.tail,
        estimator=config.estimator,
        temperature=config.temperature,
        k=config.k,
        sampled=len(logits) - 1,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(large_vocabulary()))
def test_the_full_objective_over_a_large_vocabulary(name, kind):
    student, teacher = large_vocabulary()[name]
    u, v = (_log_softmax(row.astype(np.longdouble)) for row in (student, teacher))
    p, q = np.exp(u), np.exp(v)
    mixture = np.log((p + q) / 2)
    # A divergence is Σ f(u, v); its derivative in a logit is f' - p Σ f'.
    terms, slopes = {
        "reverse_kl": (p * (u - v), p * (u - v) + p),
        "forward_kl": (q * (v - u), -q),
        "jsd": (p * (u - mixture) / 2 + q * (v - mixture) / 2, p * (u - mixture) / 2),
    }[kind]
    want, slope = terms.sum(), slopes - p * slopes.sum()
    leaf, head = torch.tensor(student[None]).requires_grad_(), Head(None, len(student))
    loss = full_divergence(leaf, torch.tensor(teacher[None]), head, head, kind=kind)
    loss.backward()
    scale = max(1.0, float(want))
    assert abs(loss.item() - want) <= LARGE_VOCABULARY["`full`: loss"] * scale
    error = np.abs(leaf.grad[0].numpy() - slope).max()
    assert error <= LARGE_VOCABULARY["`full`: gradient"] * scale


@pytest.mark.parametrize("name", list(large_vocabulary()))
def test_what_the_other_objectives_read_off_a_large_vocabulary(name):
    row = large_vocabulary()[name][0]
    got = torch_log_softmax(Head(None, len(row)), torch.tensor(row[None]), 1.0)[0].numpy()
    error = np.abs(got - _log_softmax(row.astype(np.longdouble))).max()
    assert error <= LARGE_VOCABULARY["others: log-probability"]


def _log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("settings", CONFIGS, ids=lambda s: "-".join(s.values()))
def test_equal_models_have_next_to_no_loss(settings):
    """A divergence of a distribution from itself is 0, however its two halves are computed."""
    row = logits_of("ordinary")[0].float()
    config = OPDConfig(k=K, **settings)
    loss = production(row.requires_grad_(), row.detach().clone(), config)
    (grad,) = torch.autograd.grad(loss, row)
    assert abs(loss.item()) <= LOSSES["float32"]["loss"].absolute
    if config.tail != "drop":  # whose values are no distribution: less mass is less loss
        assert grad.abs().max() <= LOSSES["float32"]["gradient"].absolute


def test_the_definition_itself_is_one():
    """The oracle against two values known in closed form: KL((¾, ¼)‖(¼, ¾)) and its slope."""
    pair = [exact(np.log(row)) for row in ([0.75, 0.25], [0.25, 0.75])]
    loss = objective_of(
        torch.log(torch.tensor([0.75, 0.25]).double()),
        torch.log(torch.tensor([0.25, 0.75]).double()),
        OPDConfig(objective="full", k=1),
    )
    assert float(loss(pair[0])) == pytest.approx(np.log(3) / 2, rel=1e-14)
    # p₁ (log p₁/q₁ - KL) = ¾ (log 3 - ½ log 3)
    slope = [float(g) for g in gradient(loss, pair[0])]
    assert slope == pytest.approx([3 / 8 * np.log(3), -3 / 8 * np.log(3)], rel=1e-14)
    assert float(sum(np.exp(float(x)) for x in log_softmax(pair[0]))) == pytest.approx(1)
