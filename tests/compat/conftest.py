"""The module beside the test is found by its name, also where it is run as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
