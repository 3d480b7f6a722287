"""Sample and score a tiny model of every causal language model class, beside each text alone.

python tests/models/all_classes.py          # writes docs/models.md
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from tiny_classes import VOCAB, WINDOW, mapping, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from opdprobe.errors import OPDProbeError
from opdprobe.models.head import split_head
from opdprobe.models.positions import check_prompts
from opdprobe.rollout import exact
from opdprobe.rollout import sample as sampling
from opdprobe.rollout.batches import batches
from opdprobe.rollout.decode import Decoding
from opdprobe.rollout.exact import check_scoring
from opdprobe.rollout.sample import Rollouts, sample

PAGE = Path(__file__).parents[2] / "docs/models.md"
WORDS = {
    Decoding.PADDED: "fast",
    Decoding.UNPADDED: "slow: without padding",
    Decoding.RECOMPUTED: "slow: without a cache",
}
# Relative to the largest distance of a logit from their mean. Rounding gives less than 1e-4.
TOLERANCE = 1e-3
WIDTH = VOCAB - 6
UNEVEN = [[7], [9, 30, 8, 21, 60, 33, 12, 41, 19], [11, 12, 13, 27, 14, 55]]
EVEN = [[21, 22, 23, 24], [31, 32, 33, 34]]
LENGTH, ENDS = 8, range(3, VOCAB, 5)


@dataclass(frozen=True)
class Verdict:
    """What became of a class: how it is sampled and scored, and why not otherwise."""

    model_type: str
    name: str
    sampled: str
    scored: str
    why: str
    ends: bool = False  # some rows ended before others

    @property
    def wrong(self) -> bool:
        """Whether a result differs from that of a text alone."""
        return "WRONG" in self.sampled + self.scored


def every_class() -> list[Verdict]:
    """Try every configuration of transformers' mapping."""
    found = [_verdict(*entry) for entry in mapping()]
    return sorted(found, key=lambda verdict: (verdict.name.lower(), verdict.model_type))


def _verdict(model_type: str, config: Any, name: str) -> Verdict:
    try:
        model = tiny_model(config)
    except Exception as error:  # whatever transformers raises
        return Verdict(model_type, name, "not built", "not built", _line(error))
    name, whys, ends = type(model).__name__, [], False
    try:
        with mock.patch.object(exact.logger, "warning", lambda _, *args: whys.append(args[-1])):
            wrong, ends = _sampled_wrong(model)
        (decoding,) = exact._sampled[model].values()
        sampled = f"WRONG by {wrong:.1g}" if wrong > TOLERANCE else WORDS[decoding]
    except OPDProbeError as error:
        sampled, whys = "refused", [str(error)]
    try:
        wrong = _scored_wrong(model)
        scored = f"WRONG by {wrong:.1g}" if wrong > TOLERANCE else "exact"
    except OPDProbeError as error:
        scored = "refused"
        whys = whys or [str(error)]
    return Verdict(model_type, name, sampled, scored, _steady("; ".join(whys)), ends)


@torch.no_grad()
def _alone(model: PreTrainedModel, text: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0].float()


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    """Error of each row of logits."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).abs().amax(-1)
    return (found.float() - wanted).abs().amax(-1) / spread


def _sampled_wrong(model: PreTrainedModel) -> tuple[float, bool]:
    """Largest error of the logits that rollouts are drawn from, and whether some ended early."""
    worst, ends, draw = 0.0, False, sampling.draw
    for prompts in (UNEVEN, EVEN):
        seen: list[tuple[Tensor, Tensor]] = []

        def recording(logits: Tensor, u: Tensor, *, seen=seen, **settings: Any) -> Tensor:
            token = draw(logits, u, **settings)
            seen.append((logits.clone(), token))
            return token

        with mock.patch.object(sampling, "draw", recording):
            got = sample(
                model,
                prompts,
                num_generations=2,
                max_completion_length=LENGTH,
                eos_ids=ENDS,
                pad_id=0,
                generator=torch.Generator().manual_seed(1),
                width=WIDTH,
                part=(1, 5),
            )
        ends |= len(set(map(len, got.response_ids))) > 1
        for prompt, response in zip(got.prompt_ids, got.response_ids, strict=True):
            alone = _alone(model, prompt + response)[len(prompt) - 1 :, :WIDTH]
            for t, token in enumerate(response):
                logits, tokens = seen[t]
                errors = _error(logits[tokens == token], alone[t])
                worst = max(worst, float(errors.min()))
    return worst, ends


@torch.no_grad()
def _scored_wrong(model: PreTrainedModel) -> float:
    """Largest error of the logits of padded micro-batches."""
    body, head = split_head(model)
    check_scoring(model, body, head)
    check_prompts(model, UNEVEN, LENGTH)
    prompts = UNEVEN
    responses = [[(5 * i + 7 * t) % 80 + 3 for t in range(3 + 4 * i)] for i in range(len(prompts))]
    rollouts = Rollouts(prompts, responses, [True] * len(prompts), [0] * len(prompts))
    wanted = torch.cat(
        [
            _alone(model, prompt + response)[len(prompt) - 1 : -1]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    )
    worst = 0.0
    for batch in batches(rollouts, micro_batch_tokens=10_000, pad_id=0):
        worst = max(worst, float(_error(head(batch.hidden(body)), wanted[batch.state]).max()))
    return worst


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".replace("\n", " ")[:160]


def _steady(text: str) -> str:
    """Leave out what differs between machines."""
    text = re.sub(r" \(they differ by [^)]*\)", "", text)
    return re.sub(r" by [\d.e+-]+ of their spread", "", text)


def rendered(verdicts: list[Verdict]) -> str:
    """The page as Markdown."""
    counts = Counter(verdict.sampled for verdict in verdicts)
    ways = ", ".join(f"{counts[way]} {way}" for way in [*WORDS.values(), "refused", "not built"])
    head = _HEAD.format(
        version=transformers.__version__,
        n=len(verdicts),
        ways=ways,
        window=WINDOW,
        tolerance=TOLERANCE,
        cost=_COST,
    )
    lines = [head]
    for v in verdicts:
        why = v.why.replace("|", "\\|")
        lines.append(f"| `{v.model_type}` | {v.name} | {v.sampled} | {v.scored} | {why} |\n")
    return "".join(lines)


_HEAD = """\
# Which models work

