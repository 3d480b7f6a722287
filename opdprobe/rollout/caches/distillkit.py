"""DistillKit's parquet rows: token ids, and a compressed top-k list for each token after the first.

The layout is that of DistillKit at a61c2e7 (2026-03-14): ``sample_logits_vllm.py`` asks vLLM for
the log-probabilities of a prompt, drops the first token, which has none, and packs list i, of what
the teacher predicts for token i + 1, by the settings in ``compression_config.yaml``. A list's bytes
hold, in this order: `exact_k` numbers; the coefficients of the polynomial that stands for the
others; for each bin of residuals a scale and its packed integers. Ids are packed, most significant
bit first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import RolloutError, VocabularyError, shown
from opdprobe.rollout.caches.lists import teacher_lists
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.rollout import Rollout
from opdprobe.store.files import regular
from opdprobe.store.safe_text import parse_yaml

CONFIG = "compression_config.yaml"
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_OF_ENTRY = 64  # bytes of memory for an entry of a list while it is unpacked
_MOST = 2**20  # of k, and of elements; a list of so many is no top-k list


@dataclass(frozen=True)
class Compression:
    """How lists are packed; names as in DistillKit's configuration.

    Parameters
    ----------
    d
        Size of the vocabulary that the ids were packed for.
    k, exact_k
        Tokens of a list; of these, the first ones whose numbers are kept as they are.
    exact_dtype, term_dtype
        Of these numbers, and of the polynomial's coefficients.
    terms
        Powers, ``"sqrt"`` or ``"exp"``, of the rank.
    bins
        Of the residuals: the scale's dtype, bits of an element, number of elements.
    delta_encoding
        Whether the numbers are differences from the one before.
    normalize_t
        Whether the rank runs from 0 to 1.
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    term_dtype: str
    terms: tuple[int | str, ...]
    bins: tuple[tuple[str, int, int], ...]
    delta_encoding: bool
    normalize_t: bool

    @property
    def index_bits(self) -> int:
        """Bits of a packed id."""
        return int(np.ceil(np.log2(np.float32(self.d))))

    @property
    def n_bytes(self) -> tuple[int, int]:
        """Bytes of a list's numbers and of its ids."""
        n = self.exact_k * _BYTES[self.exact_dtype] + len(self.terms) * _BYTES[self.term_dtype]
        for dtype, bits, elements in self.bins:
            n += _BYTES[dtype] + (bits * elements + 7) // 8
        return n, (self.k * self.index_bits + 7) // 8

    def ids(self, packed: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Unpack ids: (tokens, bytes) to (tokens, k)."""
        return _integers(packed, self.index_bits, self.k)

    def logp(self, packed: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Unpack log-probabilities, in the order of their ranks: (tokens, bytes) to (tokens, k)."""
        place = 0

        def numbers(dtype: str, n: int) -> NDArray[np.float64]:
            nonlocal place
            start, place = place, place + n * _BYTES[dtype]
            return _floats(packed[:, start:place], dtype)

        exact = numbers(self.exact_dtype, self.exact_k)
        rest = self.k - self.exact_k
        fitted = np.zeros((len(packed), rest))
        if self.terms:
            powers = _powers(self.terms, rest, normalize=self.normalize_t)
            fitted = numbers(self.term_dtype, len(self.terms)) @ powers.T
        done = 0
        for dtype, bits, elements in self.bins:
            scale = numbers(dtype, 1)
            start, place = place, place + (bits * elements + 7) // 8
            whole = _integers(packed[:, start:place], bits, elements).astype(np.float64)
            whole = whole * 2 - 1 if bits == 1 else whole - 2.0 ** (bits - 1)
            fitted[:, done : done + elements] += whole * scale
            done += elements
        values = np.concatenate([exact, fitted], 1)
        if self.delta_encoding:
            values = values.cumsum(-1)
        # The ids are in the true order; a polynomial may cross the number before it.
        return np.minimum.accumulate(np.minimum(values, 0) if rest else values, -1)


def compression(path: Path) -> Compression:
    """Read the settings beside a parquet file.

    Raises
    ------
    RolloutError
        There are none, or they are none of DistillKit's.
    """
    try:
        settings = parse_yaml(regular(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RolloutError(
            f"{path}: no such file; expected the settings that DistillKit writes beside its "
            "parquet files, without which their bytes cannot be read."
        ) from None
    except (OSError, ValueError) as error:
        raise RolloutError(f"{path}: not readable as YAML ({error}).") from error
    if not isinstance(settings, dict):
        raise RolloutError(f"{path}: {shown(settings)}; expected DistillKit's settings.")
    return _checked(path, settings)


def _checked(path: Path, settings: Mapping[str, Any]) -> Compression:
    def value(name: str, default: Any, fine: Any, expected: str, of: Mapping | None = None) -> Any:
        found = (settings if of is None else of).get(name, default)
        if not fine(found):
            raise RolloutError(f"{path}: {name} = {shown(found)}; expected {expected}.")
        return found

    def whole(name: str, least: int, most: int = _MOST, of: Mapping | None = None) -> int:
        return value(
            name,
            None,
            lambda n: type(n) is int and least <= n <= most,
            f"a whole number from {least} to {most}",
            of,
        )

    def dtype(name: str, default: str | None, of: Mapping | None = None) -> str:
        fine = lambda name: isinstance(name, str) and name in _BYTES  # noqa: E731
        return value(name, default, fine, f"one of {', '.join(_BYTES)}", of)

    def switch(name: str, default: bool) -> bool:
        return value(name, default, lambda found: isinstance(found, bool), "true or false")

    k = whole("k", 1)
    exact_k = whole("exact_k", 0, k)
    terms = value(
        "polynomial_terms",
        None,
        lambda found: found is None or (isinstance(found, list) and all(map(_is_term, found))),
        "a list of powers, sqrt or exp",
    )
    given = value(
        "residual_bins",
        None,
        lambda found: isinstance(found, list) and all(isinstance(one, dict) for one in found),
        "a list of bins",
    )
    bins = tuple(
        (
            dtype("scale_dtype", None, one),
            whole("element_bits", 1, 32, one),
            whole("num_elements", 1, of=one),
        )
        for one in given
    )
    if sum(elements for _, _, elements in bins) > k - exact_k:
        raise RolloutError(f"{path}: its bins have more elements than k - exact_k = {k - exact_k}.")
    return Compression(
        whole("d", 2, 2**31),
        k,
        exact_k,
        dtype("exact_dtype", "float32"),
        dtype("term_dtype", "float32"),
        tuple(terms or ()),
        bins,
        switch("delta_encoding", True),
        switch("normalize_t", False),
    )


def _is_term(term: object) -> bool:
    return term in ("sqrt", "exp") if isinstance(term, str) else type(term) is int and 0 <= term < 9


def _powers(terms: tuple[int | str, ...], n: int, *, normalize: bool) -> NDArray[np.float64]:
    t = np.linspace(0, 1, n) if normalize else np.arange(n, dtype=np.float64)
    named = {"sqrt": np.sqrt, "exp": np.exp}
    with np.errstate(over="ignore"):
        return np.stack(
            [named[term](t) if isinstance(term, str) else t**term for term in terms], -1
        )


def _floats(packed: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    packed = np.ascontiguousarray(packed)
    if dtype == "bfloat16":  # the upper half of a float32
        whole = packed.view("<u2").astype(np.uint32) << 16
        return whole.view(np.float32).astype(np.float64)
    return packed.view(f"<f{_BYTES[dtype]}").astype(np.float64)


def _integers(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[np.int64]:
    """Unpack `n` integers of `bits` bits each, most significant bit first."""
    found = np.unpackbits(packed, axis=-1, count=n * bits).reshape(len(packed), n, bits)
    whole = np.zeros(found.shape[:2], np.int64)
    for bit in range(bits):
        whole = whole << 1 | found[:, :, bit]
    return whole


def check_vocabulary(settings: Compression, n_tokens: int) -> None:
    """Refuse ids that were packed for a smaller vocabulary than a tokenizer's.

    Raises
    ------
    VocabularyError
        They were.
    """
    if settings.d < n_tokens:
        raise VocabularyError(
            f"the cache's ids were packed for {settings.d} tokens ({CONFIG}, d), but the tokenizer "
            f"has {n_tokens}: give the tokenizer that the cache was made with (tokenizer=)."
        )


def rollouts(row: Row, settings: Compression, name: str, most: float) -> Iterator[Rollout]:
    """Yield the texts of a row: one, or those that were packed into it.

    Parameters
    ----------
    row
        A row of `COLUMNS`. ``labels`` below 0 mark tokens that are read, not scored;
        ``attention_mask`` numbers the texts that ``distillkit-pack-logits`` put together.
    settings
        How its lists are packed.
    name
        Of the row; its texts are prompts of their own.
    most
        Bytes of memory that its lists may take.

    Raises
    ------
    RolloutError
        Its columns do not fit together, or not the settings.
    """
    ids = row.ids("input_ids")
    packed = [_bytes(row, name, n) for name, n in zip(COLUMNS[1:], settings.n_bytes, strict=True)]
    if (needed := max(map(len, packed)) * settings.k * _OF_ENTRY) > most:
        raise row.fault(f"its lists take {needed} bytes, too many for the file's size.")
    logp, token_id = settings.logp(packed[0]), settings.ids(packed[1])
    if len(logp) != len(token_id) or len(ids) - len(logp) not in (0, 1):
        raise row.fault(
            f"{len(ids)} tokens, {len(logp)} lists of log-probabilities and {len(token_id)} of "
            "ids; expected a list for each token but the first, or one more, for a token that was "
            "cut off."
        )
    mask = np.ones(len(ids), bool)
    if row.data.get("labels") is not None:
        labels = _whole(row, "labels", len(ids))
        mask = labels >= 0
        if (other := mask & (labels != ids)).any():
            at = int(np.argmax(other))
            raise row.fault(
                f"'labels' has {labels[at]} at token {at}, which is {ids[at]}; expected the "
                "token's own id, or one below 0."
            )
    texts = np.ones(len(ids), int)
    if row.data.get("attention_mask") is not None:
        texts = _whole(row, "attention_mask", len(ids))
    starts = np.flatnonzero(np.diff(texts, prepend=-1))
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        if not texts[start] or end - start < 2:  # padding, or nothing that was predicted
            continue
        # List i is of token i + 1, so the last list of a text that was cut off has no token.
        places = slice(start, end - 1)
        source = row.source if len(starts) == 1 else f"{row.source}, text {number}"
        yield Rollout(
            0,
            name if len(starts) == 1 else f"{name}.{number}",
            ids[start : start + 1],
            ids[start + 1 : end],
            mask=mask[start + 1 : end],
            teacher_lists=teacher_lists(source, token_id[places], logp[places]),
            source=source,
        )


def _whole(row: Row, name: str, n: int) -> NDArray[np.int64]:
    found = row.data[name]
    if (
        not isinstance(found, list)
        or len(found) != n
        or not all(type(one) is int and abs(one) < 2**31 for one in found)
    ):
        raise row.fault(f"{name!r} is {shown(found)}; expected a whole number for each token.")
    return np.array(found, np.int64)


def _bytes(row: Row, name: str, n: int) -> NDArray[np.uint8]:
    """Lists of bytes as an array (lists, n)."""
    found = row.need(name)
    parts: list[bytes] = []
    lists: list[Any] = found if isinstance(found, list) else [None]
    for one in lists:
        if not _is_bytes(one) or len(one) != n:
            has = f"a list of {len(one)} bytes" if _is_bytes(one) else shown(one)
            raise row.fault(
                f"{name!r} holds {has}; expected {n} bytes for each list, by its {CONFIG}: is that "
                "of another cache?"
            )
        parts.append(bytes(one))
    return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), n)


def _is_bytes(value: Any) -> bool:
    if isinstance(value, bytes):
        return True
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 256 for one in value)
