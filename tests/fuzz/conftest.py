"""The fuzzers are found by their names, as when they are run as scripts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
