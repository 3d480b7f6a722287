"""Run measurements in processes of their own, so that none affects the next."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}


class Failed(SystemExit):
    """A measurement's process failed; ends the benchmark unless it is caught.

    Attributes
    ----------
    reason
        What it failed of, in one line.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def fresh(
    script: str,
    *arguments: object,
    environment: Mapping[str, str] = ONE_THREAD,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run a script in a process of its own; return the JSON of its last line.

    Parameters
    ----------
    script, *arguments
        The script and its arguments.
    environment
        Variables to set. By default, the process may use one thread only.
    timeout
        Seconds after which it is killed.

    Raises
    ------
    Failed
        The process failed or was killed.
    """
    command = [sys.executable, script, *map(str, arguments)]
    try:
        shown = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"killed after {timeout:.0f} seconds"
        raise Failed(f"{' '.join(command)} was {reason}.", reason) from error
    if shown.returncode:
        lines = [line for line in shown.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        # A library may warn after the error, while the process ends.
        reason = (errors or lines or [f"exit status {shown.returncode}"])[-1]
        raise Failed(f"{' '.join(command)} failed:\n{shown.stderr[-2000:]}", reason)
    return json.loads(shown.stdout.splitlines()[-1])
