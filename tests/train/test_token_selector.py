"""Training on the tokens that a selector keeps: which they are, and whose loss it is."""

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, OPDConfig, open_run
from opdprobe.probes.selectors import SELECTORS, select_states
from opdprobe.rollout.sample import Rollouts

SETTINGS = {"max_steps": 1, "eval_n": 1}


def rollouts_of():
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 9, 5, 7]
    return Rollouts(
        [[1, 7, 8]] * 4,
        [torch.randint(6, 60, (n,), generator=generator).tolist() for n in lengths],
        finished=[True] * 4,
        prompt_index=[0, 0, 1, 1],
    )


def flat_gradient(trainer, kept):
    """The gradient and the loss of one step, before clipping."""
    trainer.optimization.zero_grad()
    _, loss = trainer._score_and_backward(rollouts_of(), kept)
    found = torch.cat([p.grad.flatten().clone() for p in trainer.optimization.collect()])
    trainer.optimization.zero_grad()
    return found, loss


OBJECTIVES = [
    {},
    {"objective": "full"},
    {"objective": "sampled", "estimator": "policy_gradient"},
    {"support": "union", "tail": "bucket", "divergence": "jsd"},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: "-".join(o.values()) or "topk")
@pytest.mark.parametrize("tokens", [1, 4096])
def test_the_loss_is_the_mean_over_the_states_that_are_kept(
    objective, tokens, tmp_path, trainer_in, sharpened
):
    """So the parts' gradients, each times its number of states, add up to the whole's."""
    settings = {**SETTINGS, **objective, "micro_batch_tokens": tokens}
    trainer = trainer_in(tmp_path, settings=settings, student=sharpened(0), teacher=sharpened(1))
    whole, loss = flat_gradient(trainer, None)
    n = rollouts_of().n_tokens
    kept = torch.from_numpy(np.random.default_rng(0).random(n) < 0.3)
    kept[:3] = False  # of one rollout, nothing
    parts = [(mask, *flat_gradient(trainer, mask)) for mask in (kept, ~kept)]
    torch.testing.assert_close(
        sum(int(mask.sum()) / n * g for mask, g, _ in parts), whole, rtol=1e-4, atol=1e-6
    )
    assert sum(int(mask.sum()) / n * value for mask, _, value in parts) == pytest.approx(
        loss, rel=1e-5, abs=1e-6
    )
    assert not torch.allclose(parts[0][1], parts[1][1], rtol=0.1)


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_states_are_those_that_the_probe_keeps(selector, tmp_path, trainer_in, sharpened):
    settings = {**SETTINGS, "token_selector": selector, "token_fraction": 0.4}
    runs = {}
    for name, more in {"kept": {}, "others": {"token_complement": True}}.items():
        trainer = trainer_in(
            tmp_path / name,
            settings=settings | more,
            student=sharpened(0),
            teacher=sharpened(1),
        )
        seen = []
        original = trainer._kept
        trainer._kept = lambda *given, f=original, to=seen: to.append(f(*given)) or to[-1]
        trainer.train()
        runs[name] = open_run(tmp_path / name), seen[0].numpy()
    run, kept = runs["kept"]
    step = run.load(0)
    np.testing.assert_array_equal(kept, select_states(step, selector, 0.4))
    np.testing.assert_array_equal(runs["others"][1], ~kept)
    # All states are recorded; the first step's rollouts do not depend on what is trained on.
    np.testing.assert_array_equal(step.sampled_id, runs["others"][0].load(0).sampled_id)
    assert step.sizes["state"] == len(kept)
    share = np.ceil(0.4 * len(kept)) / len(kept)
    assert float(run.metrics["trained_share"][0]) == pytest.approx(share)
    assert float(runs["others"][0].metrics["trained_share"][0]) == pytest.approx(1 - share)


def test_all_tokens_are_all_tokens(tmp_path, trainer_in, sharpened):
    def weights(name, **settings):
        trainer = trainer_in(
            tmp_path / name,
            settings=SETTINGS | settings,
            student=sharpened(0),
            teacher=sharpened(1),
        )
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])

    torch.testing.assert_close(
        weights("all", token_selector="random"), weights("none"), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_selector": "best"}, "token_selector = 'best'; expected one of entropy, "),
        ({"token_fraction": 0.2}, "need a token_selector"),
        ({"token_complement": True}, "need a token_selector"),
        ({"token_selector": "tip", "token_fraction": 0}, "token_fraction"),
        ({"token_selector": "tip", "token_fraction": 1.5}, "expected at most 1"),
        ({"token_selector": "tip", "token_complement": True}, "leaves nothing"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        OPDConfig(**settings)
