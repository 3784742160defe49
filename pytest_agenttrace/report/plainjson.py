"""A verdict as JSON, with a shipped schema."""

from __future__ import annotations

import json
from importlib.resources import files

from pytest_agenttrace.ledger import plain
from pytest_agenttrace.report.verdict import Verdict

__all__ = ["SCHEMA", "as_json", "generated_schema", "shipped_schema"]

# Where the schema lies in the package.
SCHEMA = "diff.schema.json"


def as_json(verdict: Verdict) -> str:
    """The verdict and all of its comparison; tokens are integers, money is text, unknown is null."""
    return json.dumps(plain(verdict), indent=1, ensure_ascii=False) + "\n"


def generated_schema() -> str:
    """The JSON Schema of a verdict, as it is shipped."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Verdict).json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "The difference of two ledgers of pytest-agenttrace"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_schema() -> str:
    """The JSON Schema in the package."""
    return files("pytest_agenttrace.report").joinpath(SCHEMA).read_text(encoding="utf-8")
