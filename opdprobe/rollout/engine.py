"""An engine that samples in the student's place, and whether it is the student."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from opdprobe.errors import ConfigError, ModelError, VocabularyError
from opdprobe.probes.sampler import compare_sampler
from opdprobe.rollout.sample import Rollouts

logger = logging.getLogger("opdprobe")

# Mean absolute difference in nats. bfloat16 in an engine and float32 here differ by 0.01 to 0.03.
_ROUNDING = 0.05
# An engine that computes as exactly as the student (float32) has a KL of 1e-12 to 1e-10 in a run's
# first step, when both have the weights of the start. One that is then above the second, about
# 0.001 nats per token, has other weights. Where precision is lower, rounding hides that: it
# counts where the student is uncertain, of which there may be more later.
_EXACT_KL, _OTHER_KL = 1e-8, 1e-6
# Most times that an engine loads a step's weights.
_LOADS = 3


class Sampler(Protocol):
    """An engine that holds the student's weights; messages name it by its ``str``.

    Attributes
    ----------
    name
        Its name of the model, which is recorded.
    """

    name: str

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_generations: int,
        max_completion_length: int,
        seed: Sequence[int],
    ) -> Rollouts:
        """Sample from the unchanged distribution, as `opdprobe.rollout.sample.sample` does."""
        ...


class TrainedSampler(Sampler, Protocol):
    """An engine that may follow a student in training."""

    @property
    def loads_weights(self) -> bool:
        """Whether its server can load weights from a directory."""
        ...

    def load_weights(self, directory: Path) -> None:
        """Have the engine load the weights of a saved model, which its machine must see."""
        ...

    def has_loaded(self) -> bool:
        """Whether the engine still has them, as far as it can say."""
        ...


def sample_with(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    *,
    num_generations: int,
    max_completion_length: int,
    seed: Sequence[int],
    width: int,
    temperature: float = 1.0,
) -> Rollouts:
    """Have an engine sample the student.

    Parameters
    ----------
    sampler
        The engine.
    prompts
        Token ids of each prompt.
    num_generations, max_completion_length, temperature
        As for `opdprobe.rollout.sample.sample`.
    seed
        Seed of the random numbers, if the engine takes one.
    width
        Size of the vocabulary that student and teacher share.

    Raises
    ------
    ConfigError
        `temperature` is not 1.
    VocabularyError
        A token is outside the vocabulary.
    ModelError
        The engine fails, or does not report the log-probabilities that it drew with.
    """
    if temperature != 1:
        raise ConfigError(
            f"temperature = {temperature} with an engine as sampler; expected 1: engines report "
            "log-probabilities before they are scaled."
        )
    rollouts = sampler.sample(
        prompts,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        seed=seed,
    )
    if (largest := max((max(ids, default=0) for ids in rollouts.response_ids), default=0)) >= width:
        raise VocabularyError(
            f"{sampler} drew token {largest}, and student and teacher share {width} tokens; "
            "expected an engine that draws the tokenizer's tokens only."
        )
    if rollouts.sampler_logp is None:
        raise ModelError(
            f"{sampler} does not report the log-probabilities that it drew tokens with, so it "
            "cannot be compared with the student; expected a server such as vLLM's or SGLang's."
        )
    return rollouts


def sample_trained(sampler: TrainedSampler, weights: Path, *args: Any, **settings: Any) -> Rollouts:
    """Have an engine load the student's weights and sample, again if it was restarted meanwhile.

    Parameters
    ----------
    sampler
        The engine.
    weights
        Directory of the saved student.
    *args, **settings
        As for `sample_with`.

    Returns
    -------
    Rollouts
        All of them sampled with these weights, as far as the engine can say.

    Raises
    ------
    ModelError
        The engine fails, or lost the weights each time.
    """
    for _ in range(_LOADS):
        sampler.load_weights(weights)
        rollouts = sample_with(sampler, *args, **settings)
        if sampler.has_loaded():
            return rollouts
        logger.warning("%s was restarted while it sampled, so the step is sampled again.", sampler)
    raise ModelError(
        f"{sampler} lost the weights that it had loaded {_LOADS} times in one step; expected a "
        "server that stays up, and whose weights no one else changes: see its log."
    )


def check_sampler(
    sampler: Sampler,
    student_logp: ArrayLike,
    rollouts: Rollouts,
    *,
    first_kl: float | None = None,
) -> None:
    """Compare what an engine says of the tokens that it drew with what the student gives here.

    Parameters
    ----------
    sampler
        The engine.
    student_logp : (N,) array_like of float
        The student's log-probabilities of the drawn tokens, in nats, in rollout order.
    rollouts
        From `sample_with`.
    first_kl
        For a student in training: KL of the engine from the student, in nats, in the run's first
        step. An engine that was exact then, and takes only a part of the trained weights, is close
        to the student at first, but not as close as it was.

    Raises
    ------
    ModelError
        They differ by more than rounding; names by how much.
    """
    assert rollouts.sampler_logp is not None
    drew = np.array([logp for row in rollouts.sampler_logp for logp in row])
    row = np.repeat(np.arange(len(rollouts)), [len(ids) for ids in rollouts.response_ids])
    found = compare_sampler(student_logp, drew, row)
    if rollouts.n_tokens and not found.mean_abs < _ROUNDING:  # NaN where it gives them nothing
        raise ModelError(
            f"{sampler}: its log-probabilities of the {rollouts.n_tokens} tokens that it drew "
            f"differ from the student's by {found.mean_abs:.3g} nats on average "
            f"({found.first:.3g} at the first tokens, KL {found.k3:.2g}); expected less than "
            f"{_ROUNDING}, which rounding explains: serve the student's own weights, and compute "
            "in one precision."
        )
    if first_kl is not None and first_kl < _EXACT_KL and found.k3 > _OTHER_KL:
        raise ModelError(
            f"{sampler}: the KL of what it draws from the student is {found.k3:.2g} nats, and was "
            f"{first_kl:.2g} in the run's first step; expected no more than {_OTHER_KL:g} of an "
            "engine that was so close: it did not load all of the weights, or computes in another "
            "precision than then. vLLM on CPUs keeps the output layer of a student that shares it "
            "with its embeddings (tie_word_embeddings): serve and train an untied copy there."
        )
