"""A training job as one HTML file that opens offline.

events ▸ history (curves, phases, log lines) ▸ charts ▸ page
"""

from modelrail.report.history import History
from modelrail.report.page import render

__all__ = ["History", "render"]
