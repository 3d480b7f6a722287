"""A mixture of teachers is one teacher, whose distribution is the weighted mean of theirs."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from opdprobe import (
    Callback,
    ConfigError,
    OPDConfig,
    OPDTrainer,
    Prompt,
    StoreError,
    open_run,
    probe_checkpoints,
    validate,
)
from opdprobe.cli.names import resolve_teachers
from opdprobe.rollout.mixture import Mixture, MixturePair
from opdprobe.rollout.once import probe
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.teachers import load_pair
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.losses import distillation_loss

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]
SAMPLING = {"num_generations": 2, "k": 4, "max_completion_length": 6}
WEIGHTS = {"math": 0.7, "code": 0.3}


def sharp(**settings):
    model = tiny_model(**settings)
    model.lm_head.weight.data *= 20
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A student and two teachers on disk; one teacher is wider than the other."""
    paths = {}
    for seed, name in enumerate(("student", "math", "code")):
        path = tmp_path_factory.mktemp("models") / name
        sharp(seed=seed, hidden_size=24 if name == "code" else 16).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        paths[name] = path
    return paths


def mixture(saved, weights=WEIGHTS):
    return Mixture({name: saved[name] for name in weights}, weights)


@torch.no_grad()
def oracle(models, weights, ids):
    """log Σ w q at every place of a text, in float64."""
    logp = [model.double()(torch.tensor([ids])).logits[0].log_softmax(-1) for model in models]
    return torch.stack([w * p.exp() for w, p in zip(weights, logp, strict=True)]).sum(0).log()


def check(pair, models, weights, tolerance):
    """Compare a recorded step with what full distributions give."""
    encoded = encode_prompts(pair.tokenizer, PROMPTS)
    step = probe(pair, encoded, micro_batch_tokens=24, **SAMPLING)
    validate(step)
    student = tiny_copy(pair.student)
    starts = np.cumsum(step.length.values) - step.length.values
    before = np.cumsum(step.prompt_length.values) - step.prompt_length.values
    for row in range(step.sizes["rollout"]):
        n, m = int(step.length[row]), int(step.prompt_length[row])
        prompt = step.prompt_ids.values[before[row] : before[row] + m].tolist()
        response = step.response_ids.values[starts[row] : starts[row] + n].tolist()
        ids = [*prompt, *response]
        logq = oracle(models, weights, ids)[m - 1 : -1]
        logp = oracle([student], [1.0], ids)[m - 1 : -1]
        own = step.isel(state=np.flatnonzero(step.rollout.values == row))
        best = logq.topk(4).indices.numpy()
        np.testing.assert_array_equal(own.token_id.sel(support="teacher"), best)
        for support in ("student", "teacher"):
            ids_there = torch.from_numpy(own.token_id.sel(support=support).values).long()
            got = own.logp.sel(model="teacher", support=support)
            np.testing.assert_allclose(got, logq.gather(1, ids_there), atol=tolerance)
        entropy = -(logq.exp() * logq).sum(-1)
        np.testing.assert_allclose(own.entropy.sel(model="teacher"), entropy, atol=tolerance)
        kl = (logp.exp() * (logp - logq)).sum(-1)
        np.testing.assert_allclose(own.reverse_kl, kl, atol=10 * tolerance)
        drawn = logq.gather(1, torch.tensor(response)[:, None])[:, 0]
        np.testing.assert_allclose(own.sampled_logp.sel(model="teacher"), drawn, atol=tolerance)
        stop = own.stop_logp.sel(model="teacher", support="teacher")
        np.testing.assert_allclose(stop, logq[:, 2], atol=tolerance)


def tiny_copy(model):
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@pytest.mark.parametrize("weights", [WEIGHTS, {"math": 1e-6, "code": 1.0}])
def test_the_mixture_is_the_weighted_mean_of_the_distributions(saved, weights):
    pair = MixturePair(saved["student"], mixture(saved, weights), device="cpu")
    models = [tiny_copy(one.teacher) for one in pair.pairs.values()]
    total = sum(weights.values())
    check(pair, models, [w / total for w in weights.values()], 2e-4)


