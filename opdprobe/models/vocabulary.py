"""Check that two models share one vocabulary; find the tokens that end and pad responses."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import VocabularyError
from opdprobe.models.chat_template import turn_end
from opdprobe.models.head import logit_width

__all__ = [
    "eos_ids",
    "padding_id",
    "shared_vocabulary",
    "shared_width",
    "tokenizer_hash",
    "tokens_with_logits",
]

logger = logging.getLogger("opdprobe")

_endless: WeakSet[PreTrainedModel] = WeakSet()  # models already warned about
# Of each model: the chat template and the end tokens that were compared.
_ends_checked: WeakKeyDictionary[PreTrainedModel, tuple[str, tuple[int, ...]]] = WeakKeyDictionary()


def shared_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> int:
    """Check that two tokenizers give every id the same token, and count the ids.

    Parameters
    ----------
    student_tokenizer, teacher_tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizers. If their end-of-sequence tokens differ (151643 against 151645 within the
        Qwen family), a warning is logged: the teacher then rewards a token that does not stop the
        student, and responses can grow without end.

    Returns
    -------
    int
        Size of the vocabulary: the highest id + 1. Tokens with which a GGUF file pads its
        vocabulary ("[PAD49152]") are not counted, and not compared.

    Raises
    ------
    VocabularyError
        The vocabularies differ; names the first id with its two tokens.
    """
    student, teacher = _tokens(student_tokenizer), _tokens(teacher_tokenizer)
    differing = [
        index
        for index in sorted(student.keys() | teacher.keys())
        if student.get(index) != teacher.get(index)
    ]
    if differing:
        first = differing[0]
        special = set(student_tokenizer.added_tokens_decoder) | set(
            teacher_tokenizer.added_tokens_decoder
        )
        kind = (
            "all of them added or special tokens: the text vocabulary is shared, so one model's "
            "tokenizer can be given the other's added tokens"
            if special.issuperset(differing)
            else "so per-token distributions cannot be compared: choose a teacher of the "
            "student's tokenizer family"
        )
        raise VocabularyError(
            f"The tokenizers differ at {len(differing)} of {len(student.keys() | teacher.keys())} "
            f"ids, first at id {first}: the student has {_shown(student, first)}, the teacher "
            f"{_shown(teacher, first)}; {kind}."
        )
    if student_tokenizer.eos_token_id != teacher_tokenizer.eos_token_id:
        logger.warning(
            "The student ends a sequence with %r (id %s), the teacher with %r (id %s): responses "
            "may never end. Give both one eos_token, or start with a cold-start SFT.",
            student_tokenizer.eos_token,
            student_tokenizer.eos_token_id,
            teacher_tokenizer.eos_token,
            teacher_tokenizer.eos_token_id,
        )
    return max(student, default=-1) + 1


def shared_width(
    student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return the number of logits for which both models have a token.

    Models pad their output to a round number (151 936 and 152 064 for one Qwen tokenizer; paper
    sect. 4). Padding has no token and no trained weights, so both are cut to the vocabulary,
    with a note in the log.

    Parameters
    ----------
    student, teacher : transformers.PreTrainedModel
        The models.
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer they share (`shared_vocabulary`).

    Returns
    -------
    int
        Size of the tokenizer's vocabulary, without tokens that a model has no logit for; pass it
        to `split_head` as `width`.

    Raises
    ------
    VocabularyError
        A model has no logit for a token of text, or for the end-of-sequence token.
    """
    widths = {"student": logit_width(student), "teacher": logit_width(teacher)}
    size = tokens_with_logits(tokenizer, widths)
    if set(widths.values()) != {size}:
        logger.warning(
            "Logit widths are %d (student) and %d (teacher); both are cut to the %d tokens that "
            "they share; the rest is padding.",
            widths["student"],
            widths["teacher"],
            size,
        )
    return size


