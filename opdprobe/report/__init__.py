"""What was found, to be read: of a reproduction, of a run or two, of every token of a run.

=====================  ==================================================================
`write_report`         a reproduction: its verdicts, figures and runs, as a page
`write_run_report`     a run, or two: the curves and what they say in words, as a page
`write_view`           a run, or two, token by token, as a page
`claims_table`         a reproduction's verdicts for the terminal; `write_claims` for Markdown
=====================  ==================================================================
"""

from opdprobe.report.claims import check_claims, claims_table, write_claims
from opdprobe.report.page import ReportError, write_report
from opdprobe.report.run_report import write_run_report
from opdprobe.report.view import write_view

__all__ = [
    "ReportError",
    "check_claims",
    "claims_table",
    "write_claims",
    "write_report",
    "write_run_report",
    "write_view",
]
