"""What known answers add: accuracies, continuation gain, gain of a refitted readout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.preflight.estimates import UNKNOWN, Number, prompt_mean, prompt_signal
from opdprobe.preflight.measure import sampled
from opdprobe.preflight.readout import Readout
from opdprobe.preflight.workers import Alone
from opdprobe.rollout.continuation import Sampling, continuation_gain
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import EncodedPrompt, Prompt


@dataclass(frozen=True)
class Answers:
    """Accuracies and what depends on them; unknown where no answers are known.

    Parameters
    ----------
    student, teacher
        Accuracy of each model's own responses, at the sampling temperature.
    gap
        Teacher minus student, over the same prompts.
    gain
        Accuracy of the student with a refitted readout (`Readout`), minus its own. Each half of
        the prompts is answered with the readout fitted on the other half.
    gain_by_prompt
        The same for each prompt, in the order of the prompts; empty if unknown.
    auroc
        AUROC of the sequence mean reward for the student's correct rollouts (§6.2).
    auroc_within, auroc_length, auroc_length_within
        The same over pairs within a prompt; and both for minus the response's length, a baseline.
    continuation
        Continuation gain (§6.1) by prefix length in tokens, from one rollout per prompt.
    n_continued
        Number of rollouts that reach each of those lengths.
    """

    student: Number = UNKNOWN
    teacher: Number = UNKNOWN
    gap: Number = UNKNOWN
    gain: Number = UNKNOWN
    gain_by_prompt: tuple[float, ...] = ()
    auroc: Number = UNKNOWN
    auroc_within: Number = UNKNOWN
    auroc_length: Number = UNKNOWN
    auroc_length_within: Number = UNKNOWN
    continuation: dict[int, Number] | None = None
    n_continued: dict[int, int] | None = None


def accuracies(step: xr.Dataset, teacher_step: xr.Dataset) -> Answers:
    """Compare the accuracies of the two models' own responses.

    Parameters
    ----------
    step
        The student's rollouts, graded.
    teacher_step
        The teacher's rollouts, graded, on the same prompts in the same order.
    """
    prompt = _prompt_rows(step)
    correct, theirs = (_correct(one) for one in (step, teacher_step))
    reward = step.opd.sequence_mean_reward().values
    signal = prompt_signal(reward, correct, step["length"].values, prompt)
    return Answers(
        student=prompt_mean(correct, prompt, (0, 1)),
        teacher=prompt_mean(theirs, prompt, (0, 1)),
        gap=prompt_mean(theirs - correct, prompt, (-1, 1)),
        auroc=signal["reward"],
        auroc_within=signal["reward_within"],
        auroc_length=signal["length"],
        auroc_length_within=signal["length_within"],
    )


def continuation(
    pair: Pair,
    step: xr.Dataset,
    own: Sequence[Prompt],
    grader: Grader,
    sampling: Sampling,
    depths: Sequence[int],
) -> tuple[dict[int, Number], dict[int, int]]:
    """Return the continuation gain and the number of rollouts by prefix length."""
    prompt = _prompt_rows(step)
    # Only the advice depends on it: one rollout per prompt is enough.
    first = np.r_[True, prompt[1:] != prompt[:-1]]
    gain = continuation_gain(
        step, pair.teacher, pair.tokenizer, own, grader, sampling, depths=depths, which=first
    )["gain"]
    rows = {int(d): gain.sel(depth=d) for d in depths}
    return (
        {d: prompt_mean(row.values, prompt, (-1, 1)) for d, row in rows.items()},
        {d: int(row.notnull().sum()) for d, row in rows.items()},
    )


def tried(
    work: Alone,
    pair: Pair,
    step: xr.Dataset,
    fitted: Sequence[Readout],
    prompts: Sequence[EncodedPrompt],
    grader: Grader,
    sampling: Sampling,
    num_generations: int,
) -> NDArray[np.float64]:
    """Measure the refitted readouts' effect on the student's accuracy on held-out prompts.

    Parameters
    ----------
    work
        Who samples.
    step
        The student's own rollouts, `num_generations` per prompt, graded.

    Returns
    -------
    ndarray (prompts,)
    """
    before = _correct(step).reshape(-1, num_generations)
    after = before.copy()  # a readout that moved nothing answers as the student does
    started = []
    for half, readout in enumerate(fitted):
        others = [i for i in range(len(prompts)) if i % 2 != half]
        if readout.moved:
            some = [prompts[i] for i in others]
            results = sampled(work, pair, some, sampling, num_generations, readout=readout)
            started.append((others, results))
    for others, results in started:
        rollouts = results()
        asked = [prompts[i].prompt for i in others for _ in range(num_generations)]
        graded = grade_rollouts(
            pair.tokenizer, rollouts.response_ids, asked, grader, finished=rollouts.finished
        )
        after[others] = np.reshape(graded, (-1, num_generations))
    return (after - before).mean(-1)


def _correct(step: xr.Dataset) -> NDArray[np.float64]:
    return step["correct"].values.astype(np.float64)


def _prompt_rows(step: xr.Dataset) -> NDArray[np.intp]:
    return np.unique(step["prompt_id"].values, return_inverse=True)[1]