def tokens_with_logits(tokenizer: PreTrainedTokenizerBase, widths: Mapping[str, int]) -> int:
    """Return the number of tokens that every model has a logit for.

    A model may have no logit for the last added tokens of its own tokenizer (the placeholder of an
    image, in Gemma 3 without vision). They can never be produced, so they are cut, with a note in
    the log.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The models' tokenizer.
    widths : mapping of str to int
        Number of logits of each model, by what it is called in messages.

    Returns
    -------
    int
        The tokenizer's highest id + 1, or less if only added tokens are above.

    Raises
    ------
    VocabularyError
        A model has no logit for a token of text, or for the end-of-sequence token.
    """
    tokens = _tokens(tokenizer)
    size = max(tokens, default=-1) + 1
    role, width = min(widths.items(), key=lambda item: item[1], default=("", size))
    without = [index for index in sorted(tokens) if index >= width]
    if not without:
        return size
    if not set(tokenizer.added_tokens_decoder).issuperset(without):
        raise VocabularyError(
            f"The {role} has {width} logits, but the tokenizer has {size} tokens; load the "
            "tokenizer that belongs to it."
        )
    if tokenizer.eos_token_id in without:
        raise VocabularyError(
            f"The {role} has {width} logits, but the tokenizer ends a sequence with "
            f"{tokens[tokenizer.eos_token_id]!r}, id {tokenizer.eos_token_id}, so no response can "
            "end: set tokenizer.eos_token to the token that the model was trained to end with, or "
            "load the tokenizer that belongs to it."
        )
    logger.warning(
        "The %s has %d logits, so the added tokens above (%s), which it cannot produce, are "
        "left out.",
        role,
        width,
        ", ".join(repr(tokens[index]) for index in without[:3])
        + (f" and {len(without) - 3} more" if len(without) > 3 else ""),
    )
    return width


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """A tokenizer's tokens by id, without those that pad the vocabulary of a GGUF file."""
    return {
        index: token for token, index in tokenizer.get_vocab().items() if token != f"[PAD{index}]"
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identify a tokenizer by what it does to text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer. Padding and truncation are left out: they change with use.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits, over vocabulary, merges and other rules, special tokens
        and chat template.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: dict[str, Any] = {"vocab": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
        del rules["padding"], rules["truncation"]
    rules["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    rules["chat_template"] = tokenizer.chat_template
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _shown(tokens: Mapping[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "no token"


def eos_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, conversations: bool = True
) -> list[int]:
    """All end-of-sequence token ids that the model's generation config or the tokenizer names.

    Warns once per model that has none, or whose chat template ends turns in another way.

    Parameters
    ----------
    model, tokenizer
        The model that is sampled, and its tokenizer.
    conversations : bool
        Whether a prompt may be a conversation; the chat template is not looked at otherwise.

    Returns
    -------
    list of int
        Sorted ids.
    """
    ids = set(stop_ids(model, tokenizer))
    if not ids and model not in _endless:
        _endless.add(model)
        logger.warning(
            "%s: no end-of-sequence token, neither in its generation settings nor in the "
            "tokenizer: every response will run to its limit. Set tokenizer.eos_token, or "
            "model.generation_config.eos_token_id.",
            _name(model),
        )
    elif ids and conversations:
        _warn_of_turn_end(model, tokenizer, ids)
    return sorted(ids)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what `eos_ids` does, without a warning: for a model that is not sampled."""
    ids = set()
    if model.generation_config is not None and model.generation_config.eos_token_id is not None:
        ids |= set(np.atleast_1d(model.generation_config.eos_token_id).tolist())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)


def _warn_of_turn_end(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: set[int]
) -> None:
    """Say that a model which has learnt its chat template does not end where its turns do."""
    known = str(tokenizer.chat_template), tuple(sorted(ids))
    if _ends_checked.get(model) == known:
        return
    _ends_checked[model] = known
    end = turn_end(tokenizer)
    if end is None or ids.intersection(end.ids):
        return
    ends = ", ".join(repr(tokenizer.convert_ids_to_tokens(index)) for index in sorted(ids))
    if not end.ids:
        logger.warning(
            "%s: the chat template ends turns with the text %r, which is no token, and not with an "
            "end-of-sequence token (%s): responses to conversations may run on past the end of the "
            "turn, to their limit. Load the tokenizer that belongs to the chat template.",
            *(_name(model), end.text, ends),
        )
        return
    token = str(tokenizer.convert_ids_to_tokens(end.ids[0]))
    logger.warning(
        "%s: the chat template ends turns with %r (id %d), which is not among the end-of-sequence "
        "tokens (%s): responses to conversations may run on past the end of the turn, to their "
        "limit. Set tokenizer.eos_token = %r, or add the id to "
        "model.generation_config.eos_token_id, unless the model never learnt its chat template.",
        *(_name(model), token, end.ids[0], ends, token),
    )


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Padding id of batches: the tokenizer's, or 0. Any id works, since it is never attended to."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else 0
