"""What can go wrong with a workflow that is run, said in one way: where, which node, what, and the way out."""

from __future__ import annotations

from pytest_agenttrace.workflow.positions import one_line

__all__ = ["InputsError", "WorkflowError", "said_of"]


class WorkflowError(Exception):
    """A workflow that cannot be run, or whose run failed: `file:line:column: node research: what, and the way out`.

    `place` is "file:line:column" or a file, `node` the id of the node that failed, None where it is about the whole.
    What another library raised is its `__cause__`.
    """

    def __init__(self, text: str, place: str = "", node: str | None = None, *, again: bool = False) -> None:
        self.text = text
        self.place = place
        self.node = node
        # Whether the same node may well succeed when it is tried again.
        self.again = again
        head = [one_line(place)] if place else []
        if node is not None:
            head.append(f"node {node}")
        super().__init__(": ".join([*head, text]))

    def __reduce__(self) -> tuple[object, ...]:
        """As its parts: a process that ran a workflow for another one hands the error over."""
        return _made, (type(self), self.text, self.place, self.node, self.again)


class InputsError(WorkflowError):
    """Inputs that a workflow cannot be run with: everything that is wrong with them, a line each."""


def _made(kind: type[WorkflowError], text: str, place: str, node: str | None, again: bool) -> WorkflowError:
    return kind(text, place, node, again=again)


def said_of(error: BaseException) -> str:
    """An exception in a message: its type, and the first line of what it says, 300 characters at most."""
    line = one_line(next((line for line in str(error).splitlines() if line.strip()), "").strip())
    line = line if len(line) <= 300 else f"{line[:297]}..."
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
