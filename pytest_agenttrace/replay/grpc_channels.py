"""gRPC channels to the model: no cassette can hold what they carry, and no guard on sockets sees it.

Seen are channels made while the block lasts, with `grpc.secure_channel` and `grpc.aio.secure_channel`; not those
that were made before, at the import of a module for instance.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from pytest_agenttrace.importing import after_import

__all__ = ["no_model_channels"]

# The developer API, and Vertex AI's global, regional and multi-regional hosts.
_MODEL_HOST = re.compile(
    r"generativelanguage\.googleapis\.com|([a-z0-9-]+-)?aiplatform(\.[a-z]+\.rep)?\.googleapis\.com", re.IGNORECASE
)


@contextmanager
def no_model_channels(refuse: Callable[[str], NoReturn]) -> Iterator[None]:
    """Call `refuse(host)` where a gRPC channel to the model is made; it raises. Other channels are made as ever.

    gRPC is not imported for that; where it is imported inside the block, it is watched from then on.
    """
    with ExitStack() as stack:

        def watch() -> None:
            grpc: Any = sys.modules["grpc"]
            for owner in (grpc, getattr(grpc, "aio", None)):
                if hasattr(owner, "secure_channel"):
                    stack.enter_context(_watched(owner, refuse))

        if "grpc" in sys.modules:
            watch()
        else:
            stack.enter_context(after_import("grpc", watch))
        yield


@contextmanager
def _watched(owner: Any, refuse: Callable[[str], NoReturn]) -> Iterator[None]:
    original = owner.secure_channel

    @functools.wraps(original)
    def secure_channel(target: str, *args: Any, **options: Any) -> Any:
        host = _host(target)
        if _MODEL_HOST.fullmatch(host):
            refuse(host)
        return original(target, *args, **options)

    owner.secure_channel = secure_channel
    try:
        yield
    finally:
        if owner.secure_channel is secure_channel:
            owner.secure_channel = original


def _host(target: str) -> str:
    """`dns:///HOST:443` and `HOST:443` as the host."""
    return str(target).rpartition("/")[2].partition(":")[0]
