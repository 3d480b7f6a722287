"""Check on a few tokens that a model is sampled and scored as it computes each text alone.

Padding, companions in a batch, a cache and dropped rows must not change a model's logits. In some
models they do: positions that count padding, states that take padding for tokens, caches of an own
form. So each model is checked once, when it is first used, by passes of at most ten tokens: five
for sampling, three for scoring.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opdprobe.errors import ModelError
from opdprobe.models.devices import is_out_of_memory
from opdprobe.models.head import Body, Head, evaluating
from opdprobe.models.lengths import changes_within
from opdprobe.models.positions import position_limit
from opdprobe.rollout.decode import Decoding, Live, cache_name, prefill
from opdprobe.rollout.kv_cache import rows_can_move

logger = logging.getLogger("opdprobe")

# Largest error of a state's logits, as a share of the largest distance of a logit from their mean;
# of a text's states the median, since a router may send one of them to another expert at a tie.
# Over all classes that transformers has (docs/models.md) rounding gave at most 6e-5 in float32 and
# 0.04 in bfloat16 (SmolLM2-135M: 0.03), and what is wrong 7e-4 and more in float32. float16 rounds
# an eighth as much as bfloat16.
_TOLERANCES = {torch.bfloat16: 0.15, torch.float16: 0.02, torch.float32: 5e-4, torch.float64: 1e-6}

# Tokens in the two texts of a check, and tokens that are fed one by one.
_SHORT, _LONG, _FED = 3, 8, 2
# Rows of each text. The first and the last of all are dropped, so those between them move, and each
# still has a companion. The last of the short text and the first of the long one are compared.
_ROWS = 3
_COMPARED = (_ROWS - 1, _ROWS)
_TOKENS = 40  # more than the texts and what is fed take

_COSTS = {
    Decoding.UNPADDED: "sampled without padding: prompts of each length are a batch of their own, "
    "which keeps rows that have ended",
    Decoding.RECOMPUTED: "sampled without a cache: each token takes a pass over all of its text",
}

# By precision, and by whether texts grow beyond a length at which the model changes.
_sampled: WeakKeyDictionary[PreTrainedModel, dict[Any, Decoding]] = WeakKeyDictionary()
_scored: WeakKeyDictionary[PreTrainedModel, set[Any]] = WeakKeyDictionary()


def decoding_of(model: PreTrainedModel, longest: int = 1) -> Decoding:
    """Return the fastest way of sampling a model that gives its own logits; once a model.

    Parameters
    ----------
    model
        A causal LM in evaluation mode. Its weights and random generators are left alone. Only its
        dtype and device count when it is used again.
    longest
        Length that a text may reach, in tokens.

    Raises
    ------
    ModelError
        No way gives the logits of a pass over each text alone.
    """
    known = _sampled.setdefault(model, {})
    changes = changes_within(model, longest)
    use = (_precision(model), changes)
    if use not in known:
        with torch.no_grad(), _same_random_state(model):
            known[use] = _fastest(model, changes)
    return known[use]


def check_scoring(model: PreTrainedModel, body: Body, head: Head) -> None:
    """Refuse a model whose logits depend on what follows, or on other rows; once a model.

    Parameters
    ----------
    model
        A causal LM. Its mode, weights and random generators are left alone.
    body, head
        Its parts, from `opdprobe.models.head.split_head`.

    Raises
    ------
    ModelError
        A text's logits in a padded batch are not those that it has alone.
    """
    known = _scored.setdefault(model, set())
    if _precision(model) in known:
        return
    short, long = _texts(model)
    n, name = len(short), type(model).__name__
    padded = [short + [0] * (len(long) - n), long]
    # Some models are scored one text at a time.
    batches = [[row] for row in padded] if getattr(body, "alone", False) else [padded]
    with torch.no_grad(), evaluating(model), _same_random_state(model):
        together, wanted = (
            torch.cat([_logits(body, head, _ids(model, rows))[:, :n] for rows in some])
            for some in (batches, [[short], [long[:n]]])
        )
    if not wanted.isfinite().all():
        return  # scoring names the place where the logits are not finite
    error = _error(together, wanted)
    if error > _tolerance(model):
        raise ModelError(
            f"{name} cannot be scored: its logits depend on later tokens, or on other rows "
            f"(they differ by {error:.1g} of their spread); expected a causal language model, of "
            "the BERT family one with is_decoder=True in its configuration."
        )
    known.add(_precision(model))


def agree(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> bool:
    """Whether logits (states, V) are the model's own, up to rounding."""
    return _error(found, wanted) <= _tolerance(model)


def few_tokens(model: PreTrainedModel) -> list[int]:
    """Return ids of 40 ordinary tokens of a model, to try it on."""
    return _tokens(model)


