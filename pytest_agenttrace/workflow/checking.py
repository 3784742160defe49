"""What a workflow's parts say of each other: fields, nodes, edges, ways from START to END."""

from __future__ import annotations

from pytest_agenttrace.workflow.models import WorkflowConfig
from pytest_agenttrace.workflow.positions import Problems, Tree

__all__ = ["check"]


def check(config: WorkflowConfig, tree: Tree, problems: Problems) -> None:
    """Add what does not fit together. The parts of the workflow that could not be read are None."""
