"""A run as pages to look through: what was found, where, how sure, and whether a reader agrees.

``write_report`` makes ``RUN/report/index.html``, which opens from the disk in any browser.
"""

from cxr_fast.report.writing import Report, write_report

__all__ = ["Report", "write_report"]
