"""Summarise the number of tokens that hold a mass; it is known only up to k."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.evaluate import by_step, check_steps, step_coord
from opdprobe.store.schema import MODELS

if TYPE_CHECKING:
    from opdprobe.store import Run


def mass_set_summary(
    run_or_dataset: "Run | xr.Dataset",
    model: str = "student",
    *,
    mass: float = 0.97,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
) -> xr.Dataset:
    """Summarise `mass_set_size` over the states of each step, with the states that exceed k.

    A state that needs more tokens than the k that were recorded is right-censored at k: it counts
    as k + 1. A mean is then a lower bound. A quantile of at most k is exact, since it does not
    depend on how far the censored states lie above k.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, read one step at a time, or states in the store's schema.
    model : {"student", "teacher"}
        The model, on its own top-k list.
    mass : float, default 0.97
        Probability mass to hold, in (0, 1].
    quantiles : sequence of float
        Quantiles to compute, each in (0, 1].

    Returns
    -------
    Dataset
        Over ``step`` and ``quantile``:

        - ``mean``: mean number of tokens, k + 1 for more than k: a lower bound where
          ``n_censored`` is above 0; NaN where no state has a value;
        - ``quantile_value`` (quantile, step): the smallest number of tokens that at least this
          share of the states needs at most; k + 1 where it is above k; NaN as above;
        - ``quantile_censored`` (quantile, step): whether it is above k;
        - ``n``, ``n_censored``, ``n_missing``: states with a value, those of them that need more
          than k tokens, and states without a value (a NaN in the list);
        - ``share_censored``: ``n_censored / n``, unit 1.

        Its attributes are ``k``, ``mass``, ``model``, ``units``, ``long_name`` and ``comment``,
        which says in words how many states are censored.

    Raises
    ------
    ConfigError
        If `model` or `mass` is invalid, or a quantile is not in (0, 1].
    ValueError
        If there is no step, or the steps differ in k.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> found = mass_set_summary(synthetic_step(k=4), mass=0.9, quantiles=[0.5])
    >>> found["mean"].sizes, found["quantile_value"].dims
    (Frozen({'step': 1}), ('quantile', 'step'))
    >>> found.attrs["long_name"]
    'student tokens holding 90 %, 5 for more than 4'
    """
    if model not in MODELS:
        raise ConfigError(f"model = {model!r}; expected one of {MODELS}.")
    levels = np.asarray(quantiles, np.float64)
    if levels.ndim != 1 or not ((levels > 0) & (levels <= 1)).all():
        raise ConfigError(f"quantiles = {quantiles!r}; expected a list of numbers in (0, 1].")
    steps: list[int] = []
    counts: list[NDArray[np.int64]] = []
    missing: list[int] = []
    attrs: dict[str, str] = {}
    for step, part in by_step(run_or_dataset):
        size = part.opd.mass_set_size(model, mass=mass)
        values, attrs = size.values, size.attrs
        known = values[~np.isnan(values)].astype(np.int64)
        steps.append(step)
        counts.append(np.bincount(known - 1, minlength=part.sizes["rank"] + 1))
        missing.append(values.size - known.size)
    check_steps(steps)
    if len({count.size for count in counts}) > 1:
        raise ValueError("the steps differ in k; expected one: a mean depends on it.")

    table = np.array(counts)  # (step, size): states that need 1, …, k, more than k tokens
    n, censored, k = table.sum(1), table[:, -1], table.shape[1] - 1
    with np.errstate(invalid="ignore"):  # 0/0 where nothing was seen
        mean = table @ np.arange(1.0, k + 2) / n
        reached = np.cumsum(table, axis=1) / n[:, None]
        share = censored / n
    # Without slack, a share such as 3 · 0.1 could fall short of the level 0.3 by a rounding error.
    at = (reached[None] >= levels[:, None, None] - 1e-12).argmax(-1) + 1.0
    at = np.where(n > 0, at, np.nan)
    states, per_step = {"units": "1"}, ("step",)
    return xr.Dataset(
        {
            "mean": (per_step, mean, attrs),
            "quantile_value": (("quantile", "step"), at, attrs),
            "quantile_censored": (("quantile", "step"), at > k),
            "n": (per_step, n, states | {"long_name": "states"}),
            "n_censored": (per_step, censored, states | {"long_name": f"states above {k}"}),
            "n_missing": (per_step, np.array(missing), states | {"long_name": "states left out"}),
            "share_censored": (per_step, share, states | {"long_name": f"share above {k}"}),
        },
        {"quantile": levels, **step_coord(steps)},
        {
            **attrs,
            "model": model,
            "mass": mass,
            "k": k,
            "comment": _comment(int(censored.sum()), int(n.sum()), k),
        },
    )


def _comment(censored: int, n: int, k: int) -> str:
    if not censored:
        return f"exact: no state needs more than {k} tokens"
    return (
        f"the mean is a lower bound: {censored:,} of {n:,} states ({censored / n:.1%}) need more "
        f"than {k} tokens and count as {k + 1}"
    )
