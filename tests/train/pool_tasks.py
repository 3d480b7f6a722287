"""Tasks for test_pool.py: the processes that do them import this module by its name."""

import os
import signal
import time
from pathlib import Path

from opdprobe.errors import ConfigError


def note(folder: Path, name: str, needs: tuple[str, ...], report) -> None:
    report(0, 1)
    assert all((folder / other).exists() for other in needs), f"{name} came too early"
    (folder / name).write_text(str(os.getpid()))
    report(1, 1)


def fail(report) -> None:
    raise ConfigError("the third setting is wrong")


def die(report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_later(file: Path, report) -> None:
    """Run until a file exists, for a minute at most."""
    for _ in range(6000):
        if file.exists():
            raise ValueError("two lines\nof an error")
        time.sleep(0.01)
