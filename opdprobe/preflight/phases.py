"""The phases of a preflight: what is sampled and scored, in which order."""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from opdprobe.preflight import measure
from opdprobe.preflight.answers import Answers, continuation, tried
from opdprobe.preflight.contexts import Contexts, compare_contexts
from opdprobe.preflight.estimates import Number, prompt_mean
from opdprobe.preflight.readout import Readout, States
from opdprobe.preflight.workers import Alone
from opdprobe.rollout.continuation import Sampling
from opdprobe.rollout.grade import Grader
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import EncodedPrompt, Prompt
from opdprobe.rollout.sample import Rollouts


@dataclass(frozen=True)
class Phases:
    """The phases of a preflight, and the settings that they share."""

    work: Alone
    pair: Pair
    grader: Grader | None
    sampling: Sampling
    num_generations: int
    k: int
    micro_batch_tokens: int

    def recorded(
        self, rollouts: Rollouts, own: Sequence[Prompt], n_hidden: int = 0
    ) -> tuple[xr.Dataset, States]:
        """Score rollouts, whose prompts are `own`, with both models."""
        return measure.recorded(
            self.work,
            self.pair,
            rollouts,
            own,
            self.grader,
            k=self.k,
            temperature=self.sampling.temperature,
            micro_batch_tokens=self.micro_batch_tokens,
            n_hidden=n_hidden,
        )

    def sampled(
        self, encoded: Sequence[EncodedPrompt], role: str = "student"
    ) -> Callable[[], Rollouts]:
        """Begin to sample a model on its prompts."""
        return measure.sampled(
            self.work, self.pair, encoded, self.sampling, self.num_generations, role
        )

    def graded(self, rollouts: Rollouts, own: Sequence[Prompt]) -> xr.Dataset:
        """Grade the teacher's responses."""
        graded = measure.graded(self.pair.tokenizer, rollouts, own, self.grader)
        return measure.rollout_dataset(rollouts, own, graded)

    def contexts(
        self,
        rollouts: Rollouts,
        encoded: Sequence[EncodedPrompt],
        own: Sequence[Prompt],
        step: xr.Dataset,
        theirs: xr.Dataset | None,
    ) -> Contexts:
        """Score the same rollouts, and sample the teacher, with the student's prompts for both."""
        shared, _ = self.recorded(replace(rollouts, teacher_prompt_ids=None), own)
        accuracy = None
        if theirs is not None:
            asked = [replace(prompt, teacher_ids=None) for prompt in encoded]
            before = self.graded(self.sampled(asked, "teacher")(), own)
            accuracy = before["correct"].values, theirs["correct"].values
        return compare_contexts(
            shared,
            step,
            measure.by_position(shared),
            measure.by_position(step),
            np.asarray(rollouts.prompt_index),
            accuracy,
        )

    def gains(
        self,
        found: Answers,
        step: xr.Dataset,
        own: Sequence[Prompt],
        encoded: Sequence[EncodedPrompt],
        fitted: Sequence[Readout],
        depths: Sequence[int] | None,
    ) -> Answers:
        """Let the teacher continue the student's prefixes, and try the refitted readouts."""
        assert self.grader is not None
        half = int(np.median(step["length"])) // 2
        at = sorted({half // 2, half} - {0}) if depths is None else depths
        with measure.as_teacher(self.pair):
            gains, reach = continuation(self.pair, step, own, self.grader, self.sampling, at)
        gain = tried(
            self.work,
            self.pair,
            step,
            fitted,
            encoded,
            self.grader,
            self.sampling,
            self.num_generations,
        )
        return replace(
            found,
            gain=prompt_mean(gain, np.arange(len(gain)), (-1, 1)),
            gain_by_prompt=tuple(gain.tolist()),
            continuation=gains,
            n_continued=reach,
        )

    def template(self, encoded: Sequence[EncodedPrompt]) -> dict[str, Number]:
        """Sample and score the student on its prompts in another wording."""
        rollouts = self.sampled(encoded)()
        own = [encoded[i].prompt for i in rollouts.prompt_index]
        return wording_means(self.recorded(rollouts, own)[0])


def wording_means(step: xr.Dataset) -> dict[str, Number]:
    """Return what is compared between wordings of the prompts."""
    prompt = np.unique(step["prompt_id"].values, return_inverse=True)[1]
    correct = step["correct"].values.astype(np.float64)
    finished = step["finished"].values.astype(np.float64)
    return measure.means(step) | {
        "accuracy": prompt_mean(correct, prompt, (0, 1)),
        "finished": prompt_mean(finished, prompt, (0, 1)),
    }


class Clock:
    """Times named parts and reports how many are done."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None):
        self.seconds: dict[str, float] = {}
        self.total = total
        self.report = on_progress or (lambda done, total: None)

    @contextmanager
    def __call__(self, name: str):
        """Time a part."""
        self.report(len(self.seconds), self.total)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.report(len(self.seconds), self.total)
