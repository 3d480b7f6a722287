"""Every objective and its gradient against loops over sets of tokens, in float64."""

import copy
import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import OPDConfig
from opdprobe.models.head import Head
from opdprobe.rollout import score, tiles
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.sample import Rollouts
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.losses import distillation_loss, divergence, restrict, weighted_nll

K = 3
SUPPORTS = ("student", "teacher", "overlap", "non_overlap", "union")
ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [9]],
    response_ids=[[20, 21, 22, 23], [30, 31, 32, 33, 34, 2]],
    finished=[False, True],
    prompt_index=[0, 1],
)
POLICY = "policy_gradient"
CONFIGS = [
    *(
        {"support": s, "divergence": d, "tail": t}
        for s, d, t in itertools.product(
            SUPPORTS, ("reverse_kl", "forward_kl", "jsd"), ("renormalise", "bucket", "drop")
        )
    ),
    *(
        {"support": s, "tail": t, "estimator": "policy_gradient"}
        for s, t in itertools.product(SUPPORTS, ("renormalise", "drop"))
    ),
    *({"objective": "full", "divergence": d} for d in ("reverse_kl", "forward_kl", "jsd")),
    {"objective": "sampled", "estimator": "policy_gradient"},
]


def config(**settings):
    return OPDConfig(k=K, temperature=0.7, **settings)


def models(tie=False):
    """Make a student and a teacher that agree on some top tokens, in float64."""
    student = tiny_model(seed=0, tie=tie).double()
    # Tied embeddings this large would leave nothing outside the top-k: the bucket's floor.
    size = 0.15 if tie else 1.0
    student.lm_head.weight.data *= 30 * size
    teacher = copy.deepcopy(student)
    noise = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    teacher.lm_head.weight.data += size * noise
    return student, teacher


def production(student, teacher, cfg, *, micro_batch_tokens=10_000, scale=1.0):
    """Return the sum over all states, and leave its gradient on the student."""
    pair, total = Pair(student, teacher, tiny_tokenizer()), 0.0
    parts = pair.scored(
        ROLLOUTS, k=K, temperature=cfg.temperature, micro_batch_tokens=micro_batch_tokens
    )
    for part in parts:
        loss = distillation_loss(part, pair, cfg)
        (scale * loss).backward()
        total += loss.item()
    return total


def rows(model, temperature):
    """Return the log-probabilities at every state, from the model's own forward."""
    found = []
    for prompt, response in zip(ROLLOUTS.prompt_ids, ROLLOUTS.response_ids, strict=True):
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
        found += [logits[len(prompt) - 1 + t] / temperature for t in range(len(response))]
    return [row.log_softmax(-1) for row in found]


def top(logp):
    return set(logp.argsort(descending=True)[:K].tolist())


def tokens_of(p, q, support):
    s, t = top(p), top(q)
    sets = {
        "student": s,
        "teacher": t,
        "overlap": s & t,
        "non_overlap": s ^ t,
        "union": s | t,
    }
    return sorted(sets[support])


def restricted(logp, tokens, tail):
    inside = [logp[v] for v in tokens]
    mass = sum(x.exp() for x in inside)
    if tail == "renormalise":
        return [x - mass.log() for x in inside]
    return [*inside, (1 - mass).log()] if tail == "bucket" else inside


def compare(p, q, kind):
    """Return a divergence of two lists of log-probabilities, which need not sum to 1."""
    mean = [((a.exp() + b.exp()) / 2).log() for a, b in zip(p, q, strict=True)]
    if kind == "jsd":
        return (compare(p, mean, "reverse_kl") + compare(q, mean, "reverse_kl")) / 2
    if kind == "forward_kl":
        return compare(q, p, "reverse_kl")
    return sum(a.exp() * (a - b) - a.exp() + b.exp() for a, b in zip(p, q, strict=True))


def estimated(advantage, logp):
    """A term with the value of minus an advantage, and its gradient by the score function."""
    return -advantage.detach() * (1 + logp - logp.detach())


