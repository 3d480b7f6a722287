"""Small fakes for tests: steps and runs of random logits, a tiny model, a tiny tokenizer.

The steps and runs need numpy and xarray only; `tiny_model` and `tiny_tokenizer` import torch and
transformers when called.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from opdprobe.errors import needs_train_extra
from opdprobe.store import Run, RunWriter, open_run
from opdprobe.store.schema import step_dataset

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
_PROMPT_LENGTH = 3
_STOP = 0  # the token with which both models of a synthetic step stop


def synthetic_step(
    step: int = 0,
    *,
    n_rollouts: int = 4,
    length: int | Sequence[int] = 8,
    k: int = 16,
    vocab_size: int = 64,
    agreement: float = 0.8,
    seed: int = 0,
    given: bool = False,
) -> xr.Dataset:
    """Make a valid step from random logits.

    All numbers of a state (masses, entropies, divergences, sampled token) come from one pair of
    full distributions, so they are consistent.

    Parameters
    ----------
    step : int
        Training step; different steps draw different numbers.
    n_rollouts : int
        Number of rollouts, each from its own prompt.
    length : int or sequence of int
        Response length in tokens: one for all rollouts, or one per rollout; may be 0.
    k : int
        Tokens kept per state, at most `vocab_size`.
    vocab_size : int
        Number of tokens in the vocabulary.
    agreement : float
        Correlation of both models' logits, in [0, 1]: at 1 the teacher equals the student, at 0 the
        two are independent.
    seed : int
        Random seed; equal arguments give equal steps.
    given : bool
        Whether the step is as one of rollouts that another trainer sampled: with the sampler's
        and the trainer's log-probabilities, which differ from the step's by rounding, labels, and
        a teacher that reads prompts of its own.

    Returns
    -------
    xarray.Dataset
        A step with every variable of the schema that trainers record, or with all (`given`).

    Examples
    --------
    >>> ds = synthetic_step(n_rollouts=2, length=[3, 0], k=4)
    >>> ds.sizes["state"], ds.length.values
    (3, array([3, 0], dtype=int32))
    >>> same = synthetic_step(agreement=1.0)
    >>> float(same.reverse_kl.max()), bool((same.match >= 0).all())
    (0.0, True)
    """
    rng = np.random.default_rng((seed, step))
    lengths = np.broadcast_to(np.asarray(length, int), n_rollouts)
    n = int(lengths.sum())
    student, noise = rng.normal(scale=2.0, size=(2, n, vocab_size))
    teacher = agreement * student + np.sqrt(1 - agreement**2) * noise
    logits = np.stack([student, teacher], axis=1)  # (n, model, vocab)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    p = np.exp(logp)
    ids = np.argsort(-logp, axis=-1, kind="stable")[..., :k]  # (n, support, k)
    # Adding Gumbel noise and taking the maximum draws from the softmax.
    sampled = np.argmax(logp[:, 0] + rng.gumbel(size=(n, vocab_size)), axis=-1)
    sampled_logp = np.take_along_axis(logp, sampled[:, None, None], -1)[..., 0]
    more: dict[str, Any] = {}
    if given:
        other = np.random.default_rng((seed, step, 1))
        rounded = np.minimum(sampled_logp[:, [0, 0, 1]] + other.normal(0, 0.01, (n, 3)), 0)
        longer = _PROMPT_LENGTH + 2
        names = np.array([["mathematics", "code"][row % 2] for row in range(n_rollouts)], str)
        more = {
            "sampler_logp": rounded[:, 0],
            "reported_logp": rounded[:, 1:],
            "label": names[:, None],
            "label_name": ["domain"],
            "teacher_prompt_length": np.full(n_rollouts, longer),
            "teacher_prompt_ids": other.integers(0, vocab_size, n_rollouts * longer),
        }
    return step_dataset(
        token_id=ids,
        logp=np.stack([np.take_along_axis(logp, ids[:, [s]], -1) for s in (0, 1)], axis=2),
        entropy=-(p * logp).sum(axis=-1),
        reverse_kl=(p[:, 0] * (logp[:, 0] - logp[:, 1])).sum(axis=-1),
        rollout=np.repeat(np.arange(n_rollouts), lengths),
        position=np.concatenate([np.arange(t) for t in lengths] or [[]]),
        step=step,
        sampled_id=sampled,
        sampled_logp=sampled_logp,
        stop_logp=np.broadcast_to(logp[:, :, [_STOP]], (n, 2, 2)),
        prompt_id=[f"prompt-{row}" for row in range(n_rollouts)],
        prompt_length=np.full(n_rollouts, _PROMPT_LENGTH),
        length=lengths,
        finished=rng.random(n_rollouts) < 0.5,
        correct=rng.integers(0, 2, n_rollouts),
        prompt_ids=rng.integers(0, vocab_size, n_rollouts * _PROMPT_LENGTH),
        response_ids=sampled,
        **more,
    )


def synthetic_run(path: str | Path, steps: Iterable[int] = range(3), **kwargs: Any) -> Run:
    """Write a run of synthetic steps, with metrics.

    Parameters
    ----------
    path : path-like
        Directory; must be absent or empty.
    steps : iterable of int
        Steps to write.
    **kwargs
        Arguments of `synthetic_step`.

    Returns
    -------
    Run
        The run, open for reading.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     synthetic_run(folder, steps=[0, 10]).states().sizes["state"]
    64
    """
    attrs = {"student": "synthetic student", "teacher": "synthetic teacher"}
    writer = RunWriter(path, attrs=attrs, config={"synthetic": kwargs}, resume=False)
    for step in steps:
        ds = synthetic_step(step, **kwargs)
        writer.write_step(step, ds)
        writer.log_metrics(step, {"loss": ds["reverse_kl"].mean().item()})
    return open_run(path)


def tiny_model(
    vocab_size: int = 64,
    *,
    hidden_size: int = 16,
    layers: int = 2,
    seed: int = 0,
    tie: bool = False,
) -> "LlamaForCausalLM":
    """Make a random Llama model, small enough for a unit test; needs torch.

    Parameters
    ----------
    vocab_size : int
        Width of the logits.
    hidden_size : int
        Width of the hidden states, a multiple of 4.
    layers : int
        Number of decoder layers.
    seed : int
        Seed of the weights; the global random state does not change.
    tie : bool
        Whether the output head shares the embedding's weight.

    Returns
    -------
    transformers.LlamaForCausalLM
        In float32 and evaluation mode, with the pad, bos and eos ids of `tiny_tokenizer`.
    """
    with needs_train_extra("opdprobe.testing.tiny_model"):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

    # Not Qwen2: AutoTokenizer replaces the pre-tokeniser of a saved Qwen2 directory.
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        pad_token_id=_SPECIAL.index("<pad>"),
        bos_token_id=_SPECIAL.index("<bos>"),
        eos_token_id=_SPECIAL.index("<eos>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_tokenizer(vocab_size: int = 64) -> "PreTrainedTokenizerFast":
    """Make a word tokenizer with a chat template; needs transformers.

    Parameters
    ----------
    vocab_size : int
        Number of tokens: six special ones, then the numbers "0", "1", ….

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Splits at white space; its length is `vocab_size`.
    """
    with needs_train_extra("opdprobe.testing.tiny_tokenizer"):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

    words = (*_SPECIAL, *(str(number) for number in range(vocab_size - len(_SPECIAL))))
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]  # the stub lacks the setter
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = (
        "<bos>{% for message in messages %} <{{ message['role'] }}> {{ message['content'] }}"
        "{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
    )
    return fast
