"""Makes the module with the dumps importable, whatever the import mode."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
