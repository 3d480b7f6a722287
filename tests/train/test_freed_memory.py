"""Freed memory stays with the process, unless its environment sets malloc's limits."""

import os
import platform
import subprocess
import sys

import pytest

# Faults of one page each: how often the kernel had to hand out pages for the same arrays of 3 MiB.
COUNT = """
import resource
from opdprobe.train.freed_memory import keep_freed_memory
{ones}
keep_freed_memory()
def work():
    for _ in range(10):
        a = ones(3 * 2**18)
        b = a + 1
        c = b * a
        del a, b, c
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

TENSORS = "from torch import ones, set_num_threads; set_num_threads(1)"
ARRAYS = "from functools import partial; import numpy; ones = partial(numpy.ones, dtype='f4')"


def faults(ones, **environment):
    # A dask cluster in another test leaves settings of its own behind.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT.replace("{ones}", ones)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.slow
def test_tensors_of_a_step_take_the_pages_of_the_last():
    assert faults(TENSORS) < 1000  # of 30 tensors of 768 pages each
    # A choice that it leaves alone. Arrays show it as well, and sooner: torch is not imported.
    assert faults(ARRAYS, MALLOC_MMAP_THRESHOLD_="131072") > 15_000
