"""The modules beside the tests are found by their names, also where they are run as scripts."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The directory of a run that nothing happened to; not to be changed."""
    from tiny_training import trainer

    path = tmp_path_factory.mktemp("unbroken")
    trainer(path).train()
    return path
