"""Do log-probabilities that rollouts brought agree with the recomputed ones? One finding each."""

import numpy as np

from opdprobe.probes.sampler import SamplerComparison
from opdprobe.report.course import Course
from opdprobe.report.estimate import number
from opdprobe.report.finding import Evidence, Finding, Kind

# Mean absolute difference in nats. Below, it is what rounding makes: bfloat16 in an engine and
# float32 here differ by 0.01 to 0.03.
_NOISE = 0.05
# Share of the difference that a cause may leave unexplained.
_LEFT = 0.5
# A temperature this close to 1 is none; a first token this far off cannot be rounding.
_SAME = 0.03
_FIRST = 0.5

_WHO = {
    "sampler": "The sampler",
    "student": "The trainer's student",
    "teacher": "The trainer's teacher",
}


def reported_findings(found: Course) -> list[Finding]:
    """Return one finding for each who reported log-probabilities."""
    return [_finding(found, who, one) for who, one in found.reported.items()]


def _finding(found: Course, who: str, one: SamplerComparison) -> Finding:
    name, kind, title, text, advice = _cause(who, one)
    by = "reverse_kl" if found.has("reverse_kl") else "sampled_reward"
    span = (found.steps[found.last][0], found.steps[found.last][-1])
    seen = (
        f"mean difference {number(one.mean_abs)} nats, largest {number(one.largest)}, at the first "
        f"tokens {number(one.first)}; KL {number(one.k1)} (k1), {number(one.k3)} (k3); "
        f"{one.n:,} tokens of steps {span[0]}–{span[1]}"
    )
    evidence = Evidence("sampler_gap", seen, one.mean_abs, float("nan"), float("nan"), (span,))
    return Finding(name, kind, title, text, (evidence,), advice, step=span[1], by=by)


def _cause(who: str, one: SamplerComparison) -> tuple[str, Kind, str, str, str]:
    """Return a finding's name, kind, title, text and advice."""
    name = _WHO[who]
    other = "teacher" if who == "teacher" else "student"
    if one.mean_abs < _NOISE:
        text = (
            f"Its log-probabilities are those that the {other} gives here, up to what precision "
            "and an engine change."
        )
        return f"{who}_agrees", "good", f"{name} agrees with the scores", text, ""
    shift_left = one.at_shift / one.mean_abs
    if shift_left < _LEFT and not one.temperature_left < shift_left:
        side = "next" if one.shift > 0 else "previous"
        text = (
            f"Its log-probabilities fit those of the {side} token ({number(one.at_shift)} nats on "
            "average): tokens and log-probabilities are shifted by one."
        )
        advice = "Align the dump's log-probabilities with its response tokens."
        return f"{who}_shifted", "bad", f"{name}'s log-probabilities are shifted", text, advice
    if one.temperature_left < _LEFT and abs(np.log(one.temperature)) > _SAME:
        text = (
            f"Its log-probabilities are those of the {other} at {number(one.temperature)} times "
            f"the temperature of these scores; that leaves {one.temperature_left:.0%} of the "
            "difference."
        )
        advice = (
            "Score at the temperature that was sampled at (temperature=), or log them unscaled."
        )
        return f"{who}_temperature", "bad", f"{name} has another temperature", text, advice
    if one.first > _FIRST:
        text = (
            "The differences are large from the first token on: the model did not read the same "
            "prompt (a chat template, a system prompt, token ids that are shifted), or it is "
            "another one."
        )
        advice = "Compare the prompt's token ids with those that the engine was given."
        return f"{who}_reads_otherwise", "bad", f"{name} read another text", text, advice
    told = "No shift" if np.isnan(one.temperature) else "No temperature and no shift"
    text = (
        f"{told} explains the differences, and the first tokens agree better: an engine's "
        "precision or cache, a cut distribution (top-p, top-k), or weights that are not those of "
        "this step."
    )
    if np.isnan(one.temperature):
        text += " Without top-k lists, a temperature cannot be told."
    advice = "Score in the engine's precision; check that weights were synchronised at each step."
    return f"{who}_differs", "bad", f"{name} differs", text, advice
