"""Workflows in YAML: read and checked, with every error of a file at once, and run as LangGraph graphs."""

from __future__ import annotations

from pytest_agenttrace.workflow.conditions import Condition, ConditionFailed
from pytest_agenttrace.workflow.failing import InputsError, WorkflowError
from pytest_agenttrace.workflow.loading import load_config, parse_config
from pytest_agenttrace.workflow.models import (
    END,
    START,
    Edge,
    Execution,
    Flow,
    LlmSettings,
    Logging,
    Loop,
    MlflowSettings,
    Node,
    Observability,
    OutputField,
    OutputSchema,
    Parallel,
    Route,
    RouteCondition,
    Settings,
    State,
    StateField,
    Tool,
    WorkflowConfig,
)
from pytest_agenttrace.workflow.observing import Observer, TracingFailed
from pytest_agenttrace.workflow.placeholders import Placeholder, Template
from pytest_agenttrace.workflow.positions import ConfigError, Note, Place, Problem
from pytest_agenttrace.workflow.progress import progress
from pytest_agenttrace.workflow.running import Workflow, WorkflowResult
from pytest_agenttrace.workflow.schema import generated_schema, shipped_schema
from pytest_agenttrace.workflow.timing import stoppable
from pytest_agenttrace.workflow.types import Member, Mismatch, Type, mismatches

__all__ = [
    "END",
    "START",
    "Condition",
    "ConditionFailed",
    "ConfigError",
    "Edge",
    "Execution",
    "Flow",
    "InputsError",
    "LlmSettings",
    "Logging",
    "Loop",
    "Member",
    "Mismatch",
    "MlflowSettings",
    "Node",
    "Note",
    "Observability",
    "Observer",
    "OutputField",
    "OutputSchema",
    "Parallel",
    "Place",
    "Placeholder",
    "Problem",
    "Route",
    "RouteCondition",
    "Settings",
    "State",
    "StateField",
    "Template",
    "Tool",
    "TracingFailed",
    "Type",
    "Workflow",
    "WorkflowConfig",
    "WorkflowError",
    "WorkflowResult",
    "generated_schema",
    "load_config",
    "mismatches",
    "parse_config",
    "progress",
    "shipped_schema",
    "stoppable",
]
