"""Write and read a run: one directory with one file per recorded step.

::

    run_dir/
      run.json               identity of the run: schema, versions, models, hashes, seed, …
      config.yaml            settings of the run
      metrics.jsonl          one JSON object per line: {"step": 120, "loss": 0.31, …}
      steps/000120.zarr.zip  one step (opdprobe.store.step)

A step that several processes wrote has one file per process (opdprobe.store.step_parts).

A run can be read while it is being written. Plain xarray reads a step without opdprobe::

    xr.open_dataset("zip::run_dir/steps/000120.zarr.zip", engine="zarr", consolidated=False)
"""

from opdprobe.store.run import Run, open_run
from opdprobe.store.step import estimate_bytes
from opdprobe.store.writer import RunWriter

__all__ = ["Run", "RunWriter", "estimate_bytes", "open_run"]
