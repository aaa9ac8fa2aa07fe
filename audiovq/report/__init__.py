"""The listening report: one HTML file that opens from disk, for a run or for generated pieces."""

from audiovq.report.page import report_pieces as report_pieces
from audiovq.report.page import report_run as report_run
from audiovq.report.page import try_report as try_report
