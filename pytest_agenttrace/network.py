"""What leaves this machine through Python's sockets and resolver, judged while a guard is open.

An audit hook (PEP 578) sees it whatever class or early import it is made through, and whatever other guards have
patched. Wrappers around the socket class and the resolver see what an audit event does not tell: a name before
`connect` itself resolves it, a flag, and the addresses a lookup gave.

Judged: IPv4 and IPv6, TCP and UDP, lookups and reverse lookups. Open: every other family (unix, netlink, vsock),
sockets connected before. Not seen: C libraries with sockets of their own (uvloop, libpq, gRPC, libcurl; c-ares: its
lookups) and other programs. Forks inherit the guard; spawned processes do not. The hook cannot be taken away again: it
stays, and does nothing while no guard is open.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ConnectionRefused",
    "LookupRefused",
    "NetworkRefused",
    "Refusal",
    "ReverseLookupRefused",
    "allowed",
    "guarded",
    "wrong_hosts",
]

Allows = Callable[[str, int | None], bool]
Refused = Callable[["Refusal"], str]
Target = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused. `host` is a name or an address, `port` None where a lookup names none; `text` is one line,
    `search.example.com:443 (getaddrinfo)`."""

    host: str
    port: int | None
    text: str

    @property
    def place(self) -> str:
        """Host and port as `hosts` takes them: `search.example.com:443`, `[2001:db8::7]:443`, `10.0.0.7`."""
        return _place(self.host, self.port)


