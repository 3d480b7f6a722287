"""Repetition: against zlib, and on texts with and without loops."""

import random
import zlib

import pytest

from opdprobe.train.recipes.repetition import REPETITIVE, compression, repeats

WORDS = "so we add two and three which gives five then carry one over to the next place".split()


def prose(n_words, seed=0):
    return " ".join(random.Random(seed).choices([*WORDS, *map(str, range(1000))], k=n_words))


def test_compression_is_zlibs_of_the_tail():
    text = prose(5000)
    tail = text[-10_000:].encode()
    assert len(text) > len(tail)
    assert compression(["a²", text]) == pytest.approx(
        [3 / len(zlib.compress("a²".encode())), len(tail) / len(zlib.compress(tail))]
    )


@pytest.mark.parametrize("period", [1, 3, 20, 60])
def test_a_loop_of_any_period_repeats(period):
    loop = prose(period) + " "
    assert repeats([prose(300) + loop * (12_000 // len(loop))]) == [True]


def test_prose_does_not_repeat():
    assert not repeats([prose(n) for n in (1, 10, 100, 5000)] + [""]).any()
    assert compression([prose(5000)])[0] < REPETITIVE / 2
