"""The token viewer's data: a step's numbers as one compressed block, read by ``view_data.js``."""

import base64
import gzip
import json
import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes.quantities import QUANTITIES, Quantity
from opdprobe.probes.selectors import SELECTORS, select_states
from opdprobe.report.selection import FRACTION
from opdprobe.report.token_text import visible

LOGP_UNIT = 1e-3  # nats per unit of the 16-bit log-probabilities: probabilities are exact to 0.05 %
_LOWEST = 65_533  # any lower log-probability that is no probability 0
_ZERO = 65_534  # probability 0
_UNKNOWN = 65_535  # NaN
# Half of the tokens stay plain; each further colour marks rarer ones.
_LEVELS = (0.5, 0.75, 0.9, 0.97, 0.99)


VIEWED: dict[str, Quantity] = {
    name: QUANTITIES[name]
    for name in (
        "reverse_kl",
        "overlap_token_advantage",
        "overlap_ratio",
        "student_entropy",
        "teacher_entropy",
        "sampled_reward",
        "sampler_gap",
    )
}
"""Quantities that can colour the tokens, in the order of the page."""


class PackedStep(NamedTuple):
    """A step as the page stores it.

    Attributes
    ----------
    columns : dict
        For the page's index: the number of states ``n``, ``k``, and lists over rollouts; of the
        labels, one such list by name.
    block : str
        The arrays, concatenated, little-endian, compressed (`pack`): values (quantity,
        state) float32; positions (state) int32; token ids (state, support, rank) int32; the ids
        of the prompts, of the teacher's prompts where it reads others, and of the responses, int32;
        log-probabilities (state, model, support, rank)
        and those of the sampled token (state, model), uint16 in multiples of -`LOGP_UNIT` nats:
        65533 stands for that and all that is lower, 65534 for probability 0, 65535 for unknown;
        marks (state) uint16, bit i set where the i-th of `opdprobe.probes.SELECTORS` keeps the
        state, among all of the step.
    values : ndarray of float32, shape (quantity, state)
        The same values as in the block; NaN where a quantity is undefined or not recorded.
    ids : ndarray of int
        Every token id in the block, once.
    """

    columns: dict[str, Any]
    block: str
    values: NDArray[np.float32]
    ids: NDArray[np.integer]


def pack_step(ds: xr.Dataset, rollouts: int) -> PackedStep:
    """Pack the first rollouts of a step, with states in the order of the text.

    Parameters
    ----------
    ds : xarray.Dataset
        A step in the store's schema. Without texts (`response_ids`), the recorded states are
        shown as the response.
    rollouts : int
        Number of rollouts.

    Returns
    -------
    PackedStep
        Columns, block, and the values and ids for the page's legend and token table.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> packed = pack_step(synthetic_step(n_rollouts=3, length=[2, 1, 4]), 2)
    >>> packed.columns["n"], packed.columns["n_states"], packed.values.shape
    (3, [2, 1], (7, 3))
    """
    rollout = ds["rollout"].values
    n_rollout = min(rollouts, ds.sizes.get("rollout", int(rollout.max(initial=-1)) + 1))
    ds = ds.isel(state=np.lexsort((ds["position"].values, rollout)))
    marks = _marks(ds)  # of the whole step, as in training
    ds = ds.isel(state=slice(int((rollout < n_rollout).sum())))
    n = ds.sizes["state"]
    n_states = np.bincount(ds["rollout"].values, minlength=n_rollout)
    positions = ds["position"].values
    if "response_ids" in ds:
        n_response = ds["length"].values[:n_rollout]
        response = ds["response_ids"].values[: n_response.sum()]
    else:
        n_response = n_states
        response = ds["sampled_id"].values if "sampled_id" in ds else np.full(n, -1)
        positions = np.arange(n) - np.repeat(np.cumsum(n_states) - n_states, n_states)
    n_prompt, prompt = _texts(ds, "prompt", n_rollout)
    n_teacher, teacher = _texts(ds, "teacher_prompt", n_rollout)
    # Without top-k lists, k is 0.
    token_id = ds["token_id"].values if "token_id" in ds else np.zeros((n, 2, 0), int)
    logp = ds["logp"].values if "logp" in ds else np.zeros((n, 2, 2, 0))
    sampled = ds["sampled_logp"].values if "sampled_logp" in ds else np.full((n, 2), np.nan)
    known = [q.compute(ds).values if q.needs in ds else None for q in VIEWED.values()]
    values = np.array([np.full(n, np.nan) if row is None else row for row in known], "<f4")
    arrays = [
        values,
        *(ids.astype("<i4") for ids in (positions, token_id, prompt, teacher, response)),
        *(_fixed_point(values) for values in (logp, sampled)),
        marks[:n],
    ]
    columns = {
        "n": n,
        "k": token_id.shape[-1],
        "n_states": n_states.tolist(),
        "n_prompt": n_prompt.tolist(),
        "n_teacher_prompt": n_teacher.tolist(),
        "n_response": n_response.tolist(),
        **{name: _column(ds, name, n_rollout) for name in ("prompt_id", "finished", "correct")},
        "labels": _labels(ds, n_rollout),
    }
    block = pack(b"".join(array.tobytes() for array in arrays))
    ids = np.unique(np.concatenate([token_id.ravel(), prompt, teacher, response]))
    return PackedStep(columns, block, values, ids)