def oracle(student, teacher, cfg):
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        teacher_rows = rows(teacher, cfg.temperature)
    sampled = itertools.chain(*ROLLOUTS.response_ids)
    for p, q, y in zip(rows(student, cfg.temperature), teacher_rows, sampled, strict=True):
        if cfg.objective == "sampled":
            total = total + estimated(q[y] - p[y], p[y])
            continue
        if cfg.objective == "full":
            total = total + compare(list(p), list(q), cfg.divergence)
            continue
        tokens = tokens_of(p, q, cfg.support)
        if not tokens:
            continue
        p_bar = restricted(p, tokens, cfg.tail)
        if cfg.estimator == "policy_gradient":
            for v, weight in zip(tokens, p_bar, strict=True):
                total = total + estimated(weight.exp() * (q[v] - p[v]), p[v])
            continue
        total = total + compare(p_bar, restricted(q, tokens, cfg.tail), cfg.divergence)
    return total


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, want):
    assert got.keys() == want.keys()
    # Relative to the largest entry: where gradients cancel, only rounding is left.
    for name, grad in want.items():
        torch.testing.assert_close(
            got[name], grad, rtol=1e-5, atol=1e-6 * max(1.0, float(grad.abs().max())), msg=name
        )


def test_the_states_cover_all_kinds_of_overlap():
    student, teacher = models()
    sizes = {
        len(tokens_of(p, q, "overlap"))
        for p, q in zip(rows(student, 0.7), rows(teacher, 0.7), strict=True)
    }
    assert {0, 1, 2} <= sizes


@pytest.fixture(scope="module")
def trio():
    """A student, its copy and a teacher, whose checks at the first use all configs share."""
    student, teacher = models()
    return student, copy.deepcopy(student), teacher


@pytest.mark.parametrize("settings", CONFIGS, ids=lambda s: "-".join(s.values()))
@pytest.mark.slow
def test_value_and_gradient_of_the_full_model(settings, trio, monkeypatch):
    monkeypatch.setattr(tiles, "_CHUNK_ELEMENTS", 64 * 3)  # three rows at a time
    cfg = config(**settings)
    for model in trio:
        model.zero_grad()
    student, reference, teacher = trio
    total = production(student, teacher, cfg, micro_batch_tokens=8)
    want = oracle(reference, teacher, cfg)
    want.backward()
    assert total == pytest.approx(want.item(), rel=1e-5)
    assert all(torch.isfinite(grad).all() for grad in gradients(student).values())
    assert_same_gradients(gradients(student), gradients(reference))
    assert not gradients(teacher)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("settings", [{}, {"tail": "bucket"}, {"objective": "full"}])
def test_tied_heads_and_scaled_losses(settings, tie):
    cfg = config(**settings)
    student, teacher = models(tie)
    reference = copy.deepcopy(student)
    production(student, teacher, cfg, scale=-3.5)
    (-3.5 * oracle(reference, teacher, cfg)).backward()
    assert ("lm_head.weight" in gradients(student)) is not tie
    assert_same_gradients(gradients(student), gradients(reference))


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same():
    cfg = config(objective="full")
    student, teacher = models()
    frozen = copy.deepcopy(student)
    frozen.lm_head.requires_grad_(False)
    production(student, teacher, cfg)
    production(frozen, teacher, cfg)
    want = gradients(student)
    del want["lm_head.weight"]
    assert_same_gradients(gradients(frozen), want)


def test_chunks_of_a_bfloat16_head_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(tiles, "_CHUNK_ELEMENTS", 1)  # one row at a time
    layer = torch.nn.Linear(4, 8, bias=False, dtype=torch.bfloat16)
    layer.weight.data.fill_(0.0)
    hidden = torch.ones(600, 4, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.zeros(600, 1, dtype=torch.long)
    weighted_nll(hidden, Head(layer, 8), ids, torch.ones(600, 1)).backward()
    # Each row adds 1/8 to the seven tokens that are not its label. In bfloat16, the sum would stop
    # at 32.
    assert layer.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight.grad[1:].float(), torch.full((7, 4), 75.0))


