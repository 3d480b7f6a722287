"""Write and read a run: one directory, one file a recorded step.

::

    run_dir/
      run.json               what the run is: schema, versions, models, hashes, seed, …
      config.yaml            its settings
      metrics.jsonl          one JSON object a line: {"step": 120, "loss": 0.31, …}
      steps/000120.zarr.zip  one step (opdprobe.store.step)

Of a run that several processes wrote, a step is in as many files (opdprobe.store.step_parts).

A reader may follow a run that is being written. Plain xarray reads a step, without opdprobe::

    xr.open_dataset("zip::run_dir/steps/000120.zarr.zip", engine="zarr", consolidated=False)
"""

from opdprobe.store.run import Run, open_run
from opdprobe.store.step import estimate_bytes
from opdprobe.store.writer import RunWriter

__all__ = ["Run", "RunWriter", "estimate_bytes", "open_run"]
