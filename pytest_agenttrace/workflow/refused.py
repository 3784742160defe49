"""What other versions of the format have, and this one refuses by name: each key with the way out.

A feature that is switched off (null, false, or `enabled: false`) is let through: nothing is lost by that.
"""

from __future__ import annotations

from pytest_agenttrace.workflow.models import (
    Edge,
    Flow,
    LlmSettings,
    Logging,
    Loop,
    MlflowSettings,
    Node,
    Observability,
    Settings,
    StateField,
    WorkflowConfig,
)
from pytest_agenttrace.workflow.positions import Leaf, Table, Tree

__all__ = ["is_off", "refusal"]

_MEMORY = "memory kept between runs is not supported: give a run what it must know as inputs"
_SANDBOX = "sandboxed code is not supported: make the code a tool, and name it in 'tools'"
_OPTIMIZATION = "prompt optimization is not supported: compare prompts by tests with budgets"
_GATES = "quality gates are not supported: pytest's budget marker fails a test that costs too much"
_WEBHOOK = "webhooks are not supported: a workflow is run by a command or a test"
_CODE = "code in a workflow is not supported, and never run: make it a tool, and name it in 'tools'"
_STORAGE = "storage of runs is not supported: config.observability.mlflow keeps them"
_IN_CONFIG = "it stands in config"

_REFUSED: dict[type, dict[str, str]] = {
    WorkflowConfig: {
        "memory": _MEMORY,
        "optimization": _OPTIMIZATION,
        "sandbox": _SANDBOX,
        "webhook": _WEBHOOK,
        "webhooks": _WEBHOOK,
        "gates": _GATES,
        "storage": _STORAGE,
        "execution": f"{_IN_CONFIG}: config.execution",
        "llm": f"{_IN_CONFIG}: config.llm",
        "observability": f"{_IN_CONFIG}: config.observability",
        "name": "it stands in flow: flow.name",
        "description": "it stands in flow: flow.description",
        "version": "it stands in flow: flow.version",
    },
    Node: {
        "memory": _MEMORY,
        "sandbox": _SANDBOX,
        "code": _CODE,
        "optimize": _OPTIMIZATION,
        "optimization": _OPTIMIZATION,
        "gates": _GATES,
        "cache": "caching of replies is not supported: tests replay recorded ones",
        "mlflow": "an experiment for a node is not supported: a run's trace is one, in config.observability.mlflow",
        "tool_config": "it stands with the tool: tools: [{name: ..., config: {...}}]",
        "loop": "a loop is an edge: {from: ..., loop: {condition_field: ..., exit_to: ...}}",
        "parallel": "a parallel map is an edge: {from: ..., parallel: {items_field: ..., target_node: ..., ...}}",
        "model": "it stands in llm: llm: {model: ...}",
    },
    Edge: {
        "condition": "conditions stand in routes: routes: [{condition: {logic: ...}, to: ...}, ...]",
        "join": "nodes side by side are to: [a, b], and join where both lead: {from: a, to: c}, {from: b, to: c}",
    },
    Loop: {
        "until": "a loop ends by a bool field of the state: condition_field",
        "break_on_error": "a node that fails ends the run: config.execution.max_retries says how often it is tried",
    },
    Settings: {
        "memory": _MEMORY,
        "sandbox": _SANDBOX,
        "storage": _STORAGE,
        "optimization": _OPTIMIZATION,
        "ab_test": "A/B tests are not supported: write each prompt as a workflow, and a test for each",
        "gates": _GATES,
        "webhook": _WEBHOOK,
        "webhooks": _WEBHOOK,
        "agent": "an agent registry is not supported: a workflow is run by a command or a test",
        "profiling": "profiling is not supported: the trace has each node's duration",
        "mlflow": "MLflow's settings stand in config.observability.mlflow",
    },
    Observability: {
        "opentelemetry": "exporting elsewhere is not supported: MLflow keeps the trace",
        "prometheus": "exporting elsewhere is not supported: MLflow keeps the trace",
    },
    MlflowSettings: {
        "retention_days": "deleting old runs is not supported: mlflow gc does that",
        "redact_pii": "redaction is not supported, and would be a false promise: log_prompts: false keeps no text",
    },
    LlmSettings: {
        "api_key": "a key in a file is a leak: it is read from the environment (GOOGLE_API_KEY, OPENAI_API_KEY, ...)",
        "providers": "settings by provider are not supported: a node says its own in llm",
    },
    Logging: {"format": "a format for messages is not supported"},
    Flow: {},
    StateField: {},
}


def refusal(table: type, key: str) -> str | None:
    """Why a key of other versions is refused in a table of the file; None for a key that none of them has."""
    return _REFUSED.get(table, {}).get(key)


def is_off(tree: Tree) -> bool:
    """Whether a section says that its feature is off."""
    if isinstance(tree, Table):
        switch = tree.get("enabled")
        return isinstance(switch, Leaf) and switch.value is False
    return isinstance(tree, Leaf) and (tree.value is None or tree.value is False)
