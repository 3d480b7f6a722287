"""``python -m opdprobe``: the command line."""

import sys

from opdprobe.cli.parser import main

sys.exit(main())
