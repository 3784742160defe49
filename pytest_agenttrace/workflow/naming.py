"""Names in a workflow: which are refused, and why. They become span names, experiments, runs, folders and channels of a
graph, so that none may lead out of a folder, hide characters or be a name that LangGraph keeps for itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches

from pytest_agenttrace.workflow.placeholders import PlaceholderError, parse_template
from pytest_agenttrace.workflow.types import shown

__all__ = ["PROVIDERS", "RUN_NAMES", "check", "note"]

# Of the format, and of langchain's init_chat_model.
PROVIDERS = (
    *("google", "openai", "anthropic", "ollama"),
    *("anthropic_bedrock", "azure_ai", "azure_openai", "bedrock", "bedrock_converse", "cohere", "deepseek"),
    *("fireworks", "google_anthropic_vertex", "google_genai", "google_vertexai", "groq", "huggingface", "ibm"),
    *("mistralai", "nvidia", "openrouter", "perplexity", "together", "upstage", "xai"),
)
# What a run's name may hold.
RUN_NAMES = ("timestamp", "workflow_name", "workflow_version")
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "databricks-uc")
_LONGEST = 200
# Names that the format has, and those that LangGraph keeps: https://github.com/langchain-ai/langgraph, constants.py.
_RESERVED = ("START", "END")


def check(what: str, name: str) -> str | None:
    """Why a name is refused; None for one that is fine. `what` is a rule of a key: "node", "field", "run", ..."""
    hidden = next((character for character in name if not character.isprintable()), None)
    if hidden is not None:
        return f"the character U+{ord(hidden):04X} is refused in a name"
    if not name.strip():
        return "it is empty"
    longest = 2_000 if what in ("store", "address") else _LONGEST
    if len(name) > longest:
        return f"a name of {len(name):,} characters, more than {longest}"
    return _CHECKS[what](name)


def _identifier(name: str) -> str | None:
    if not name.isidentifier():
        near = re.sub(r"\W", "_", name.strip())
        more = f"; did you mean {near}?" if near.isidentifier() and not near.startswith("_") else ""
        return f"{shown(name)} is no name: letters, digits and _ are, a letter first{more}"
    if name.startswith("_"):
        return f"{shown(name)} is refused: names do not start with _"
    return None


def _node(name: str) -> str | None:
    if name in _RESERVED or name in ("start", "end"):
        return f"{shown(name)} is reserved: START and END stand for the workflow's ends"
    return _identifier(name)


def _field(name: str) -> str | None:
    if name == "state":
        return "'state' is reserved: {state.x} is how a field is named"
    return _identifier(name)


def _in_folder(name: str) -> str | None:
    """Of a name that may be a folder's or a file's."""
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"{shown(name)} is refused: a name with {_path_sign(name)} is a path"
    return None


def _path_sign(name: str) -> str:
    return next((sign for sign in ("/", "\\") if sign in name), "dots only")


def _experiment(name: str) -> str | None:
    """Databricks' experiments are paths; none leads upwards."""
    if "\\" in name or any(part in (".", "..") for part in name.split("/")):
        return f"{shown(name)} is refused: an experiment's name does not lead out of its folder"
    return None


def _run(name: str) -> str | None:
    try:
        template = parse_template(name)
    except PlaceholderError as error:
        return str(error)
    for placeholder in template.placeholders:
        found = ".".join(placeholder.path)
        if found not in RUN_NAMES:
            near = get_close_matches(found, RUN_NAMES, n=1, cutoff=0.5)
            known = ", ".join(f"{{{known}}}" for known in RUN_NAMES)
            return f"{placeholder} is unknown here: {known} are" + (f"; did you mean {{{near[0]}}}?" if near else "")
    return _in_folder(name)


def _provider(name: str) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        return f"{shown(name)} is no provider: {', '.join(PROVIDERS[:4])}, ... are"
    near = [] if name in PROVIDERS else get_close_matches(name, PROVIDERS, n=1, cutoff=0.75)
    return f"{shown(name)} is no provider; did you mean {near[0]}?" if near else None


def _model(name: str) -> str | None:
    if re.search(r"\s", name) or ".." in name:
        return f"{shown(name)} is no name of a model"
    return None


def _address(name: str) -> str | None:
    return (
        None
        if re.fullmatch(r"https?://[^\s/]+\S*", name)
        else f"{shown(name)} is no address: http://... or https://..."
    )


def _tool(name: str) -> str | None:
    if re.fullmatch(r"[^\W\d][\w-]*|[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*", name):
        return None
    return f"{shown(name)} is no tool: a name is, or module:attribute"


def _store(name: str) -> str | None:
    scheme, colon, rest = name.partition(":")
    base = scheme.partition("+")[0].lower()
    if base in ("s3", "gs", "wasbs", "abfss", "dbfs", "hdfs"):
        return f"{base}:// holds artifacts, never runs: MLflow tracks to sqlite:///mlflow.db, postgresql:// or http://"
    if base == "sqlite" and not rest.startswith("///"):
        path = rest.lstrip("/") or "mlflow.db"
        return f"{shown(name)} is no store: SQLite's has three slashes; did you mean sqlite:///{path}?"
    if not colon or base == "file" or len(base) == 1 or name in ("databricks", "databricks-uc"):
        return None
    if base not in SCHEMES:
        near = get_close_matches(base, (*SCHEMES, "file"), n=1, cutoff=0.6)
        wrong = f"{base!r} is no store of MLflow's: {', '.join(SCHEMES[:6])} are"
        return f"{wrong}; did you mean {near[0]}?" if near else wrong
    return None if rest.startswith("//") and rest != "//" else f"{shown(name)} is no store: {base}://... is"


_CHECKS: dict[str, Callable[[str], str | None]] = {
    "address": _address,
    "experiment": _experiment,
    "field": _field,
    "flow": _in_folder,
    "input": _field,
    "member": _identifier,
    "model": _model,
    "node": _node,
    "provider": _provider,
    "run": _run,
    "store": _store,
    "tool": _tool,
}


def note(what: str, name: str) -> str | None:
    """What a user should know of a name that is valid."""
    scheme, colon, _ = name.partition(":")
    if what != "store" or (colon and scheme.lower() != "file" and len(scheme) > 1) or name.startswith("databricks"):
        return None
    return (
        f"a store of files is deprecated, and MLflow 3.13 and newer refuse it without MLFLOW_ALLOW_FILE_STORE=true; "
        f"in its place: tracking_uri: {REPLACEMENT}"
    )


REPLACEMENT = '"sqlite:///mlflow.db"'