def _fastest(model: PreTrainedModel, changes: bool) -> Decoding:
    name, reasons = type(model).__name__, []
    texts = _texts(model)
    tokens = _tokens(model)
    fed = [[tokens[20 + 3 * row + step] for step in range(_FED)] for row in range(2 * _ROWS)]
    wanted = {row: _alone(model, texts[row // _ROWS] + fed[row]) for row in _COMPARED}
    if not all(logits.isfinite().all() for logits in wanted.values()):
        return Decoding.PADDED  # sampling names the place where the logits are not finite
    for decoding in Decoding:
        reason = _missing(model, decoding, changes)
        if reason is None:
            try:
                found = _decoded(model, texts, fed, decoding)
            except Exception as error:  # whatever a model raises that does not take such a batch
                if is_out_of_memory(error):
                    raise
                reason = f"it fails with {type(error).__name__}: {str(error).strip() or '-'}"
                reason = reason.splitlines()[0]
            else:
                error = max(
                    _error(found[row], wanted[row][len(texts[row // _ROWS]) - 1 :])
                    for row in wanted
                )
                if error <= _tolerance(model):
                    break
                reason = f"its logits then differ by {error:.1g} of their spread"
        reasons.append(f"{decoding}: {reason}")
    else:
        raise ModelError(
            f"{name} cannot be sampled: its logits are not those of each text alone "
            f"({'; '.join(reasons)}); expected a causal language model, of the BERT family one "
            "with is_decoder=True in its configuration."
        )
    if reasons:
        logger.warning(
            "%s is %s, which is slower (%s).", name, _COSTS[decoding], "; ".join(reasons)
        )
    return decoding


def _missing(model: PreTrainedModel, decoding: Decoding, changes: bool) -> str | None:
    """Say what a model lacks for a way of sampling, without running it."""
    if decoding is Decoding.RECOMPUTED:
        return None
    if changes:
        return "what it computes for a token depends on the length of the text"
    if cache_name(model) is None:
        return "it takes no cache"
    return rows_can_move(model) if decoding is Decoding.PADDED else None


def _decoded(
    model: PreTrainedModel, texts: Sequence[list[int]], fed: list[list[int]], decoding: Decoding
) -> dict[int, Tensor]:
    """Run a model as sampling does; return the logits of each row, (states, V)."""
    live, logits = prefill(model, texts, pad_id=0, num_generations=_ROWS, decoding=decoding)
    rows: dict[int, list[Tensor]] = {row: [] for row in range(2 * _ROWS)}
    _collect(rows, live, logits)
    live.alive = (live.rollout > 0) & (live.rollout < 2 * _ROWS - 1)
    live.drop_ended(live.rollout)
    for step in range(_FED):
        token = torch.tensor([fed[row][step] for row in live.rollout.tolist()])
        _collect(rows, live, live.feed(model, token.to(live.rollout.device)))
    return {row: torch.stack(rows[row]) for row in _COMPARED}


def _collect(rows: dict[int, list[Tensor]], live: Live, logits: Tensor) -> None:
    for row, own in zip(live.rollout.tolist(), logits, strict=True):
        rows[row].append(own)


def _alone(model: PreTrainedModel, text: list[int]) -> Tensor:
    """Run a model over one text, without padding or a cache; return its logits (T, V)."""
    try:
        return model(input_ids=_ids(model, [text]), use_cache=False).logits[0]
    except Exception as error:  # whatever a model raises that wants more than a text
        if is_out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0]
        raise ModelError(
            f"{type(model).__name__} does not run on a text alone ({why}); expected a causal "
            "language model."
        ) from error


def _logits(body: Body, head: Head, ids: Tensor) -> Tensor:
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden is not None  # optional in the type only
    return head(hidden)


def _error(found: Tensor, wanted: Tensor) -> float:
    """Error of logits (…, states, V); infinite where they are not finite."""
    found, wanted = found.float(), wanted.float()
    spread = (wanted - wanted.mean(-1, keepdim=True)).abs().amax(-1)
    error = (found - wanted).abs().amax(-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return float(error.median(-1).values.max().nan_to_num(nan=torch.inf))


def _tolerance(model: PreTrainedModel) -> float:
    dtype, device = _precision(model)
    if device != "cpu" and dtype == torch.float32:
        dtype = torch.float16  # TF32, which a GPU's convolutions take unless told otherwise
    return _TOLERANCES.get(dtype, _TOLERANCES[torch.bfloat16])


def _precision(model: PreTrainedModel) -> tuple[torch.dtype, str]:
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device), device
    return model.dtype, device


def _texts(model: PreTrainedModel) -> list[list[int]]:
    room = position_limit(model) or _LONG + _FED
    long = max(1, min(_LONG, room - _FED))
    short = max(1, min(_SHORT, long - 1))
    tokens = _tokens(model)
    return [tokens[:short], tokens[_SHORT : _SHORT + long]]


def _tokens(model: PreTrainedModel) -> list[int]:
    """Token ids that stand for no image, padding or the like; again from the first if few do."""
    config: Any = model.config.get_text_config()
    special = {
        value
        for one in (model.config, config)
        for name, value in one.to_dict().items()
        if name.endswith(("_token_id", "_token_index"))
    }
    ids = islice((i for i in range(config.vocab_size) if i not in special), _TOKENS)
    return list(islice(cycle(ids), _TOKENS))


def _ids(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=model.device)


@contextmanager
def _same_random_state(model: PreTrainedModel) -> Iterator[None]:
    """Put torch's random generators back, of which some models draw even in evaluation mode."""
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        yield
