"""A workflow's file, loaded: read, checked, or refused with everything that is wrong in it."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from pytest_agenttrace.workflow.checking import check
from pytest_agenttrace.workflow.models import WorkflowConfig
from pytest_agenttrace.workflow.positions import LARGEST, Problems, compose
from pytest_agenttrace.workflow.reading import read_workflow

__all__ = ["load_config", "parse_config"]


def load_config(path: Path | str) -> WorkflowConfig:
    """A workflow from its file. Raises `ConfigError` naming everything that is wrong in it, with line and column."""
    file = Path(path)
    problems = Problems(file)
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
        # One byte more than is allowed: enough to know. A folder, a pipe or a device is not read at all.
        data = _start_of(file) if regular else b""
    except FileNotFoundError:
        raise problems.fail("no such file") from None
    except (OSError, ValueError) as error:
        raise problems.fail(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not regular:
        raise problems.fail("no file")
    return parse_config(data, file)


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(LARGEST + 1)


def parse_config(data: bytes | str, file: Path | str = "workflow.yaml") -> WorkflowConfig:
    """A workflow from its text; `file` is what messages call it. Raises `ConfigError`."""
    problems = Problems(Path(file))
    tree = compose(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, problems)
    found = read_workflow(tree, problems)
    if found is not None:
        check(found, tree, problems)
    problems.raise_any()
    assert found is not None  # noqa: S101  # else there is a problem
    return replace(found, notes=tuple(problems.notes))
