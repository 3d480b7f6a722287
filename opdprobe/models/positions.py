"""How long a text a model with a table of positions can take."""

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from opdprobe.errors import ModelError, PromptError

# Names of learned tables (GPT-2, OPT, BioGPT) and of computed ones that do not grow (GPT-J).
_TABLE = re.compile(r"(^|\.)(wpe|\w*position_embeddings?|embed_positions|pos_emb\w*)$")

# Models whose attention, in texts longer than this setting, chooses tokens by chance (Reformer
# hashes with random numbers) or among equals (Doge, where tokens are repeated), so that a text has
# no one result.
_STEADY_UP_TO = {"doge": "keep_window_size", "reformer": "lsh_attn_chunk_length"}


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the number of positions in a model's table; None if it computes them as needed.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=16)
    >>> position_limit(GPT2LMHeadModel(config))
    16
    """
    limits = [
        table.num_embeddings - int(getattr(table, "offset", 0)) - _before_the_first(table)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and _TABLE.search(name) and not _sees(name)
    ]
    limits += [
        len(table)
        for name, table in model.named_buffers()
        if table.ndim == 2 and _TABLE.search(name) and not _sees(name)
    ]
    return min(limits, default=None)


def check_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_completion_length: int
) -> None:
    """Refuse prompts and responses for which a model has no embeddings or no positions.

    Parameters
    ----------
    model
        A causal language model.
    prompts
        Token ids of each prompt.
    max_completion_length
        Longest response, in tokens.

    Raises
    ------
    PromptError
        A token's id is not below the number of embeddings.
    ModelError
        As for `check_length`.
    """
    check_length(model, prompts, max_completion_length)
    limit = n_embeddings(model)
    for index, prompt in enumerate(prompts):
        if limit is not None and max(prompt, default=0) >= limit:
            raise PromptError(
                f"prompt {index} has token {max(prompt)}, but {_name(model)} has embeddings for "
                f"the ids 0 to {limit - 1} only: give the tokenizer and chat template that belong "
                "to the model, or leave the prompt out."
            )


def check_length(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_completion_length: int
) -> None:
    """Refuse prompts and responses for which a model has no positions.

    Parameters
    ----------
    model
        A causal language model.
    prompts
        Token ids of each prompt.
    max_completion_length
        Longest response, in tokens. Its last token is not fed to the model.

    Raises
    ------
    ModelError
        The longest prompt and the longest response exceed the model's table of positions, or the
        length up to which its attention leaves nothing to chance.
    """
    limit = position_limit(model)
    longest = max(map(len, prompts), default=0)
    steady = _steady(model)
    if steady is not None and longest + max_completion_length - 1 > steady:
        raise ModelError(
            f"{_name(model)} chooses the tokens that it attends to by chance in texts of more than "
            f"{steady}, but a prompt of {longest} tokens with a response of up to "
            f"{max_completion_length} needs {longest + max_completion_length - 1}: lower "
            "max_completion_length, or leave out long prompts."
        )
    if limit is not None and longest + max_completion_length - 1 > limit:
        raise ModelError(
            f"{_name(model)} has a table of {limit} positions, but a "
            f"prompt of {longest} tokens with a response of up to {max_completion_length} needs "
            f"{longest + max_completion_length - 1}: lower max_completion_length to "
            f"{max(limit - longest + 1, 0)} or less, or leave out long prompts."
            if longest <= limit
            else f"{_name(model)} has a table of {limit} positions, "
            f"but a prompt has {longest} tokens: leave out long prompts."
        )


def most_tokens(model: PreTrainedModel) -> int | None:
    """Return how many tokens of a text a model can be given; None if there is no limit."""
    return min(
        (limit for limit in (position_limit(model), _steady(model)) if limit is not None),
        default=None,
    )


def n_embeddings(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a model has an embedding for, if it says so."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a model of own code that does not say where they are
        return None


def _steady(model: PreTrainedModel) -> int | None:
    return getattr(model.config, _STEADY_UP_TO.get(model.config.model_type, ""), None)


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__


def _before_the_first(table: nn.Embedding) -> int:
    """Rows that no token uses: RoBERTa counts positions from the row after that of padding."""
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _sees(name: str) -> bool:
    """Whether a module is part of what encodes images or sound."""
    return re.search(r"vision|visual|image|audio|encoder\.", name) is not None
