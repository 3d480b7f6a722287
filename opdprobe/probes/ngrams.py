"""How much a response repeats itself."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from opdprobe.store import Run


def repeated_ngrams(
    token_id: ArrayLike, rollout: ArrayLike, position: ArrayLike, *, n: int = 4
) -> NDArray[np.float64]:
    """Find the share of each rollout's n-grams that occurred before in the same rollout (rep-n).

    Parameters
    ----------
    token_id, rollout, position : (state,) array_like of int
        Drawn tokens, the rollout that each belongs to, from 0, and its position in the response.
        Rollouts in order; positions increase within each.
    n : int, default 4
        Tokens in an n-gram, 1 or more. Only tokens at successive positions make one: no n-gram
        spans a tool's output or a position that was not recorded.

    Returns
    -------
    (max(rollout) + 1,) ndarray of float64
        1 - distinct n-grams / n-grams, in [0, 1); NaN for a rollout without an n-gram.

    Raises
    ------
    ConfigError
        n is below 1.

    References
    ----------
    Welleck et al., *Neural text generation with unlikelihood training* (2020): seq-rep-n. It needs
    no text, unlike a ratio of compression, and shows a loop of any period in a long response. Of
    what a task repeats by its form (the same words in each line of a sum) it takes some for a loop,
    so compare it with other steps of the run rather than with a limit.

    Examples
    --------
    >>> repeated_ngrams([7, 8, 7, 8, 7, 5, 5], [0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 0, 1], n=2)
    array([0.5, 0. ])
    """
    if n < 1:
        raise ConfigError(f"n = {n}; expected a whole number above 0.")
    token, rollout, position = (np.asarray(a, np.int64) for a in (token_id, rollout, position))
    n_rollout = int(rollout.max(initial=-1)) + 1
    ends = np.arange(n - 1, len(token))
    if not len(ends):
        return np.full(n_rollout, np.nan)
    starts = ends - (n - 1)
    whole = (rollout[ends] == rollout[starts]) & (position[ends] - position[starts] == n - 1)
    starts = starts[whole]
    # Number the n-grams exactly, one token at a time: a number and a token fit into 63 bits.
    number, token = rollout[starts], np.unique(token, return_inverse=True)[1]
    for place in range(n):
        both = number * (int(token.max(initial=0)) + 1) + token[starts + place]
        number = np.unique(both, return_inverse=True)[1]
    first = np.unique(number, return_index=True)[1]
    total = np.bincount(rollout[starts], minlength=n_rollout)
    distinct = np.bincount(rollout[starts[first]], minlength=n_rollout)
    with np.errstate(invalid="ignore"):  # 0 / 0: no n-gram
        return 1 - distinct / total


def repetition(run: "Run", *, n: int = 4) -> xr.Dataset:
    """Follow the repetition of a run's responses over its steps.

    Parameters
    ----------
    run : Run
        A run with the drawn tokens.
    n : int, default 4
        As in `repeated_ngrams`.

    Returns
    -------
    Dataset
        Over ``step``: ``repeated``, the mean of `repeated_ngrams` over rollouts that have n-grams;
        ``worst``, the largest of them; ``truncated``, the share of rollouts that did not end, NaN
        if that is not recorded.

    Raises
    ------
    StoreError
        The run does not hold the drawn tokens.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     found = repetition(synthetic_run(folder, steps=[0, 1], n_rollouts=4))
    >>> dict(found.sizes), sorted(found)
    ({'step': 2}, ['repeated', 'truncated', 'worst'])
    """
    rows = []
    for step in run.steps:
        ds = run.load(step)
        if "sampled_id" not in ds:
            raise StoreError(
                f"{run.path}: step {step} does not hold the drawn tokens (sampled_id)."
            )
        shares = repeated_ngrams(
            ds["sampled_id"].values, ds["rollout"].values, ds["position"].values, n=n
        )
        known = shares[~np.isnan(shares)]
        ended = float(ds["finished"].astype(float).mean()) if "finished" in ds else np.nan
        both = (known.mean(), known.max()) if known.size else (np.nan, np.nan)
        rows.append((*both, 1 - ended))
    names = ("repeated", "worst", "truncated")
    columns = np.array(rows, np.float64).reshape(-1, len(names)).T
    return xr.Dataset(
        {
            name: ("step", column, {"units": "1"})
            for name, column in zip(names, columns, strict=True)
        },
        coords={"step": list(run.steps)},
        attrs={"n": n},
    )
