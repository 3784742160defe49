"""What a fault makes of one exchange: the reply its client gets, how it is delivered, and the call it is told as."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from pytest_agenttrace.calls import Call, Caller, Endpoint
from pytest_agenttrace.replay.delivery import Delivery, current_delivery
from pytest_agenttrace.replay.faults import Fault
from pytest_agenttrace.replay.matching import Recorded, unpacked
from pytest_agenttrace.wire import read_call

__all__ = ["altered_call", "call_of", "deliver", "fail", "stand_in"]


def call_of(entry: Recorded) -> Call:
    """A recorded exchange with the API as a call; nobody has asked it in this run."""
    endpoint = entry.request.endpoint
    if endpoint is None:
        raise ValueError(f"reply {entry.number} is none of the Gemini API")
    return read_call(
        entry.number,
        Caller(node=entry.node),
        endpoint,
        entry.status,
        entry.reply,
        recorded_at=entry.recorded_at,
        duration=entry.duration,
        at=0.0,
    )


def stand_in(
    fault: Fault, number: int, asking: Caller, endpoint: Endpoint, spared: Recorded | None
) -> tuple[dict[str, Any] | None, Call]:
    """What a request is answered by a fault that stands for its reply, None where nothing comes; and the call.
    `spared` is the recorded reply, which knows what the prompt counts."""
    usage = call_of(spared).usage if spared is not None else None
    reply = fault.reply(endpoint, usage.input_tokens if usage is not None else None)
    status, body = (reply["status"]["code"], reply["body"]["string"]) if reply is not None else (None, None)
    call = read_call(number, asking, endpoint, status, body, at=time.time())
    return reply, dataclasses.replace(call, injected=fault.name)


def fail(fault: Fault) -> NoReturn:
    """Raise the error of a connection on which nothing comes."""
    raise (current_delivery() or Delivery()).fail("timeout" if fault.kind == "timeout" else "reset")


def deliver(fault: Fault, reply: Mapping[str, Any]) -> dict[str, Any]:
    """A reply as its client gets it, altered by a fault, and how: late, or cut."""
    plain, delivery = unpacked(reply), current_delivery()
    plain["body"] = {"string": fault.alter(plain["body"]["string"], plain["status"]["code"])}
    if delivery is not None:
        delivery.reply, delivery.cut, delivery.wait = plain, fault.kind == "truncated", fault.seconds
    elif fault.seconds:
        threading.Event().wait(fault.seconds)
    return plain


def altered_call(fault: Fault, call: Call, reply: bytes) -> Call:
    """A call whose reply, given as plain bytes, a fault has altered. It cost what the whole reply says."""
    seen = read_call(call.index, call.caller, call.endpoint, call.status, fault.alter(reply, call.status or 0))
    return dataclasses.replace(
        call,
        finish_reason=seen.finish_reason,
        tool_requests=seen.tool_requests,
        server_tools=seen.server_tools,
        injected=fault.name,
    )