@pytest.mark.parametrize("settings", [{"objective": "full"}, {"tail": "bucket"}, {}])
def test_the_value_is_the_same_without_gradient(settings):
    student, teacher = models()
    pair, cfg = Pair(student, teacher, tiny_tokenizer()), config(**settings)
    with torch.no_grad():
        (part,) = pair.scored(ROLLOUTS, k=K, temperature=0.7)
        assert float(distillation_loss(part, pair, cfg)) == pytest.approx(
            oracle(student, teacher, cfg).item(), rel=1e-5
        )


# In all tests below, the hidden states are the logits themselves.


def part_of(logits, teacher_logits, sampled=None, *, k=K):
    """Make a micro-batch and a pair out of two (N, V) tensors of logits."""
    head = Head(None, logits.shape[1])
    if sampled is None:
        sampled = torch.zeros(len(logits), dtype=torch.long)
    scores = score.score(logits, teacher_logits, head, head, sampled, k=k)
    part = Scored(SimpleNamespace(sampled_ids=sampled), logits, teacher_logits, scores)
    return part, SimpleNamespace(student_head=head, teacher_head=head)


def gradient(logits, teacher_logits, cfg, sampled=None):
    leaf = logits.clone().requires_grad_()
    loss = distillation_loss(*part_of(leaf, teacher_logits, sampled, k=cfg.k), cfg)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def random_logits(n=6, v=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, n, v, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("support", SUPPORTS)
def test_policy_gradient_identity(support):
    """The Notes of `distillation_loss`: ∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P/Q)] ∇log P."""
    logits, teacher = random_logits()
    cfg = OPDConfig(k=4, support=support, estimator="policy_gradient")
    _, got = gradient(logits, teacher, cfg)
    for i in range(len(logits)):
        x = logits[i].clone().requires_grad_()
        p, q = x.log_softmax(-1), teacher[i].log_softmax(-1)
        s, t = (set(row.argsort(descending=True)[:4].tolist()) for row in (p, q))
        sets = {"student": s, "teacher": t, "overlap": s & t, "non_overlap": s ^ t, "union": s | t}
        tokens = sorted(sets[support])
        if not tokens:
            assert (got[i] == 0).all()
            continue
        log_P, log_Q = p[tokens].logsumexp(0), q[tokens].logsumexp(0)
        kl = (p[tokens].softmax(0) * ((p[tokens] - log_P) - (q[tokens] - log_Q))).sum()
        (grad_kl,) = torch.autograd.grad(kl, x, retain_graph=True)
        (grad_mass,) = torch.autograd.grad(log_P, x)
        want = grad_kl + (kl + log_P - log_Q).detach() * grad_mass
        torch.testing.assert_close(got[i], want, rtol=1e-6, atol=1e-8)


def test_the_sampled_objective_is_unbiased_for_the_full_gradient():
    """Its expectation over the vocabulary, token by token, is the gradient of KL(p‖q)."""
    logits, teacher = random_logits(n=2)
    p = logits.softmax(-1)
    cfg = OPDConfig(objective="sampled", estimator="policy_gradient", k=1)
    expected = torch.zeros_like(logits)
    for y in range(logits.shape[1]):
        _, grad = gradient(logits, teacher, cfg, torch.full((2,), y))
        expected += p[:, [y]] * grad
    _, want = gradient(logits, teacher, OPDConfig(objective="full", k=1))
    torch.testing.assert_close(expected, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("tail", "estimator"),
    [
        ("renormalise", "direct"),
        ("bucket", "direct"),
        ("drop", "direct"),
        ("renormalise", "policy_gradient"),
        ("drop", "policy_gradient"),
    ],
)
def test_no_overlap_no_loss_no_gradient(tail, estimator):
    logits = torch.arange(8.0)[None]
    cfg = OPDConfig(support="overlap", tail=tail, estimator=estimator, k=3)
    loss, grad = gradient(logits, -logits, cfg)
    assert loss == 0
    assert (grad == 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(CONFIGS), st.integers(1, 16))
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(seed, settings, k):
    logits, _ = random_logits(n=3, seed=seed)
    sampled = torch.randint(16, (3,), generator=torch.Generator().manual_seed(seed))
    loss, grad = gradient(logits, logits, OPDConfig(k=k, **settings), sampled)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert grad.abs().max() <= 1e-12


@pytest.mark.slow
def test_a_student_that_equals_its_teacher_stays_when_the_tail_is_dropped():
    """Many steps from equality: without the masses in the divergence, mass left the support."""
    teacher = random_logits()[1]
    for kind in ("reverse_kl", "forward_kl", "jsd"):
        logits = teacher.clone()
        for _ in range(100):
            _, grad = gradient(logits, teacher, OPDConfig(k=4, tail="drop", divergence=kind))
            logits -= grad
        torch.testing.assert_close(logits, teacher, rtol=0, atol=1e-9)


def test_the_value_of_a_policy_gradient_is_minus_the_mean_advantage():
    """Not its surrogate's, which is negative where the student is far from the teacher."""
    logits, teacher = random_logits()
    p, q = logits.log_softmax(-1), teacher.log_softmax(-1)
    sampled = torch.arange(6)
    config = OPDConfig(objective="sampled", estimator="policy_gradient", k=1)
    loss, _ = gradient(logits, teacher, config, sampled)
    want = sum(p[i, i] - q[i, i] for i in range(6))
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss, _ = gradient(logits, teacher, OPDConfig(k=16, estimator="policy_gradient"))
    assert loss.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)


