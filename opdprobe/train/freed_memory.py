"""Keep the memory that tensors of a step free for those of the next."""

import ctypes
import os
import sys

# Of <malloc.h>. The first is glibc's largest; above it an allocation is the kernel's own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 * 2**20
_KEPT = 256 * 2**20


def keep_freed_memory() -> None:
    """Have glibc keep up to 256 MiB of freed memory instead of giving it back at once.

    By default a tensor of a few MB goes back to the kernel when it is freed, and the next one pays
    for its pages again, one fault each 4 KiB: on small models a tenth of a training step, and an
    element-wise operation of 3 MB then takes six times as long as one of 1.5 MB. The setting
    applies to the whole process, so no trainer makes it for its caller: ``opdprobe train`` and the
    processes of ``opdprobe reproduce`` do. Does nothing where ``MALLOC_TRIM_THRESHOLD_`` or
    ``MALLOC_MMAP_THRESHOLD_`` says otherwise, or without glibc.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
