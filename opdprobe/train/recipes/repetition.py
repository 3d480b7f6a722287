"""Detect texts that repeat themselves, by how far they can be compressed."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPETITIVE = 10
"""A text this many times longer than its compressed form repeats itself: the limit of StableOPD's
RepRate (arXiv 2604.08527). Ordinary text stays between 2 and 4."""


def compression(texts: Sequence[str]) -> NDArray[np.float64]:
    """Ratio of each text's length to its zlib form's, in bytes, over its last 10,000 characters.

    Examples
    --------
    >>> compression(["so " * 300, "A sentence says a thing, once.", ""]) > REPETITIVE
    array([ True, False, False])
    """
    tails = [text[-10_000:].encode() for text in texts]
    return np.array([len(tail) / len(zlib.compress(tail)) for tail in tails])


def repeats(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Find the texts that repeat themselves.

    The paper drops "repetitive" responses without defining them. An n-gram count needs an n, a
    share and a tokenizer; compression needs one threshold, finds loops of any period, and is what
    others measure. It misses a loop in a text of less than a few hundred characters, where zlib's
    own overhead caps the ratio, and one that fills only a small part of the last 10,000.

    Examples
    --------
    >>> repeats(["Wait, let me check again. " * 100, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"])
    array([ True, False])
    """
    return compression(texts) > REPETITIVE
