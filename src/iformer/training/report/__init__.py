"""The report of a training run: `report.md` and the pictures that it shows."""

from iformer.training.report.markdown import write_report

__all__ = ["write_report"]