Any causal language model of transformers is sampled and scored exactly, or refused with the
reason: padding, the other rows of a batch, a cache and dropped rows do not change its logits. This
holds for a model that is loaded by name and for one that you built yourself. How it is kept:

**Three ways of sampling.** The fast one pads short prompts on the left, runs a prompt once for all
of its rollouts, keeps one cache, and drops rows that have ended. A model for which this changes
the logits (its positions count padding, its state takes padding for tokens, its cache has a form
of its own) is sampled *without padding*: prompts of one length at a time, with the model's own
cache, which is left as it is. The cost is a pass per prompt length for each token, and rows that
have ended stay. A model whose cache does not work either is sampled *without a cache*: each token
takes a pass over all of its text, so that the time grows with the square of the length. The log
says once which model is slower, and why. A rollout draws the same random numbers in each way.

**A check at the first use.** The first time that a model object samples, two texts of at most ten
tokens are sampled in an uneven batch, with repeated and dropped rows, and the logits are compared
with those of each text alone. The way is the fastest that agrees; if none does, `ModelError` names
the model and the differences. Scoring is checked as well: tokens that follow, padding and other
rows must not change the logits, or the model is refused. It is what happens to BERT and its
relatives unless `is_decoder` is set. Errors are measured against the largest distance of a logit
from the mean of the state's logits. A share of 5e-4 is allowed in float32 on a CPU, 0.02 in
float16 (and on a GPU in float32, which may mean TF32), 0.15 in bfloat16, the median over three
states, since rounding may send one of them to another expert. Rounding gave at most 6e-5 in
float32 and 0.04 in bfloat16 over all classes below; what was wrong, 7e-4 and more in float32. The
check has no effect on recorded numbers: it draws nothing, and changes no weight.

**What the check costs.** Five passes for sampling and three for scoring, of at most 20 tokens,
once a process and model: {cost}. Under FSDP
every process checks the gathered student. Two more passes, of 16 rows of 8 tokens, find out once a
model whether the rows of a batch share a scale; such a model is scored one text at a time.

**What the check cannot see** is what begins beyond ten tokens. So caches of kinds that are not
known never take the fast way, a model whose rope changes with the length of the text (dynamic
NTK, LongRoPE) is sampled without a cache if a text may grow beyond that length, and Reformer and
Doge are refused beyond the length from which their attention chooses by chance. A table of
positions that is too short, and token ids without an embedding, are refused before anything is
sampled.

## Every class of transformers {version}

{n} configurations have a causal language model class: {ways}. A tiny random model of each, with
sliding windows of {window} tokens and one layer of each kind, sampled rollouts from prompts of
unlike and of equal lengths. Every logit that a token was drawn from, and every logit of a padded
micro-batch, was compared with a pass over that text alone, in float32: none differs by more than
{tolerance:g} of the spread. A test repeats this.
`python tests/models/all_classes.py` makes this page.

Not built: Gemma 4's assistants, drafters that read another model's cache; MusicGen, whose tokens
are sound; Gemma 3n with its eyes, which need the package timm (its text model is in the table).
Whether they work is not known; the check decides when one is used. Models are built with
`is_decoder` or `causal` set where their configuration has it.

| model type | class | sampled | scored | why |
|---|---|---|---|---|
"""

_COST = "0.15 s of CPU time for the testbed's largest model and 2 s for SmolLM2-135M"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    PAGE.write_text(rendered(every_class()), encoding="utf-8")
