"""What a run says: its curves, what they say in words, every token.

=====================  ==================================================================
`write_run_report`     a run, or two: the curves and what they say in words, as a page
`write_view`           a run, or two, token by token, as a page
=====================  ==================================================================
"""

from opdprobe.report.run_report import write_run_report
from opdprobe.report.view import write_view

__all__ = ["write_run_report", "write_view"]
