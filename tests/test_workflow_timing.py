"""Limits of time: they hold whatever is waited for, and what nobody waits for any more goes on with nothing."""

from __future__ import annotations

import threading
import time

import pytest

from pytest_agenttrace import Reply
from pytest_agenttrace.workflow import WorkflowError
from pytest_agenttrace.workflow.timing import Stopped, TimeIsUp, goes_on, stoppable, within
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import edge, node, served, workflow


def test_what_is_not_done_in_time_knows_that_nobody_waits() -> None:
    go_on, seen = threading.Event(), list[bool]()

    def work() -> None:
        seen.append(goes_on())
        go_on.wait(30)
        seen.append(goes_on())

    with pytest.raises(TimeIsUp):
        within(0.1, work, "slow")
    go_on.set()
    until = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert seen == [True, False]
    assert goes_on()


def test_being_stopped_ends_the_waiting() -> None:
    go_on = threading.Event()
    with stoppable() as stop:
        threading.Timer(0.1, stop).start()
        with pytest.raises(Stopped):
            within(600, lambda: go_on.wait(30), "slow")
        assert not goes_on()
    go_on.set()
    assert goes_on()
    assert within(1, lambda: "done", "quick") == "done"
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 / 0, "wrong")


def test_no_model_is_asked_for_a_node_that_was_given_up() -> None:
    """A tool that takes too long ends at some time, in its thread: its answer goes to nobody, and costs nothing."""
    ended = threading.Event()

    @register("dawdle")
    def dawdle(topic: str) -> str:
        """Takes its time."""
        time.sleep(1.5)
        ended.set()
        return "late"

    asks = Reply(tool_calls=[("dawdle", {"topic": "x"})])
    found = workflow(
        {"text": "str"},
        [node("a", "hi", "text: str", tools=["dawdle"])],
        [edge("START", "a"), edge("a", "END")],
        timeout=1,
        max_retries=0,
    )
    with served([asks]) as server:
        with pytest.raises(WorkflowError, match="no answer after 1 s"):
            found.run({})
        assert ended.wait(30)
        time.sleep(0.5)
        assert len(server.requests) == 1
    unregister("dawdle")
