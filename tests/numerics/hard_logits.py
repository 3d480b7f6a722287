"""Pairs of logits that are hard on arithmetic, in the dtypes that models have."""

import numpy as np
import torch

V = 24
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
TINY = -69.0  # e^-69 is 1e-30


def _noise(scale, seed=0, width=V):
    return np.random.default_rng(seed).normal(scale=scale, size=width)


def _row(*values, width=V, fill=0.0):
    row = np.full(width, fill)
    row[: len(values)] = values
    return row


# Student and teacher. What a dtype cannot tell apart becomes a tie in it.
PAIRS = {
    "constant": (_row(), _row(fill=3.0)),
    "constant and large": (_row(fill=1e4), _row(fill=-1e4)),
    "constant against sharp": (_row(), _row(50.0)),
    "sharp": (_row(20.0, 2.0, 1.0), _row(1.0, 18.0, 2.0)),
    "as good as certain": (_row(1e4, 0.0, 5.0), _row(2.0, 1e4)),
    "very flat": (_noise(1e-4), _noise(1e-4, 1)),
    "very flat on a large offset": (_noise(1e-2) + 1e3, _noise(1e-2, 1) - 1e3),
    "probabilities of 1e-30": (_row(0.0, -1.0, fill=TINY), _row(TINY, -1.0, 0.0, fill=TINY)),
    "below float32's smallest": (_row(0.0, 1.0, fill=-120.0), _row(-110.0, 1.0, fill=-95.0)),
    "many ties": (np.round(_noise(1.5)), np.round(_noise(1.5, 1))),
    "ties at the edge of the top-k": (_row(3.0, 2.0, fill=1.0), _row(1.0, fill=0.5)),
    "ordinary": (_noise(3.0), _noise(3.0, 1)),
    "nearly equal": (_noise(3.0), _noise(3.0) + _noise(1e-3, 1)),
    "equal": (_noise(3.0), _noise(3.0)),
    "wide": (_noise(30.0), _noise(30.0, 1)),
    "large": (_noise(3e3), _noise(3e3, 1)),
    "one token": (_row(width=1), _row(7.0, width=1)),
    "two tokens": (_row(0.5, -0.5, width=2), _row(-90.0, 3.0, width=2)),
}
# -inf rules a token out. Only `from_logits` takes it.
RULED_OUT = {
    "ruled out by both": (_row(-np.inf, 1.0, 2.0), _row(-np.inf, 2.0, 1.0)),
    "ruled out by the teacher": (_row(0.0, 1.0), _row(1.0, -np.inf)),
    "ruled out by the student": (_row(0.0, -np.inf), _row(1.0, 3.0)),
    "all but one ruled out": (_row(-3.0, fill=-np.inf), _row(8.0, fill=-np.inf)),
}


def tensors(pair, dtype):
    """One state a model, (1, V)."""
    return [torch.tensor(row[None]).to(DTYPES[dtype]) for row in pair]


def large_vocabulary():
    """Pairs over 151,936 tokens, whose sums a float32 can lose."""
    rng, width = np.random.default_rng(0), 151_936

    def noise(scale):
        return rng.normal(scale=scale, size=width).astype(np.float32)

    ordinary, flat = noise(3.0), 25 + noise(1e-3)
    # 151,935 tokens hold 3e-4 together, 2e-9 each.
    peaks = np.zeros((2, width), np.float32)
    peaks[:, 0], peaks[1, 1] = 20, 21
    return {
        "ordinary": (ordinary, noise(3.0)),
        "nearly equal": (ordinary, ordinary + noise(1e-3)),
        "flat": (flat, 25 + noise(1e-3)),
        "peaks over a flat tail": tuple(peaks),
    }
