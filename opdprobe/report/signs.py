"""Single signs of trouble in a run: each function returns a finding, or None."""

import numpy as np

from opdprobe.report.course import Course
from opdprobe.report.estimate import number
from opdprobe.report.finding import (
    Evidence,
    Finding,
    change,
    interval,
    level,
    look,
    shown,
    stops_change,
    student_to_teacher,
)
from opdprobe.report.tail import CAP
from opdprobe.store.schema import MODELS

# As in preflight: the paper's successes start at 0.72, the run that needs a cold start at 0.55.
_LOW_START = 0.7
# The test of figure 12's claim, and a rise of the entropy meanwhile.
_FELL = 0.02
_ROSE = 0.01
_ENTROPY_ROSE = 1.1
_ENTROPY_HALVED = 0.5
_ENTROPY_BELOW = 0.8
_TRUNCATED = 0.1
# A length explosion. No limits are published, only what to look at: the share of truncated
# responses and their repetition (StableOPD, 2604.08527), the share that is cut and the stop mass
# (2609.20511). So: length grows by a quarter, and the interval excludes a tenth, which other
# prompts may bring; the share that ends falls by as much as `truncated` needs, and the interval
# excludes half of that.
_LONGER, _NOT_LONGER = 1.25, 1.1
_FEWER_END, _AS_MANY_END = 0.1, 0.05
# In medians of the surrounding steps. On the testbed the maximum is 1.5 to 3 in most runs. It is 5
# to 17, and above the first steps' norms, in 24 of 180 runs: those that undo RL, those with very
# short responses, and a few others. Except where they undo RL, they end about as well as similar
# runs.
_SPIKE = 5.0
_AROUND = 10
# The paper: 0.97 to 0.99 (App. B.1). The testbed: at least 0.93, except 0.81 to 0.88 for k = 1,
# once for k = 4, and for responses of 2 tokens.
_MASS = 0.9
# Share of the reverse KL that 1 % of the states hold.
_TAIL = 0.5


def low_overlap(found: Course) -> Finding | None:
    """Find low overlap at the start: the ratio of the first steps is below 0.7 (§5.1)."""
    start = level(found, "overlap_ratio", found.first)
    if not start.high < _LOW_START:
        return None
    return Finding(
        "low_overlap",
        "note",
        "Starts with low overlap",
        f"Below the range in which the paper's successes start ({_LOW_START} and above). The ratio "
        "depends on k and on the vocabulary, and alone decides nothing: on the testbed half of the "
        "pairs that start this low succeed.",
        (start,),
        "A cold start (SFT on the teacher's rollouts) raises it (§5.1); so do prompts in "
        "the teacher's template (§5.2).",
        **look(found, "overlap_ratio", found.first, -1, "overlap_ratio"),
    )


def late_collapse(found: Course) -> Finding | None:
    """Find late collapse (§6.1): overlap fell from its best while entropy rose.

    The overlap ratio ends 0.02 below its best mean over 5 steps, which was 0.01 above the start,
    and the student's entropy is at least 1.1 times its value at that best.
    """
    if not found.has("overlap_ratio"):
        return None
    _, values = found.values("overlap_ratio")
    n, width = len(values), found.width
    means = np.convolve(values, np.ones(width) / width, "valid")
    means = np.where(np.isnan(means), -np.inf, means)  # a step without states
    best = int(np.argmax(means))
    top = slice(best, best + width)
    if best + width > n - width or not means[best] - means[0] >= _ROSE:
        return None
    overlap = change(found, "overlap_ratio", before=top)
    entropy = change(found, "student_entropy", before=top, relative=True)
    if not (overlap.value <= -_FELL and overlap.high < 0):
        return None
    if not (entropy.value >= _ENTROPY_ROSE and entropy.low > 1):
        return None
    evidence = (overlap, entropy)
    if found.has("completion_length"):
        evidence += (change(found, "completion_length", before=top),)
    return Finding(
        "late_collapse",
        "bad",
        "Late collapse",
        "The overlap rose, then fell again while the student's entropy rose. Too long responses "
        "cause this; it begins at their ends and moves forward (§6.1, Fig. 12 and 13).",
        evidence,
        "Shorten responses (max_completion_length), or stop at the best step.",
        **look(found, "student_entropy", found.last, 1, "student_entropy"),
    )


def entropy_collapse(found: Course) -> Finding | None:
    """Find entropy collapse (§5.2): at most half of the start, and below the teacher's.

    A success also loses entropy if its teacher is more certain. So the student's entropy must be at
    most 0.8 of the teacher's at the same states.
    """
    fall, below = change(found, "student_entropy", relative=True), student_to_teacher(found)
    if not (fall.value <= _ENTROPY_HALVED and fall.high < 1):
        return None
    if not (below.value <= _ENTROPY_BELOW and below.high < 1):
        return None
    return Finding(
        "entropy_collapse",
        "bad",
        "Entropy collapsed",
        "The student is more certain than its teacher at the same states and hardly explores.",
        (fall, below),
        "Mix in prompts that the teacher was not trained on: they keep the entropy up (§5.2).",
        **look(found, "student_entropy", found.last, -1, "student_entropy"),
    )


def truncated(found: Course) -> Finding | None:
    """Find truncated responses (§6.1): more than 0.1 of the last ones reached the limit."""
    if not found.has("finished"):
        return None
    ended = level(found, "finished", found.last)
    if not ended.high < 1 - _TRUNCATED:
        return None
    return Finding(
        "truncated",
        "note",
        "Truncated responses",
        f"{1 - ended.value:.0%} of the last responses reached the limit: they rarely contain an "
        "answer, and instability begins at the ends of long responses (§6.1).",
        (ended, level(found, "completion_length", found.last)),
        "If this is not intended, raise max_completion_length, or check whether the responses "
        "repeat themselves.",
        **look(found, "finished", found.last, -1, "student_entropy"),
    )


