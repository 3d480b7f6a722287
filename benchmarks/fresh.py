"""Run measurements in processes of their own, so that none affects the next."""

import json
import os
import subprocess
import sys
from typing import Any


def fresh(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script in a process of one thread; return the JSON of its last line."""
    command = [sys.executable, script, *map(str, arguments)]
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "BLOSC_NTHREADS")}
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | one_thread)
    if shown.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{shown.stderr[-2000:]}")
    return json.loads(shown.stdout.splitlines()[-1])
