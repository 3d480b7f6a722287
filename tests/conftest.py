"""What all tests share: no deadline for hypothesis, one thread for torch, the mark of the slow."""

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Laws are tried on few examples each time; `--hypothesis-profile=thorough` tries many.
settings.register_profile("opdprobe", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("opdprobe")
torch.set_num_threads(1)

# Whole commands, pages, strangers' files and reports: half of the time of what is not slow by
# itself. Run a file of these while working on them.
SLOW_FILES = {
    *("analyses/test_tokens.py", "bad_inputs/test_attacks.py", "bad_inputs/test_browser.py"),
    *("bad_inputs/test_budget.py", "bad_inputs/test_catalogue.py", "bad_inputs/test_untrusted.py"),
    *("benchmarks/test_unseen_pairs.py", "cli/test_cli.py", "crash/test_verify.py"),
    *("hooks/served/test_engines.py", "hooks/served/test_model.py", "hooks/test_dumps.py"),
    *("hooks/test_plain_loop.py", "preflight/test_evidence.py", "preflight/test_ranking.py"),
    *("report/test_diagnosis.py", "report/test_view.py", "rollout/test_teachers.py"),
}
# Fixtures that take seconds: whatever needs one is slow.
SLOW_FIXTURES = {"cluster", "killed_and_resumed", "launches", "site"}
SLOW_EXAMPLES = {"opdprobe.preflight.procedure.preflight"}


def pytest_collection_modifyitems(items):
    gone = [name for name in SLOW_FILES if not (Path(__file__).parent / name).exists()]
    assert not gone, gone
    for item in items:
        slow = SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        slow = slow or item.nodeid.partition("::")[0].removeprefix("tests/") in SLOW_FILES
        if slow or item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    # The libraries and the thousands of tests stay until the end: without this, each collection of
    # garbage would visit them again.
    gc.collect()
    gc.freeze()
