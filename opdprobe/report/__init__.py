"""What a reproduction found: the verdicts for the terminal, a page for the browser."""

from opdprobe.report.claims import claims_table
from opdprobe.report.page import ReportError, write_report

__all__ = ["ReportError", "claims_table", "write_report"]
