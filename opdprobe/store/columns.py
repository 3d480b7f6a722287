"""Turn logged numbers, step by step, into a dataset of columns."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from opdprobe.errors import StoreError
from opdprobe.store.schema import variable_attrs

MOST_NAMES = 10_000
# A table holds a number for each step and name. A log that has few of them, such as a new name on
# each line, would fill the memory.
_MOST_TIMES, _MOST_NUMBERS = 100, 2**22


def columns(merged: Mapping[int, Mapping[str, float]], where: str) -> xr.Dataset:
    """Make a dataset over `step`, float64, NaN where a step lacks a number.

    Parameters
    ----------
    merged : mapping of int to mapping of str to float
        Numbers by name, by step. The name ``step`` is left out.
    where : str
        What the message calls the file.

    Raises
    ------
    StoreError
        There are more than 10,000 names, or the table would hold more than 4 million numbers of
        which fewer than one in 100 is logged.
    """
    steps = sorted(merged)
    names = dict.fromkeys(name for step in steps for name in merged[step] if name != "step")
    logged = sum(len(some) - ("step" in some) for some in merged.values())
    if len(names) > MOST_NAMES:
        raise StoreError(
            f"{where} has {len(names)} names of metrics; expected at most {MOST_NAMES}: leave out "
            "those that are not needed."
        )
    if len(names) * len(steps) > max(_MOST_TIMES * logged, _MOST_NUMBERS):
        raise StoreError(
            f"{where} has {len(names)} names of metrics at {len(steps)} steps, and only {logged} "
            "numbers; expected the same names at most steps: leave out those that are rare."
        )
    values = {name: [merged[step].get(name, np.nan) for step in steps] for name in names}
    return xr.Dataset(
        {name: ("step", np.asarray(column, float)) for name, column in values.items()},
        {"step": ("step", np.asarray(steps, np.int64), variable_attrs("step"))},
    )
