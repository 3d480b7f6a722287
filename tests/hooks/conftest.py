"""Makes the module that writes dumps importable."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "rollout" / "dumps"))
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def assert_same_steps():
    """Compare two runs' steps: the same rollouts and tokens, and numbers within float error."""

    def check(got, want):
        for step in want.steps:
            mine, theirs = got.load(step), want.load(step)
            assert list(mine.variables) == list(theirs.variables)
            for name, values in theirs.variables.items():
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(mine[name], values, rtol=1e-3, atol=1e-4)
                else:
                    np.testing.assert_array_equal(mine[name], values)

    return check