def _place(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class NetworkRefused(OSError):
    """A connection or lookup refused by a guard; `refusal` says which. What a machine without a network raises, so
    that the code under test meets what it knows; a subclass of neither ConnectionError nor TimeoutError, which
    many retry."""

    refusal: Refusal


class ConnectionRefused(NetworkRefused):
    """A connection to an address; `errno` is ENETUNREACH."""


class LookupRefused(NetworkRefused, socket.gaierror):
    """A lookup of a name; `errno` is EAI_NONAME, final where EAI_AGAIN would invite a retry."""


class ReverseLookupRefused(NetworkRefused, socket.herror):
    """A lookup of an address's name; `errno` is 1, HOST_NOT_FOUND."""


# What a host is


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `text` is, in any form the resolver takes as one: `127.1`, `0x7f000001`, `fe80::1%eth0`."""
    with suppress(ValueError):
        found = ipaddress.ip_address(text.partition("%")[0])
        return getattr(found, "ipv4_mapped", None) or found
    if re.fullmatch(r"[0-9a-fx.]+", text):
        with suppress(OSError):
            return ipaddress.IPv4Address(socket.inet_aton(text))
    return None


@functools.lru_cache(maxsize=1_000)
def _plain(host: str) -> str:
    """One spelling for each host: lower case, no root dot, IDNA, addresses in their usual form."""
    text = host.lower()
    text = {"": "0.0.0.0", "<broadcast>": "255.255.255.255"}.get(text, text)  # noqa: S104  # as connect() reads them
    address = _address(text)
    if address is not None:
        return str(address)
    # Longer than any name: the codec is slow on those.
    with suppress(UnicodeError):
        text = text if len(text) > 1_000 else text.encode("idna").decode("ascii")
    return text.removesuffix(".")


_OWN_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}


def _is_here(host: str) -> bool:
    """Whether a host in `_plain` spelling is this machine: loopback, 0.0.0.0, localhost, its own name."""
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host in _OWN_NAMES or host.endswith(".localhost") or host == _plain(socket.gethostname())


# What is allowed


def allowed(hosts: Sequence[str]) -> Allows:
    """A predicate of host and port: loopback and this machine's own name always, and `hosts`.

    A host is a name or an address, with or without a port: `postgres:5432`, `db.internal`, `10.0.0.7`, `[::1]:80`,
    `*.corp.example` (names below it, not itself). Without a port in the question, as in a lookup, the host decides.
    Raises ValueError with all that is wrong.
    """
    if problems := wrong_hosts(hosts):
        raise ValueError("; ".join(problems))
    named = list(map(_split, hosts))

    def allows(host: str, port: int | None) -> bool:
        host = _plain(host)
        return _is_here(host) or any(
            (host == name or (name.startswith("*.") and host.endswith(name[1:])))
            and (port is None or wanted is None or port == wanted)
            for name, wanted in named
        )

    return allows


def wrong_hosts(hosts: object) -> tuple[str, ...]:
    """What is wrong with `hosts`, a sentence each."""
    if not isinstance(hosts, list | tuple):
        return (f'hosts={hosts!r} is not a list of hosts: write hosts=["postgres:5432"]',)
    return tuple(problem for entry in hosts if (problem := _wrong(entry)) is not None)


_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*):(?P<port>[0-9]+)", re.ASCII)
_HOST = re.compile(r"(\*\.)?[\w-]+(\.[\w-]+)*\.?")


def _split(entry: str) -> tuple[str, int | None]:
    found = _PORT.fullmatch(entry)
    host, port = (found["host"], int(found["port"])) if found else (entry, None)
    wildcard = "*." if host.startswith("*.") else ""
    return wildcard + _plain(host.removeprefix(wildcard).removeprefix("[").removesuffix("]") or "?"), port


def _wrong(entry: object) -> str | None:
    """What is wrong with one of `hosts`, in a sentence."""
    form = 'write "db.internal", "postgres:5432", "[::1]:80" or "*.corp.example"'
    if not isinstance(entry, str):
        return f"hosts: {entry!r} is no text: {form}"
    host, port = _split(entry)
    if "/" in entry:
        return f"hosts: {entry!r} is a URL or a network, not a host: {form}"
    if port is not None and not 0 < port < 65536:
        return f"hosts: {entry!r} has no port between 1 and 65535"
    if entry.count("[") != entry.count("]") or (_address(host) is None and _HOST.fullmatch(host) is None):
        return f"hosts: {entry!r} is no host: {form}"
    return None


# What is asked


def _text(host: object) -> str | None:
    """A host as text; None where Python itself says what is wrong with it."""
    if isinstance(host, bytes | bytearray):
        return bytes(host).decode("utf-8", "replace")
    return host if isinstance(host, str) else None


def _port(port: object) -> int | None:
    """A port number; a service's name becomes its number, 0 is none."""
    text = _text(port)
    if text is None:
        return port or None if isinstance(port, int) else None
    if text.isdecimal():
        return int(text) or None
    with suppress(OSError, ValueError):
        return socket.getservbyname(text)
    return None


def _of_socket(sock: Any, address: Any = None) -> Target | None:
    if getattr(sock, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return None
    if not isinstance(address, tuple) or len(address) < 2 or (host := _text(address[0])) is None:
        return None
    return host, _port(address[1])


def _of_lookup(host: Any, port: Any = None, *_: Any) -> Target | None:
    text = _text(host)
    # An address is not looked up; what is not looked up does not leave.
    return None if not text or _address(text.lower()) is not None else (text, _port(port))


def _of_reverse(host: Any) -> Target | None:
    text = _text(host[0] if isinstance(host, tuple) and host else host)
    return None if text is None else (text, None)


_ASKED: dict[str, Callable[..., Target | None]] = {
    "socket.connect": _of_socket,
    "socket.sendto": _of_socket,
    "socket.sendmsg": _of_socket,
    "socket.getaddrinfo": _of_lookup,
    "socket.gethostbyname": _of_lookup,
    "socket.gethostbyaddr": _of_reverse,
    "socket.getnameinfo": _of_reverse,
}
_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


# The guard


class _Guard:
    def __init__(self, allows: Allows, refused: Refused) -> None:
        self.allows, self.refused = allows, refused


class _Here(threading.local):
    # Whether this thread's call was judged already, or is our own.
    judged = False


_lock = threading.RLock()
_guards: tuple[_Guard, ...] = ()
_hooked = False
_unpatch: list[Callable[[], None]] = []
_here = _Here()
# Address -> the names whose lookup gave it, latest last; keys only.
_names: dict[str, dict[str, None]] = {}


@contextmanager
def guarded(allows: Allows, refused: Refused) -> Iterator[None]:
    """Refuse connections and lookups that `allows(host, port)` does not allow, in every thread, while open.

    `allows` may be asked more than once; an address is also asked by the names whose lookup gave it. `refused` is
    called once for each refusal, in the thread or task that connects, and gives the message of the error; what it
    raises itself goes through as it is. Guards nest: what one open guard refuses is refused, the innermost is asked
    first. Sockets that are connected stay connected.
    """
    global _guards
    guard = _Guard(allows, refused)
    try:
        with _lock:
            _hook()
            if not _guards:
                _unpatch.extend(_patch())
            _guards = (*_guards, guard)
        yield
    finally:
        with _lock:
            _guards = tuple(other for other in _guards if other is not guard)
            if not _guards:
                while _unpatch:
                    _unpatch.pop()()
                _names.clear()


def _judge(event: str, *args: Any) -> str | None:
    """Raise where a guard refuses; the name where a name was allowed."""
    asked = _ASKED[event](*args)
    if asked is None:
        return None
    host, port = _plain(asked[0]), asked[1]
    names = list(_names.get(host, ()))
    for guard in reversed(_guards):
        if not any(guard.allows(name, port) for name in (host, *names)):
            raise _refuse(guard, event, (names or [host])[-1], port, host)
    return host


def _refuse(guard: _Guard, event: str, name: str, port: int | None, host: str) -> NetworkRefused:
    call = event.removeprefix("socket.") + (f" to {host}" if name != host else "")
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    refusal = Refusal(shown, port, f"{_place(shown, port)} ({call})")
    message = guard.refused(refusal)
    error: NetworkRefused
    if _address(host) is None:
        error = LookupRefused(socket.EAI_NONAME, message)
    elif event in ("socket.gethostbyaddr", "socket.getnameinfo"):
        error = ReverseLookupRefused(1, message)
    else:
        error = ConnectionRefused(errno.ENETUNREACH, message)
    error.refusal = refusal
    return error


@contextmanager
def _judged() -> Iterator[None]:
    before, _here.judged = _here.judged, True
    try:
        yield
    finally:
        _here.judged = before


def _remember(name: str, answer: Iterable[Any]) -> None:
    """Know an address by a name, from the answer of `getaddrinfo`."""
    for info in answer:
        names = _names.setdefault(_plain(str(info[4][0])), {})
        names.pop(name, None)
        names[name] = None


def _hook() -> None:
    global _hooked
    if _hooked:
        return
    _hooked = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        # Called for every audit event of the process, some 1,500 a test: the common way out comes first.
        if event not in _ASKED or not _guards or _here.judged:
            return
        with _judged():
            name = _judge(event, *args)
            if name is not None and event in _LOOKUPS:
                # Not through the wrapper: what it will answer is asked here, to know it again.
                with suppress(Exception):
                    _remember(name, socket.getaddrinfo(name, None))

    # Another hook may refuse it: the wrappers see nearly everything, too.
    with suppress(Exception):
        sys.addaudithook(hook)


# Wrappers


def _patch() -> Iterator[Callable[[], None]]:
    """Wrap the socket class and the resolver; gives what takes each wrapper away where it still is in place."""
    # Another guard may have put a subclass in place of socket.socket: the class below it is what all derive from.
    sock = next(c for c in reversed(socket.socket.__mro__) if c not in (object, socket.SocketType))
    for method in ("connect", "connect_ex", "sendto", "sendmsg"):
        if hasattr(sock, method):
            yield _put(sock, method, _sending(method, getattr(sock, method)))
    # What socket.getaddrinfo calls, itself often replaced by other guards. Where it is gone, the hook does its part.
    resolver = sys.modules.get("_socket")
    if resolver is not None and hasattr(resolver, "getaddrinfo"):
        yield _put(resolver, "getaddrinfo", _looking_up(resolver.getaddrinfo))
    yield _put(socket, "getnameinfo", _naming(socket.getnameinfo))


def _put(owner: Any, name: str, wrapper: Any) -> Callable[[], None]:
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, wrapper)

    def take_away() -> None:
        if vars(owner).get(name) is not wrapper:
            return
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return take_away


def _sending(method: str, before: Callable[..., Any]) -> Callable[..., Any]:
    event = "socket.connect" if method == "connect_ex" else f"socket.{method}"

    @functools.wraps(before)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not _guards or _here.judged or not args or (method == "sendmsg" and len(args) < 4):
            return before(self, *args, **kwargs)
        with _judged():
            try:
                _judge(event, self, args[-1])
            except ConnectionRefused as error:
                if method == "connect_ex":
                    return error.errno
                raise
            return before(self, *args, **kwargs)

    return wrapper


def _looking_up(before: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(before)
    def wrapper(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        flags = args[3] if len(args) > 3 else kwargs.get("flags", 0)
        numeric = isinstance(flags, int) and flags & socket.AI_NUMERICHOST
        if not _guards or _here.judged or numeric:
            with _judged():
                return before(host, port, *args, **kwargs)
        with _judged():
            name = _judge("socket.getaddrinfo", host, port)
            answer = before(host, port, *args, **kwargs)
            if name is not None:
                _remember(name, answer)
            return answer

    return wrapper


def _naming(before: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(before)
    def wrapper(address: Any, flags: Any) -> Any:
        __tracebackhide__ = True
        if isinstance(flags, int) and flags & socket.NI_NUMERICHOST:
            # Nothing is asked; the audit event does not tell.
            with _judged():
                return before(address, flags)
        return before(address, flags)

    return wrapper
