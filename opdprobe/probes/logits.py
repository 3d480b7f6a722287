"""Compute what a step stores from two models' raw logits. Needs no torch; accepts tensors."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError, NonFiniteError, VocabularyError
from opdprobe.store.schema import MODELS, step_dataset

# Float64 values in one (rows, V) block: 32 MiB per array, about ten of which exist at a time.
_BLOCK_VALUES = 2**22


def from_logits(
    student_logits: Any,
    teacher_logits: Any,
    *,
    k: int = 16,
    mask: Any = None,
    sampled_ids: Any = None,
    temperature: float = 1.0,
) -> xr.Dataset:
    """Turn two models' logits on the same tokens into a step that every probe can read.

    Parameters
    ----------
    student_logits, teacher_logits : (..., T, V) array_like or torch.Tensor
        Logits over one shared vocabulary at the same states, usually (B, T, V). The axis before
        the last is the position, everything before it is flattened into rollouts: (T, V) is one
        rollout, (V,) one state. -inf marks a token that the model rules out: probability 0.
    k : int, default 16
        Length of both top-k lists.
    mask : (..., T) array_like or torch.Tensor of bool, optional
        Positions to keep: the response, without prompt and padding. The logits elsewhere are
        never read. Default: all.
    sampled_ids : (..., T) array_like or torch.Tensor of int, optional
        The token the student drew at each state, i.e. the one the logits predict (shift before
        calling). Masked-out entries may hold anything. Without it, the Dataset has no
        ``sampled_id`` and ``sampled_logp``.
    temperature : float, default 1.0
        Divides both models' logits.

    Returns
    -------
    Dataset
        In the store's schema: log-probabilities, entropies and KL in nats. ``rollout`` is the row
        (0…B-1, including rows without a kept position), ``position`` counts the kept positions of
        the row from 0, ``length`` is their number and ``step`` is 0. ``reverse_kl`` is inf where
        the teacher rules out a token that the student does not.

    Raises
    ------
    VocabularyError
        If the two logits differ in width.
    NonFiniteError
        If a kept row has NaN or +inf, or only -inf.
    ConfigError
        If `k` is not in 1…V, or `temperature` is not positive.
    ValueError
        If the leading shapes differ, or a sampled id is outside the vocabulary.

    Notes
    -----
    Tokens with equal logits are listed with the lower id first, so that the result is the same on
    every machine. The states are processed in blocks, in float64 and on the CPU, so memory beyond
    the input stays bounded (about 0.3 GiB) for any number of states.

    References
    ----------
    §2.2 for S_t and T_t, Eq. 4 for the reverse KL, Eq. 8 for the entropies.

    Examples
    --------
    >>> student = np.log([[0.5, 0.3, 0.1, 0.1]])
    >>> teacher = np.log([[0.1, 0.5, 0.2, 0.2]])
    >>> ds = from_logits(student, teacher, k=2)
    >>> ds.token_id.sel(support="student").values, ds.token_id.sel(support="teacher").values
    (array([[0, 1]], dtype=int32), array([[1, 2]], dtype=int32))
    >>> ds.match.values
    array([[-1,  0]], dtype=int8)
    >>> from_logits(student, teacher[:, :3], k=2)
    Traceback (most recent call last):
    ...
    opdprobe.errors.VocabularyError: student logits have 4 columns, teacher logits 3; ...
    """
    student, teacher = _as_array(student_logits), _as_array(teacher_logits)
    leading = _leading_shape(student, teacher)
    shape = int(np.prod(leading[:-1])), int(np.prod(leading[-1:]))  # rollouts, positions
    vocabulary = student.shape[-1]
    if not 1 <= k <= vocabulary or k != int(k):
        raise ConfigError(f"k = {k}; expected 1 <= k <= {vocabulary}, the vocabulary's size.")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ConfigError(f"temperature = {temperature}; expected a finite number > 0.")

    keep = np.ones(leading) if mask is None else _per_state("mask", mask, leading)
    keep = keep.reshape(shape).astype(bool)
    rollout, column = np.nonzero(keep)
    sampled = None
    if sampled_ids is not None:
        sampled = _per_state("sampled_ids", sampled_ids, leading).reshape(shape)[keep]
        _check_sampled(sampled, vocabulary)

    n = rollout.size
    token_id = np.empty((n, 2, k), np.int32)
    logp = np.empty((n, 2, 2, k), np.float32)
    entropy = np.empty((n, 2), np.float32)
    reverse_kl = np.empty(n, np.float32)
    sampled_logp = None if sampled is None else np.empty((n, 2), np.float32)
    models = [student.reshape(*shape, vocabulary), teacher.reshape(*shape, vocabulary)]
    size = max(1, _BLOCK_VALUES // vocabulary)
    for start in range(0, n, size):
        block = slice(start, min(start + size, n))
        logs = []
        for s, (name, logits) in enumerate(zip(MODELS, models, strict=True)):
            x = _float64(logits[rollout[block], column[block]])
            with np.errstate(over="ignore"):  # a mask value near the lowest float becomes -inf
                x /= temperature
            _check_finite(name, x, rollout[block], column[block])
            logs.append(_log_softmax(x))
            # Ranked by logits, because normalising can round two of them to one value.
            token_id[block, s] = _top_k(x, k)
        for s in range(2):
            for m in range(2):
                picked = np.take_along_axis(logs[m], token_id[block, s], axis=-1)
                logp[block, m, s] = _float32(picked)
        probability = np.exp(logs[0])
        with np.errstate(invalid="ignore"):  # -inf - -inf where both rule a token out: weight 0
            log_ratio = logs[0] - logs[1]
        reverse_kl[block] = _float32(np.maximum(_expect(probability, log_ratio), 0.0))
        entropy[block, 0] = -_expect(probability, logs[0])
        entropy[block, 1] = -_expect(np.exp(logs[1]), logs[1])
        if sampled is not None and sampled_logp is not None:
            for m in range(2):
                picked = np.take_along_axis(logs[m], sampled[block, None], axis=-1)
                sampled_logp[block, m] = _float32(picked[:, 0])
    return step_dataset(
        token_id=token_id,
        logp=logp,
        entropy=np.abs(entropy),  # turns -0.0 into 0.0
        reverse_kl=reverse_kl,
        sampled_id=sampled,
        sampled_logp=sampled_logp,
        rollout=rollout,
        position=(np.cumsum(keep, axis=1) - 1)[keep],
        length=keep.sum(axis=1),
        attrs={"k": k, "temperature": temperature},
    )


def _as_array(logits: Any) -> Any:
    """Leave a torch tensor on its device (blocks are fetched one by one); else, make an array."""
    return logits.detach() if hasattr(logits, "detach") else np.asarray(logits)


def _float64(block: Any) -> NDArray[np.float64]:
    if isinstance(block, np.ndarray):
        return block.astype(np.float64)
    return block.cpu().double().numpy()  # cpu first: not every accelerator has float64


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # below the range of float32, the probability is 0
        return values.astype(np.float32)


def _leading_shape(student: Any, teacher: Any) -> tuple[int, ...]:
    """Check that the logits belong together; return their shape without the vocabulary."""
    if student.ndim == 0 or teacher.ndim == 0:
        raise ValueError("logits are scalars; expected the vocabulary on the last axis.")
    if student.shape[-1] != teacher.shape[-1]:
        raise VocabularyError(
            f"student logits have {student.shape[-1]} columns, teacher logits "
            f"{teacher.shape[-1]}; expected one vocabulary: cut both to it with "
            "logits[..., :len(tokenizer)], because the rest is padding."
        )
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, teacher logits "
            f"{tuple(teacher.shape)}; expected the same states in both."
        )
    return tuple(student.shape[:-1])


def _per_state(name: str, values: Any, leading: tuple[int, ...]) -> NDArray[Any]:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.shape != leading:
        raise ValueError(
            f"{name} has shape {array.shape}; expected {leading}, as the logits without their last "
            "axis."
        )
    return array


def _check_sampled(sampled: NDArray[Any], vocabulary: int) -> None:
    if not np.issubdtype(sampled.dtype, np.integer):
        raise ValueError(f"sampled_ids has dtype {sampled.dtype}; expected integer token ids.")
    if ((sampled < 0) | (sampled >= vocabulary)).any():
        raise ValueError(
            f"sampled_ids runs from {sampled.min()} to {sampled.max()} at the kept positions; "
            f"expected 0 to {vocabulary - 1}: mask out the padding."
        )


def _check_finite(
    name: str, x: NDArray[np.float64], rollout: NDArray[np.intp], column: NDArray[np.intp]
) -> None:
    top = x.max(axis=-1)  # NaN if a row has one, else +inf if it has one, -inf if it has no other
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        raise NonFiniteError(
            f"{name} logits have a maximum of {top[row]} at rollout {rollout[row]}, column "
            f"{column[row]}; expected finite numbers, with -inf for tokens ruled out but not for "
            "all: check the model's dtype and the mask."
        )


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _expect(probability: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take an expectation in which 0 · anything = 0."""
    with np.errstate(invalid="ignore"):  # 0 · inf
        terms = probability * values
    return np.where(probability == 0, 0.0, terms).sum(axis=-1)


def _top_k(x: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Return the ids of the k largest values per row, largest first, ties by the lower id."""
    kth = np.partition(x, x.shape[1] - k, axis=-1)[:, x.shape[1] - k, None]
    row, token = np.nonzero(x >= kth)  # k per row, more if the k-th value is tied
    order = np.lexsort((token, -x[row, token], row))
    first = np.searchsorted(row, np.arange(x.shape[0]))  # row is sorted, before and after `order`
    return token[order[first[:, None] + np.arange(k)]]
