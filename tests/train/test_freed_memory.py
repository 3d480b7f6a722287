"""Freed memory stays with the process, unless its environment sets malloc's limits."""

import os
import platform
import subprocess
import sys

import pytest

# Faults of one page each: how often the kernel had to hand out pages for the same tensors.
COUNT = """
import resource, torch
from opdprobe.train.freed_memory import keep_freed_memory
torch.set_num_threads(1)
keep_freed_memory()
def work():
    for _ in range(10):
        a = torch.ones(2**20)  # 4 MiB
        b = a + 1
        c = b * a
        del a, b, c
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    # A dask cluster in another test leaves settings of its own behind.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT],
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
    assert faults() < 1000  # of 30 tensors of 1024 pages each
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > 20_000  # a choice that it leaves alone
