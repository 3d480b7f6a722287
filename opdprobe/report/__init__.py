"""What a reproduction found: the verdicts for the terminal, a page for the browser, a table."""

from opdprobe.report.claims import check_claims, claims_table, write_claims
from opdprobe.report.page import ReportError, write_report

__all__ = ["ReportError", "check_claims", "claims_table", "write_claims", "write_report"]
