"""Pages on a recorded run: its curves, a diagnosis in words, and every token.

=====================  ==================================================================
`write_run_report`     the curves and the diagnosis of one run, or of two side by side
`write_view`           every token of one run or two
=====================  ==================================================================
"""

from opdprobe.report.run_report import write_run_report
from opdprobe.report.view import write_view

__all__ = ["write_run_report", "write_view"]