def test_one_renormalised_token_teaches_nothing():
    logits, teacher = random_logits()
    loss, grad = gradient(logits, teacher, OPDConfig(k=1))
    assert loss == 0
    assert (grad == 0).all()
    _, grad = gradient(logits, teacher, OPDConfig(k=1, estimator="policy_gradient"))
    assert (grad != 0).any()


def test_a_renormalised_loss_reaches_the_support_only():
    logits, teacher = random_logits()
    _, grad = gradient(logits, teacher, OPDConfig(k=3))
    assert ((grad != 0).sum(1) == 3).all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(6, dtype=torch.float64))


def test_all_tokens_in_the_support_is_the_full_objective():
    logits, teacher = random_logits()
    full = gradient(logits, teacher, OPDConfig(objective="full", k=16))
    for tail in ("renormalise", "drop"):
        torch.testing.assert_close(
            gradient(logits, teacher, OPDConfig(k=16, tail=tail)), full, rtol=1e-6, atol=1e-8
        )


def test_weighted_nll():
    logits, _ = random_logits()
    ids, weight = torch.arange(12).view(6, 2), torch.arange(12.0, dtype=torch.float64).view(6, 2)
    got = weighted_nll(logits.requires_grad_(), Head(None, 16), ids, weight, 0.5)
    logp = (logits / 0.5).log_softmax(-1)
    want = -sum(weight[i, j] * logp[i, ids[i, j]] for i in range(6) for j in range(2))
    assert got.item() == pytest.approx(want.item())


def test_an_empty_micro_batch_has_loss_zero():
    hidden = torch.zeros(0, 16, requires_grad=True)
    empty = torch.zeros(0, 1)
    loss = weighted_nll(hidden, Head(None, 16), empty.long(), empty)
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, 16)


# Laws of the divergences, on distributions of four tokens of which any may be masked.

ROW = st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=4)
MASK = st.lists(st.booleans(), min_size=4, max_size=4)
TAIL = st.sampled_from(["renormalise", "bucket"])
ANY_TAIL = st.sampled_from(["renormalise", "bucket", "drop"])
KIND = st.sampled_from(["reverse_kl", "forward_kl", "jsd"])