def test_teachers_of_other_precisions_and_kinds(saved):
    """bfloat16 beside float32, and another architecture."""
    torch.manual_seed(0)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1)).eval()
    other.transformer.wte.weight.data *= 20
    half = sharp(seed=5).bfloat16()
    given = Mixture({"half": half, "gpt": other}, {"half": 1, "gpt": 1})
    pair = MixturePair(
        sharp(seed=0), given, tokenizer=tiny_tokenizer(), device="cpu", teacher_tokenizer=None
    )
    assert pair.teacher_head.parts[0][1] == 16
    encoded = encode_prompts(pair.tokenizer, PROMPTS)
    step = probe(pair, encoded, **SAMPLING)
    validate(step)
    # Half of each: no log-probability is below log(1/2) of either teacher's own.
    for one in pair.pairs.values():
        alone = probe(one, encoded, **SAMPLING)
        gap = step.sampled_logp.sel(model="teacher") - alone.sampled_logp.sel(model="teacher")
        assert float(gap.min()) > np.log(0.5) - 0.02


def test_one_teacher_twice_is_that_teacher(saved):
    model = sharp(seed=3)
    pair = MixturePair(
        sharp(seed=0),
        Mixture({"a": model, "b": sharp(seed=3)}, {"a": 1, "b": 2}),
        tokenizer=tiny_tokenizer(),
    )
    encoded = encode_prompts(pair.tokenizer, PROMPTS)
    mixed = probe(pair, encoded, **SAMPLING)
    alone = probe(pair.pairs["a"], encoded, **SAMPLING)
    np.testing.assert_array_equal(mixed.token_id, alone.token_id)
    for name in ("logp", "entropy", "reverse_kl", "sampled_logp"):
        np.testing.assert_allclose(mixed[name], alone[name], atol=1e-4)


def test_the_head_gives_the_same_in_each_of_its_ways(saved):
    pair = MixturePair(saved["student"], mixture(saved), device="cpu")
    head = pair.teacher_head
    hidden = torch.randn(5, 16 + 24 + 2)
    whole = head(hidden)
    out = torch.empty(5, 7)
    head.fill(out, hidden, slice(10, 17))
    torch.testing.assert_close(out, whole[:, 10:17])
    ids = torch.tensor([[3, 60], [0, 1], [2, 2], [63, 5], [7, 8]])
    torch.testing.assert_close(head.columns(hidden, ids), whole.gather(1, ids))


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
def test_the_gradient_is_that_of_the_divergence_from_the_mixture(saved, kind):
    pair = MixturePair(saved["student"], mixture(saved), device="cpu")
    encoded = encode_prompts(pair.tokenizer, PROMPTS)
    step = probe(pair, encoded, **SAMPLING)
    ends = np.cumsum(step.length.values)
    texts = np.split(step.response_ids.values, ends[:-1])
    prompts = np.split(step.prompt_ids.values, np.cumsum(step.prompt_length.values)[:-1])
    rollouts = Rollouts(
        [ids.tolist() for ids in prompts],
        [ids.tolist() for ids in texts],
        [True] * len(texts),
        [0] * len(texts),
    )
    config = OPDConfig(objective="full", divergence=kind)
    weight = pair.student.lm_head.weight
    loss = sum(distillation_loss(part, pair, config) for part in pair.scored(rollouts, k=4))
    (got,) = torch.autograd.grad(loss, weight)

    models = [tiny_copy(one.teacher) for one in pair.pairs.values()]
    student, want = tiny_copy(pair.student).double(), 0.0
    for prompt, response in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True):
        ids, m = [*prompt, *response], len(prompt)
        logq = oracle(models, WEIGHTS.values(), ids)[m - 1 : -1]
        logp = student(torch.tensor([ids])).logits[0, m - 1 : -1].log_softmax(-1)
        pair_of = (logp, logq) if kind == "reverse_kl" else (logq, logp)
        want = want + (pair_of[0].exp() * (pair_of[0] - pair_of[1])).sum()
    (expected,) = torch.autograd.grad(want, student.lm_head.weight)
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)


