"""`kinject.results`: runs and sweeps read back, for notebooks. They are read in reports/results.py."""

from kinject.reports.results import FinishedRun, FinishedSweep

__all__ = ["FinishedRun", "FinishedSweep"]
