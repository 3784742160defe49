"""Ledgers compared and shown: the one engine behind `agenttrace diff`, baselines and pull requests."""

from __future__ import annotations

from pytest_agenttrace.report.baseline import new_baseline, why_not
from pytest_agenttrace.report.comparing import TOLERANCE, compare
from pytest_agenttrace.report.differences import LEVELS, Comparison, Difference, Level, Row, Spent
from pytest_agenttrace.report.junit import properties
from pytest_agenttrace.report.limits import exceeded, overrun
from pytest_agenttrace.report.markdown import as_markdown, of_one_ledger
from pytest_agenttrace.report.plainjson import as_json
from pytest_agenttrace.report.pull_request import SUMMARY, append_summary, error_annotations
from pytest_agenttrace.report.text import as_text
from pytest_agenttrace.report.traffic import Traffic, read_traffic, traffic_of
from pytest_agenttrace.report.verdict import FAIL_ON, FailOn, Verdict, judge, read_tolerance

__all__ = [
    "FAIL_ON",
    "LEVELS",
    "SUMMARY",
    "TOLERANCE",
    "Comparison",
    "Difference",
    "FailOn",
    "Level",
    "Row",
    "Spent",
    "Traffic",
    "Verdict",
    "append_summary",
    "as_json",
    "as_markdown",
    "as_text",
    "compare",
    "error_annotations",
    "exceeded",
    "judge",
    "new_baseline",
    "of_one_ledger",
    "overrun",
    "properties",
    "read_tolerance",
    "read_traffic",
    "traffic_of",
    "why_not",
]
