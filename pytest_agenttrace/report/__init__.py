"""Ledgers compared and shown: the one engine behind `agenttrace diff`, baselines and pull requests."""

from __future__ import annotations

from pytest_agenttrace.report.comparing import TOLERANCE, compare
from pytest_agenttrace.report.differences import LEVELS, Comparison, Difference, Level, Row, Spent

__all__ = ["LEVELS", "TOLERANCE", "Comparison", "Difference", "Level", "Row", "Spent", "compare"]