def length_explosion(found: Course) -> Finding | None:
    """Find a length explosion: responses grow while fewer of them end.

    The mean length is at least 1.25 times that of the first steps, and its interval excludes 1.1;
    the share of responses that end falls by 0.1 or more, and its interval excludes 0.05. Responses
    that grow longer and still end do not count. Where it is not known whether responses ended, the
    student's stop-token mass, summed over a response, stands for it: its mean is the share that
    ends of responses drawn from the recorded distributions.
    """
    if len(found.steps) < 2 or not found.has("completion_length"):
        return None
    longer = change(found, "completion_length", relative=True)
    if not (longer.value >= _LONGER and longer.low > _NOT_LONGER):
        return None
    fewer = change(found, "finished") if found.has("finished") else stops_change(found)
    if fewer is None or not (fewer.value <= -_FEWER_END and fewer.high < -_AS_MANY_END):
        return None
    evidence = [longer, fewer]
    evidence += [
        level(found, name, found.last)
        for name in ("student_stop_token_mass", "teacher_stop_token_mass")
        if found.has(name)
    ]
    return Finding(
        "length_explosion",
        "bad",
        "Length explosion",
        "Responses grow and fewer of them end: they rarely contain an answer, and instability "
        "begins at the ends of long responses (§6.1). A student that only learns to think longer "
        "still ends its responses.",
        tuple(evidence),
        "Read some of the last responses. If they repeat themselves, take the student from before "
        "the rise, and check that both models end a response with the same tokens (chat template, "
        "generation_config). If they are sensible and only cut, raise max_completion_length.",
        **look(found, "completion_length", found.last, 1, "student_entropy"),
    )


def heavy_tail(found: Course) -> Finding | None:
    """Find a reverse KL of which 1 % of the states hold half: its mean says little of the rest."""
    tail = found.tail
    if tail is None or not tail.share >= _TAIL:
        return None
    value, low, high = interval(tail.capped)
    said = shown(value, low, high)
    mean = level(found, "reverse_kl", found.last)
    text = f"reverse KL, each state's capped at {CAP:g} nat: {said}"
    return Finding(
        "heavy_tail",
        "note",
        "Few states hold the divergence",
        f"1 % of the last states hold {tail.share:.0%} of the reverse KL, so its mean rests on few "
        f"prompts and differs widely between samples. Capped at {CAP:g} nat a state it is {said}.",
        (mean, Evidence("reverse_kl", text, value, low, high, mean.steps)),
        **look(found, "reverse_kl", found.last, 1, "reverse_kl"),
    )


def gradient_spikes(found: Course) -> Finding | None:
    """Find gradient spikes (§6.3): a norm 5 times the median of the 20 steps around it.

    It must also be above the norms of the first steps: late in a success norms are so small that
    multiples of them mean nothing.
    """
    steps, norms = found.values("grad_norm")
    if len(norms) < 2:
        return None
    around = np.array(
        [np.median([*norms[max(0, i - _AROUND) : i], *norms[i + 1 : i + 1 + _AROUND]])
         for i in range(len(norms))]
    )  # fmt: skip
    spikes = np.flatnonzero((norms >= _SPIKE * around) & (norms > norms[: found.width].max()))
    if not spikes.size:
        return None
    worst = int(spikes[np.argmax(norms[spikes])])
    step, times = steps[worst], float(norms[worst] / around[worst])
    more = f"; {spikes.size} such steps" if spikes.size > 1 else ""
    text = (
        f"gradient norm {number(norms[worst])} at step {step}, {number(times)} times the "
        f"{number(around[worst])} around it{more}"
    )
    at = int(np.argmin(np.abs(np.array(found.steps) - step)))  # not every step is recorded
    return Finding(
        "gradient_spikes",
        "note",
        "Gradient spikes",
        "Some gradients are far larger than those around them. The paper sees many in its unstable "
        "runs, with k = 1 (§6.3) and with responses that are too long (§6.1); a few also occur in "
        "runs that end well.",
        (Evidence("grad_norm", text, times, np.nan, np.nan, ((step, step),)),),
        "Check whether the other curves break at that step. If they do, clip lower (max_grad_norm) "
        "or lower the learning rate; at k = 1, use k = 4 or more.",
        **look(found, "reverse_kl", slice(at, at + 1), 1, "reverse_kl"),
    )


def blind_loss(found: Course) -> Finding | None:
    """Find a blind top-k loss (App. B.1): under 0.9 of a model's mass is on shared tokens.

    The mass is the student's or the teacher's, at the end of the run. Losses over the full
    vocabulary or the sampled token are not blind; the loss of a run recorded by a hook is unknown.
    """
    if found.config.get("objective") != "topk":
        return None
    levels = [level(found, f"{m}_overlap_mass", found.last) for m in MODELS]
    if not any(level.high < _MASS for level in levels):
        return None
    return Finding(
        "blind_loss",
        "bad",
        "Probability outside the shared tokens",
        "A top-k loss is renormalised, so it ignores the probability outside the shared tokens. In "
        "the paper's runs 97 to 99 % is inside (App. B.1).",
        tuple(levels),
        "Raise k, or use objective='full' or tail='bucket'.",
        **look(found, "student_overlap_mass", found.last, -1, "overlap_ratio"),
    )
