"""Which waits replay leaves out, and which stay real: counted in seconds asked for, never by the clock."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from collections.abc import Callable
from typing import Any, TypedDict

import httpx
import pytest
import tenacity
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy

from pytest_agenttrace.replay.retries import RecordedReplies, no_waiting

MODEL = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
LOCAL = "http://127.0.0.1:8080/health"


class Sleeps(list[float]):
    """The seconds that were asked of `time.sleep` and `asyncio.sleep`, in order; none is slept."""


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    asked, real = Sleeps(), asyncio.sleep

    async def asleep(delay: float, result: Any = None) -> Any:
        asked.append(delay)
        return await real(0, result)

    monkeypatch.setattr(time, "sleep", asked.append)
    monkeypatch.setattr(asyncio, "sleep", asleep)
    return asked


def refused(url: str = MODEL, status: int = 503) -> httpx.HTTPStatusError:
    reply = httpx.Response(status, request=httpx.Request("POST", url))
    return httpx.HTTPStatusError("refused", request=reply.request, response=reply)


class Failing:
    """Raises the errors it is given, one a call, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answered"

    async def later(self) -> str:
        return self()


def wrapped(by: Callable[[Exception], None]) -> BaseException:
    """The exception a user raises while a recorded error is handled."""
    try:
        try:
            raise refused()
        except httpx.HTTPStatusError as error:
            by(error)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


# What an exception comes from


def raise_from(error: Exception) -> None:
    raise RuntimeError("busy") from error


def raise_beside(error: Exception) -> None:
    raise RuntimeError("busy")


def raise_from_none(error: Exception) -> None:
    raise RuntimeError("busy") from None


def raise_again(error: Exception) -> None:
    raise error


def raise_in_a_group(error: Exception) -> None:
    raise ExceptionGroup("two", [ValueError("other"), error])


@pytest.mark.parametrize("by", [raise_from, raise_beside, raise_from_none, raise_again, raise_in_a_group])
def test_an_error_is_known_behind_what_was_raised_from_it(by: Callable[[Exception], None]) -> None:
    replies = RecordedReplies()
    error = wrapped(by)
    assert not replies.explain(error)
    replies.served(MODEL + "?key=x&alt=sse")
    assert replies.explain(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("no exchange"),
        refused(LOCAL),
        refused(MODEL.replace("2.5", "2.0")),
        httpx.HTTPStatusError("no request", request=None, response=httpx.Response(503)),  # type: ignore[arg-type]  # is so in mocks
    ],
    ids=["none", "plain", "local", "other model", "no request"],
)
def test_other_errors_are_not_known(error: BaseException | None) -> None:
    replies = RecordedReplies()
    replies.served(MODEL)
    assert not replies.explain(error)


@pytest.mark.parametrize("first", [ConnectionRefusedError("local"), TimeoutError(), refused(LOCAL)])
def test_the_nearest_error_of_an_exchange_speaks_for_those_behind_it(first: BaseException) -> None:
    first.__context__ = refused()
    replies = RecordedReplies()
    replies.served(MODEL)
    assert not replies.explain(first)


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not RecordedReplies().explain(one)


def test_the_errors_of_other_clients_are_known() -> None:
    import urllib.error
    from types import SimpleNamespace

    class Gone(Exception):
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    replies = RecordedReplies()
    replies.served(MODEL)
    url = httpx.URL(MODEL)
    for error in (
        urllib.error.HTTPError(MODEL, 503, "no", {}, None),  # type: ignore[arg-type]  # headers of no interest
        Gone(request_info=SimpleNamespace(real_url=url)),  # aiohttp's ClientResponseError
        Gone(response=SimpleNamespace(url=MODEL)),  # requests' HTTPError
        Gone(response=SimpleNamespace(_response=SimpleNamespace(url=url))),  # google-genai's, async
        Gone(response=SimpleNamespace(response_stream=SimpleNamespace(url=url))),  # google-genai's, in a stream
    ):
        assert replies.explain(error), error


# tenacity


def tries(times: int) -> dict[str, Any]:
    return {"stop": tenacity.stop_after_attempt(times), "wait": tenacity.wait_fixed(7), "reraise": True}


def test_tenacity_does_not_wait_for_a_recorded_error(sleeps: Sleeps) -> None:
    failing = Failing(refused(), wrapped(raise_from))
    with no_waiting() as replies:
        replies.served(MODEL)
        assert tenacity.Retrying(**tries(3))(failing) == "answered"
    assert (failing.calls, sum(sleeps)) == (3, 0)


def test_tenacity_does_not_wait_for_a_recorded_error_async(sleeps: Sleeps) -> None:
    failing = Failing(refused(), refused())
    with no_waiting() as replies:
        replies.served(MODEL)
        assert asyncio.run(tenacity.AsyncRetrying(**tries(3))(failing.later)) == "answered"
    assert (failing.calls, sum(sleeps)) == (3, 0)


def test_tenacity_in_loops_does_not_wait_either(sleeps: Sleeps) -> None:
    async def loop(failing: Failing) -> None:
        async for attempt in tenacity.AsyncRetrying(**tries(2)):
            with attempt:
                failing()

    with no_waiting() as replies:
        replies.served(MODEL)
        for attempt in tenacity.Retrying(**tries(2)):
            with attempt:
                Failing() if attempt.retry_state.attempt_number > 1 else Failing(refused())()
        asyncio.run(loop(Failing(refused())))
    assert sum(sleeps) == 0


