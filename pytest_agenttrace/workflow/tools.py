"""The tools of a workflow's nodes: by a registered name, by an import path, or from an installed package.

    from pytest_agenttrace.workflow.tools import register

    @register("web_search")
    def web_search(query: str) -> str:
        "Search the web."
        ...

A tool is a LangChain tool, a function with a docstring, or what makes one: a class, or with `config` a function.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pytest_agenttrace.workflow.failing import WorkflowError, said_of
from pytest_agenttrace.workflow.models import Node, Tool, WorkflowConfig
from pytest_agenttrace.workflow.reading import did_you_mean

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

T = TypeVar("T")

__all__ = ["GROUP", "register", "resolved_tools", "unregister"]

# The entry points of installed packages that bring tools: their names are the tools'.
GROUP = "agenttrace.tools"

_registered: dict[str, Any] = {}
_importing = threading.Lock()


@overload
def register(name: str) -> Callable[[T], T]: ...
@overload
def register(name: str, tool: T) -> T: ...
def register(name: str, tool: Any = None) -> Any:
    """Give a tool the name by which workflows know it, as a decorator or by `register("web_search", tool)`.

    A later tool of the same name takes its place. Returns the tool itself. Raises TypeError for what cannot be one.
    """

    def keep(given: T) -> T:
        if not callable(given) and not _is_tool(given):
            raise TypeError(f"register({name!r}): {given!r} is no tool and no function")
        _registered[name] = given
        return given

    return keep if tool is None else keep(tool)


def unregister(name: str) -> None:
    """Forget a registered tool, and nothing where there is none of the name."""
    _registered.pop(name, None)


def resolved_tools(config: WorkflowConfig, node: Node) -> tuple[BaseTool, ...]:
    """The tools of a node, ready to be called. Raises `WorkflowError` for the first that is none, saying why."""
    found: dict[str, BaseTool] = {}
    for tool in node.tools:
        try:
            made = _as_tool(tool, _found(config, tool.name))
        except _NoTool as error:
            raise WorkflowError(f"tool {tool.name}: {error}", node.place, node.id) from error.__cause__
        if made.name in found:
            raise WorkflowError(f"tool {tool.name}: a second tool is called {made.name}", node.place, node.id)
        found[made.name] = made
    return tuple(found.values())


class _NoTool(Exception):
    pass


def _found(config: WorkflowConfig, name: str) -> Any:
    if name in _registered:
        return _registered[name]
    installed = _installed()
    if name in installed:
        try:
            return installed[name].load()
        except Exception as error:
            raise _NoTool(f"the entry point {installed[name].value} cannot be loaded: {said_of(error)}") from error
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        raise _NoTool(_unknown(name, [*_registered, *installed]))
    return _imported(module, attribute, config.path.resolve().parent)


def _installed() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP)}


def _unknown(name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    there = f"registered: {', '.join(sorted(known))}" if known else "nothing is registered"
    ways = [
        f'register it, pytest_agenttrace.workflow.tools.register("{name}")',
        "name it by import, module:attribute",
        f"or install a package with an entry point {name} in {GROUP}",
    ]
    return f"no tool of this name is known{near}; {there}. {', '.join(ways)[0].upper()}{', '.join(ways)[1:]}"


def _imported(module: str, attribute: str, folder: Path) -> Any:
    with _importing, _findable(folder, Path.cwd()):
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise _NoTool(f"{module} cannot be imported: {said_of(error)}") from error
    _of_this_folder(module, folder)
    if not hasattr(found, attribute):
        near = did_you_mean(attribute, [name for name in vars(found) if not name.startswith("_")], f"{module}:{{}}")
        raise _NoTool(f"{module} has no {attribute!r}{near}")
    return getattr(found, attribute)


@contextmanager
def _findable(*folders: Path) -> Iterator[None]:
    """The folders first in Python's search while a tool is imported: the workflow's own, then where it is run."""
    before = [*sys.path]
    sys.path[:0] = [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _of_this_folder(module: str, folder: Path) -> None:
    """Two workflows may each have a tools.py beside them, and Python keeps one module of a name."""
    top = module.partition(".")[0]
    own = next((path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()), None)
    file = getattr(sys.modules.get(top), "__file__", None)
    if own is not None and file is not None and Path(file).resolve() != own.resolve():
        raise _NoTool(f"{own} cannot be imported: {file} is imported under the same name already; rename one of them")


def _is_tool(given: Any) -> bool:
    from langchain_core.tools import BaseTool

    return isinstance(given, BaseTool)


def _as_tool(tool: Tool, given: Any) -> BaseTool:
    made = _made(tool, given)
    if _is_tool(made):
        found: BaseTool = made
    elif callable(made):
        found = _wrapped(tool, made)
    else:
        raise _NoTool(f"{type(made).__name__} is no tool: a LangChain tool is, or a function")
    # By a name of the workflow's file it is known to the model and in the trace; by a path it has its own.
    named = tool.name if tool.name in _registered or "." not in tool.name.replace(":", ".") else found.name
    return found if found.name == named else found.model_copy(update={"name": named})


def _made(tool: Tool, given: Any) -> Any:
    """What a class makes, or with `config` a function; a tool that is ready takes no config."""
    if _is_tool(given):
        if tool.config:
            raise _NoTool(f"it is ready made, and takes no config ({', '.join(tool.config)})")
        return given
    if not inspect.isclass(given) and not tool.config:
        return given
    try:
        return given(**tool.config)
    except Exception as error:
        raise _NoTool(f"it cannot be made with config {dict(tool.config)}: {said_of(error)}") from error


def _wrapped(tool: Tool, function: Any) -> BaseTool:
    from langchain_core.tools import StructuredTool

    # An object with __call__ is asked by its method, which has the signature and the docstring.
    target = function if inspect.isroutine(function) else type(function).__call__.__get__(function)
    name = tool.name.replace(":", ".").rpartition(".")[2]
    try:
        if inspect.iscoroutinefunction(target):
            return StructuredTool.from_function(coroutine=target, name=name)
        return StructuredTool.from_function(target, name=name)
    except Exception as error:
        raise _NoTool(f"the function cannot be a tool: {said_of(error)}") from error