# --- runs ---


def trainer(saved, path, given=None, **settings):
    more = {"callbacks": settings.pop("callbacks", [])}
    config = OPDConfig(
        **{
            **{"k": 4, "batch_size": 3, "num_generations": 2, "max_completion_length": 5},
            **{"max_steps": 4, "learning_rate": 1e-3, "save_steps": 1, **settings},
        }
    )
    given = mixture(saved) if given is None else given
    return OPDTrainer(
        saved["student"], given, prompts=PROMPTS, config=config, run_dir=path, device="cpu", **more
    )


class _Stop(Callback):
    def on_step_end(self, trainer, step, metrics, dataset):
        if step == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["topk", "full", "sampled"])
def test_a_resumed_run_is_the_same(saved, tmp_path, objective):
    settings = {"objective": objective}
    if objective == "sampled":
        settings["estimator"] = "policy_gradient"
    whole = trainer(saved, tmp_path / "whole", **settings)
    run = whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(saved, tmp_path / "cut", **settings, callbacks=[_Stop()]).train()
    again = trainer(saved, tmp_path / "cut", **settings)
    resumed = again.train()
    assert resumed.steps == run.steps
    for step in run.steps:
        assert resumed.load(step).identical(run.load(step))
    teacher = open_run(tmp_path / "cut").attrs["teacher"]
    assert teacher["name"] == "0.7 math + 0.3 code"
    assert teacher["teachers"]["math"]["weight"] == 0.7
    other = mixture(saved, {"math": 0.5, "code": 0.5})
    with pytest.raises(StoreError, match="teacher"):
        trainer(saved, tmp_path / "cut", other, **settings).train()


@pytest.mark.slow
def test_checkpoints_are_probed_with_a_mixture(saved, tmp_path):
    folders = []
    for step in (1, 2):
        folders.append(tmp_path / f"checkpoint-{step}")
        sharp(seed=step).save_pretrained(folders[-1])
        tiny_tokenizer().save_pretrained(folders[-1])
    run = probe_checkpoints(folders, mixture(saved), PROMPTS, tmp_path / "run", **SAMPLING)
    pair = load_pair(folders[1], mixture(saved), by=None, device="cpu")
    want = probe(pair, encode_prompts(pair.tokenizer, PROMPTS), step=2, **SAMPLING)
    np.testing.assert_allclose(run.load(2).reverse_kl, want.reverse_kl, atol=1e-4)
    assert run.attrs["teacher"]["name"] == "0.7 math + 0.3 code"


def test_mixtures_that_cannot_be(saved):
    with pytest.raises(ConfigError, match=r"a mixture of 1 teachers .*expected two or more"):
        Mixture({"a": "x"}, {"a": 1})
    with pytest.raises(ConfigError, match="weights of 'a'; expected two or more teachers, and a"):
        Mixture({"a": "x", "b": "y"}, {"a": 1})
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"weight .* of teacher 'b'; expected a number above"):
            Mixture({"a": "x", "b": "y"}, {"a": 1, "b": weight})
    with pytest.raises(ConfigError, match="a mixture of teachers beside teacher_by"):
        load_pair(saved["student"], mixture(saved), by="domain")
    student = sharp(seed=0)
    given = Mixture({"a": student, "b": sharp(seed=1)}, {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="teacher 'a' is the student itself"):
        MixturePair(student, given, tokenizer=tiny_tokenizer())


def test_a_mixture_on_the_command_line():
    given = resolve_teachers(["3=my/math", "1=my/code"], None)
    assert isinstance(given, Mixture)
    assert dict(given) == {"my/math": "my/math", "my/code": "my/code"}
    assert given.weights == {"my/math": 0.75, "my/code": 0.25}
    for wrong in (["a=my/math", "1=my/code"], ["1=my/math", "2=my/math"], ["1=", "2=x"]):
        with pytest.raises(ConfigError, match="--teacher WEIGHT=MODEL for each of a mixture"):
            resolve_teachers(wrong, None)
