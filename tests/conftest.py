"""What all tests share: no deadline for hypothesis, one thread for torch, the mark of the slow."""

import gc

import pytest
import torch
from hypothesis import settings

# Laws are tried on few examples each time; `--hypothesis-profile=thorough` tries many.
settings.register_profile("opdprobe", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("opdprobe")
torch.set_num_threads(1)

# Fixtures that take seconds: whatever needs one is slow.
SLOW_FIXTURES = {"cluster", "killed_and_resumed", "launches", "site"}
SLOW_EXAMPLES = {"opdprobe.preflight.procedure.preflight"}


def pytest_collection_modifyitems(items):
    for item in items:
        slow = SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if slow or item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    # The libraries and the thousands of tests stay until the end: without this, each collection of
    # garbage would visit them again.
    gc.collect()
    gc.freeze()