def test_tenacity_waits_for_a_service_of_the_users_own(sleeps: Sleeps) -> None:
    failing = Failing(refused(LOCAL), ConnectionRefusedError("not up yet"))
    with no_waiting() as replies:
        replies.served(MODEL)
        tenacity.Retrying(**tries(3))(failing)
        tenacity.Retrying(
            stop=tenacity.stop_after_attempt(2),
            wait=tenacity.wait_fixed(7),
            retry=tenacity.retry_if_result(lambda result: True),
            retry_error_callback=lambda state: None,
        )(failing)
        asyncio.run(tenacity.AsyncRetrying(**tries(2))(Failing(refused(LOCAL)).later))
    assert sleeps == [7, 7, 7, 7]


def test_tenacity_waits_outside_of_the_block(sleeps: Sleeps) -> None:
    with no_waiting() as replies:
        replies.served(MODEL)
    tenacity.Retrying(**tries(2))(Failing(refused()))
    assert sleeps == [7]


# LangGraph


class State(TypedDict):
    said: str


def graph(failing: Failing, *, later: bool) -> Any:
    async def asking(state: State) -> State:
        return {"said": await failing.later()}

    def ask(state: State) -> State:
        return {"said": failing()}

    policy = RetryPolicy(initial_interval=7, jitter=False, retry_on=Exception, max_attempts=3)
    builder = StateGraph(State)
    builder.add_node("ask", asking if later else ask, retry_policy=policy)
    builder.add_edge(START, "ask")
    return builder.compile()


def run(app: Any, later: bool) -> Any:
    return asyncio.run(app.ainvoke({"said": ""})) if later else app.invoke({"said": ""})


@pytest.mark.parametrize(("inner", "outer"), [(False, False), (False, True), (True, True)])
def test_langgraph_does_not_wait_for_a_recorded_error(inner: bool, outer: bool, sleeps: Sleeps) -> None:
    failing = Failing(refused(), wrapped(raise_beside))
    with no_waiting() as replies:
        replies.served(MODEL)
        assert run(graph(failing, later=inner), outer) == {"said": "answered"}
    assert (failing.calls, sum(sleeps)) == (3, 0)


@pytest.mark.parametrize("later", [False, True])
def test_langgraph_waits_for_other_errors(later: bool, sleeps: Sleeps) -> None:
    failing = Failing(refused(LOCAL), ValueError("no exchange"))
    with no_waiting() as replies:
        replies.served(MODEL)
        run(graph(failing, later=later), later)
    assert (failing.calls, [seconds for seconds in sleeps if seconds]) == (3, [7, 14])


# A loop of one's own


def test_the_function_that_caught_the_error_does_not_wait(sleeps: Sleeps) -> None:
    failing, later = Failing(refused(), refused()), Failing(refused())

    def loop() -> None:
        while True:
            try:
                failing()
                return
            except httpx.HTTPStatusError:
                time.sleep(20)

    async def aloop() -> str | None:
        try:
            return await later.later()
        except httpx.HTTPStatusError:
            return await asyncio.sleep(20, "slept")

    with no_waiting() as replies:
        replies.served(MODEL)
        loop()
        assert asyncio.run(aloop()) == "slept"
    assert sleeps == [0, 0, 0]


def test_what_else_sleeps_meanwhile_sleeps(sleeps: Sleeps) -> None:
    def service_is_up() -> None:
        time.sleep(2)

    async def aservice_is_up() -> None:
        await asyncio.sleep(3)

    async def loop() -> None:
        try:
            raise refused()
        except httpx.HTTPStatusError:
            await aservice_is_up()
            await asyncio.create_task(asyncio.sleep(4))

    with no_waiting() as replies:
        replies.served(MODEL)
        time.sleep(1)
        try:
            raise refused()
        except httpx.HTTPStatusError:
            service_is_up()
        asyncio.run(loop())
        try:
            raise refused(LOCAL)
        except httpx.HTTPStatusError:
            time.sleep(5)
    assert sleeps == [1, 2, 3, 4, 5]


# Clean-up


def names() -> list[Any]:
    return [time.sleep, asyncio.sleep, tenacity.BaseRetrying.iter, tenacity.AsyncRetrying.iter]


def test_every_waiter_is_known_and_put_back() -> None:
    """Goes red where tenacity or the standard library lose a name that the waits are left out by."""
    before = names()
    with no_waiting():
        first = names()
        assert all(one is not other for one, other in zip(before, first, strict=True))
        with no_waiting():
            assert names() == first
        assert names() == first
    assert names() == before


def test_nested_blocks_know_their_own_replies(sleeps: Sleeps) -> None:
    with no_waiting() as outer:
        outer.served(MODEL)
        with no_waiting():
            tenacity.Retrying(**tries(2))(Failing(refused()))
        assert sum(sleeps) == 0
    with no_waiting():
        tenacity.Retrying(**tries(2))(Failing(refused()))
    assert sum(sleeps) == 7


def test_a_patch_of_somebody_else_that_is_undone_late() -> None:
    asked: list[float] = []
    before = time.sleep
    with no_waiting():
        ours = time.sleep
        time.sleep = asked.append  # type: ignore[assignment]  # a test's fake
        time.sleep(3)
    assert (time.sleep.__name__, asked) == ("append", [3])
    time.sleep = ours  # as monkeypatch does when it is torn down after us
    time.sleep(0)
    with no_waiting():
        assert time.sleep is ours
    assert time.sleep is before


@pytest.mark.parametrize("missing", ["DoSleep", "BaseRetrying"])
def test_a_tenacity_without_these_names_waits(missing: str, sleeps: Sleeps, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("tenacity")
    other.__dict__.update({name: value for name, value in vars(tenacity).items() if name != missing})
    monkeypatch.setitem(sys.modules, "tenacity", other)
    with no_waiting() as replies:
        replies.served(MODEL)
        assert tenacity.Retrying(**tries(2))(Failing(refused())) == "answered"
    assert sum(sleeps) == 7