def selectable(ds: xr.Dataset) -> bool:
    """Say whether a step has what every selector needs."""
    needed = ("logp", "entropy", "reverse_kl", "sampled_logp")
    return all(name in ds for name in needed) and ("match" in ds or "token_id" in ds)


def _marks(ds: xr.Dataset) -> NDArray[np.uint16]:
    """Return for each state which selectors keep it, one bit each; 0 if they cannot tell."""
    marks = np.zeros(ds.sizes["state"], "<u2")
    if marks.size and selectable(ds):
        for bit, name in enumerate(SELECTORS):
            marks |= select_states(ds, name, FRACTION).astype("<u2") << bit
    return marks


def _texts(ds: xr.Dataset, part: str, n: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the lengths and the ids of the first texts; none where none are recorded."""
    if f"{part}_ids" not in ds:
        return np.zeros(n, int), np.zeros(0, int)
    lengths = ds[f"{part}_length"].values[:n]
    return lengths, ds[f"{part}_ids"].values[: lengths.sum()]


def _column(ds: xr.Dataset, name: str, n: int) -> list[Any]:
    """One value per rollout; None if unknown."""
    values = ds[name].values[:n].tolist() if name in ds else [None] * n
    known = [None if value != value else value for value in values]
    return [visible(value) if isinstance(value, str) else value for value in known]


def _labels(ds: xr.Dataset, n: int) -> dict[str, list[str]]:
    """Values of each label, one per rollout."""
    if "label" not in ds:
        return {}
    table = ds["label"].values[:n].T.tolist()
    return {
        visible(str(name)): [visible(str(value)) for value in values]
        for name, values in zip(ds["label_name"].values.tolist(), table, strict=True)
    }


def _fixed_point(logp: NDArray[np.floating]) -> NDArray[np.uint16]:
    steps = np.clip(-logp / LOGP_UNIT, 0, _LOWEST).round()
    steps = np.where(np.isneginf(logp), _ZERO, steps)
    return np.where(np.isnan(steps), _UNKNOWN, steps).astype("<u2")


def level_bounds(quantity: Quantity, values: NDArray[np.floating]) -> list[float]:
    """Values beyond which a token takes the next colour, from the common to the rare.

    Parameters
    ----------
    quantity : Quantity
        Says which side is worse; for a two-sided quantity, absolute values are used.
    values : ndarray of float
        All values in the page; values that are not finite are left out.

    Returns
    -------
    list of float
        Quantiles (50, 75, 90, 97 and 99 % of values are better), to two digits; fewer if some
        coincide, empty if there is no value.

    Examples
    --------
    >>> kl, _, overlap, *_, reward, _ = VIEWED.values()
    >>> level_bounds(kl, np.arange(1001.0))
    [500.0, 750.0, 900.0, 970.0, 990.0]
    >>> level_bounds(overlap, np.full(8, 0.875)), level_bounds(kl, np.array([np.nan]))
    ([0.87], [])
    >>> level_bounds(reward, np.array([-4.0, 4.0]))
    [4.0]
    """
    finite = values[np.isfinite(values)].astype(float)
    if not finite.size:
        return []
    sign = 1 if quantity.two_sided else quantity.worse
    worse = np.abs(finite) if quantity.two_sided else sign * finite
    bounds = dict.fromkeys(_two_digits(float(bound)) for bound in np.quantile(worse, _LEVELS))
    return [sign * bound + 0.0 for bound in bounds]  # + 0.0: no minus zero


def _two_digits(bound: float) -> float:
    """Round up to two digits, so that a value equal to the bound stays on its side."""
    if bound == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(bound))) - 1)
    # The inner rounding undoes the division's own error: 0.31 / 0.01 is 31.000000000000004.
    return float(f"{math.ceil(round(bound / unit, 6)) * unit:.6g}")


def pack(data: bytes) -> str:
    """Compress bytes to base64 text; equal bytes give equal text.

    Examples
    --------
    >>> gzip.decompress(base64.b64decode(pack(b"<script>")))
    b'<script>'
    """
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


def pack_json(data: Any) -> str:
    """Compress a JSON value in the same way."""
    return pack(json.dumps(data, allow_nan=False, separators=(",", ":")).encode())
