"""A step as a pandas DataFrame: one row a token, or one a rollout."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from opdprobe.errors import ConfigError
from opdprobe.store.schema import MODELS, RAGGED

if TYPE_CHECKING:
    import pandas

By = Literal["token", "rollout"]


def step_frame(ds: xr.Dataset, by: By, step: int) -> "pandas.DataFrame":
    """Lay out a step as a DataFrame; see `opdprobe.store.run.Run.to_dataframe`."""
    import pandas as pd  # which xarray needs; takes half as long to import as everything else

    if by not in ("token", "rollout"):
        raise ConfigError(f"by = {by!r}; expected 'token' or 'rollout'.")
    tables: dict[str, Any] = {}
    for name, variable in ds.variables.items():
        if variable.dims == ("rollout",):
            tables[str(name)] = variable.values
    for i, label in enumerate(ds["label_name"].values.tolist() if "label_name" in ds else []):
        tables[f"label_{label}"] = ds["label"].values[:, i]
    if "finished" in tables:  # of one type in all steps, known of every rollout or not
        tables["finished"] = pd.array(
            [None if np.isnan(one) else bool(one) for one in tables["finished"].tolist()], "boolean"
        )
    if by == "rollout":
        n = ds.sizes.get("rollout", 0)
        for ids, lengths in RAGGED.items():
            if ids in ds:
                ends = np.cumsum(ds[lengths].values)
                tables[ids] = [part.tolist() for part in np.split(ds[ids].values, ends[:-1])][:n]
        return pd.DataFrame({"step": np.full(n, step), "rollout": np.arange(n), **tables})
    columns: dict[str, Any] = {name: ds[name].values for name in ("step", "rollout", "position")}
    if "prompt_id" in tables:
        columns["prompt_id"] = tables["prompt_id"][columns["rollout"]]
    for name, variable in ds.variables.items():
        if variable.dims == ("state",) and name not in columns:
            columns[str(name)] = variable.values
        elif variable.dims == ("state", "model"):
            columns |= {f"{m}_{name}": variable.values[:, i] for i, m in enumerate(MODELS)}
        elif variable.dims == ("state", "model", "support"):
            columns |= {f"{m}_{name}": variable.values[:, i, i] for i, m in enumerate(MODELS)}
    columns |= {
        name: values[columns["rollout"]]
        for name, values in tables.items()
        if name.startswith("label_")
    }
    return pd.DataFrame(columns)