def logp_of(row):
    return torch.tensor([row], dtype=torch.float64).log_softmax(-1)


@given(ROW, ROW, MASK, ANY_TAIL, KIND)
def test_divergences_are_not_negative_and_zero_for_equals(a, b, mask, tail, kind):
    mask, normalised = torch.tensor([mask]), tail != "drop"
    p, q = (restrict(logp_of(row), mask, tail) for row in (a, b))
    # A bucket holds at least 1e-7, even if no mass is left for it.
    assert divergence(p, q, kind, normalised=normalised).item() >= -1e-6
    assert divergence(p, p, kind, normalised=normalised).item() == pytest.approx(0, abs=1e-12)


@given(ROW, ROW, MASK, TAIL)
def test_jsd_is_symmetric_and_bounded(a, b, mask, tail):
    mask = torch.tensor([mask])
    p, q = (restrict(logp_of(row), mask, tail) for row in (a, b))
    d = divergence(p, q, "jsd").item()
    assert d == pytest.approx(divergence(q, p, "jsd").item(), abs=1e-12)
    assert d <= math.log(2) + 1e-6


@given(ROW, ROW, MASK, KIND)
def test_a_bucket_loses_information(a, b, mask, kind):
    """Data processing: merging outcomes brings distributions closer."""
    p, q, mask = logp_of(a), logp_of(b), torch.tensor([mask])
    merged = divergence(restrict(p, mask, "bucket"), restrict(q, mask, "bucket"), kind)
    assert merged.item() <= divergence(p, q, kind).item() + 1e-6


@given(ROW, MASK, st.floats(-50, 50))
def test_renormalising_forgets_constants(a, mask, constant):
    row, mask = logp_of(a), torch.tensor([mask])
    got = restrict(row + constant, mask, "renormalise")
    torch.testing.assert_close(got, restrict(row, mask, "renormalise"))
    assert got.exp().sum().item() == pytest.approx(1)


@given(ROW, ROW, MASK, TAIL, KIND)
def test_gradients_are_finite_and_none_outside_the_mask(a, b, mask, tail, kind):
    leaf, mask = logp_of(a).requires_grad_(), torch.tensor([mask])
    divergence(restrict(leaf, mask, tail), restrict(logp_of(b), mask, tail), kind).backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[~mask].any()
    if tail == "renormalise":
        assert leaf.grad.sum().item() == pytest.approx(0, abs=1e-12)  # a constant is forgotten


def test_scores_are_not_differentiated():
    student, teacher = models()
    (part,) = Pair(student, teacher, tiny_tokenizer()).scored(ROLLOUTS, k=K)
    assert part.hidden.requires_grad
    assert not part.teacher_hidden.requires_grad
    assert not any(x.requires_grad for x in vars(part.scores).values())


@pytest.mark.slow
def test_configs_differ_in_loss():
    """Each setting is read: no two configurations give the same gradient.

    But for a dropped tail, where the two estimators of the reverse KL have one gradient.
    """
    student, teacher = models()
    norms = []
    configs = [c for c in CONFIGS if (c.get("tail"), c.get("estimator")) != ("drop", POLICY)]
    for settings in configs:
        student.zero_grad()
        production(student, teacher, dataclasses.replace(config(), **settings))
        norms.append(sum(float(grad.norm()) for grad in gradients(student).values()))
    assert len({f"{norm:.8g}" for norm in norms}) == len(configs)


@pytest.mark.parametrize("support", SUPPORTS)
def test_with_a_dropped_tail_both_estimators_have_one_gradient(support):
    logits, teacher = random_logits()
    cfg = OPDConfig(k=4, support=support, tail="drop")
    _, direct = gradient(logits, teacher, cfg)
    _, estimated = gradient(logits, teacher, dataclasses.replace(cfg, estimator=POLICY))
    torch.testing.assert_close(direct, estimated, rtol=1e-6, atol=1e-8)
