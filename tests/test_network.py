"""The network guard: what it refuses, what it lets through, what it leaves behind. Nothing here leaves loopback."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import http.client
import http.server
import multiprocessing
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

# Imported by name before any guard is open, as the code under test may have them.
from socket import create_connection, getaddrinfo, gethostbyaddr, gethostbyname, getnameinfo
from socket import socket as early_socket
from typing import Any

import pytest

from pytest_agenttrace import network
from pytest_agenttrace.network import (
    ConnectionRefused,
    LookupRefused,
    NetworkRefused,
    Refusal,
    ReverseLookupRefused,
    allowed,
    guarded,
    wrong_hosts,
)

# TEST-NET-3 and the documentation prefix: addresses that are nobody's (RFC 5737, RFC 3849).
OUTSIDE, OUTSIDE6 = "203.0.113.7", "2001:db8::7"
NAME = "search.example.com"


class Told:
    """What a guard told, and the message it raised."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []

    def __call__(self, refusal: Refusal) -> str:
        self.refusals.append(refusal)
        return f"refused: {refusal.text}"

    @property
    def texts(self) -> list[str]:
        return [refusal.text for refusal in self.refusals]


@contextmanager
def closed_world(hosts: Sequence[str] = ()) -> Iterator[Told]:
    told = Told()
    with guarded(allowed(list(hosts)), told):
        yield told


@contextmanager
def loopback_server() -> Iterator[int]:
    """A TCP server on loopback that says hello and hangs up; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        peer.sendall(b"hello")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


# Refused: the socket and the resolver themselves


def _udp_to(address: tuple[Any, ...], family: socket.AddressFamily = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", address)


def _message_to(address: tuple[Any, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"x"], [], 0, address)


def _connect(address: tuple[Any, ...], family: socket.AddressFamily = socket.AF_INET) -> None:
    with socket.socket(family) as sock:
        sock.connect(address)


def _connect_early(address: tuple[Any, ...]) -> None:
    with early_socket() as sock:
        sock.connect(address)


def _connect_c(address: tuple[Any, ...]) -> None:
    with closing(socket.SocketType()) as sock:
        sock.connect(address)


def _connect_tls(address: tuple[Any, ...]) -> None:
    with ssl.create_default_context().wrap_socket(socket.socket(), server_hostname=NAME) as sock:
        sock.connect(address)


@pytest.mark.parametrize(
    ("act", "text", "error"),
    [
        (lambda: _connect((OUTSIDE, 443)), f"{OUTSIDE}:443 (connect)", ConnectionRefused),
        (lambda: _connect((OUTSIDE6, 443), socket.AF_INET6), f"[{OUTSIDE6}]:443 (connect)", ConnectionRefused),
        (lambda: _connect_early((OUTSIDE, 443)), f"{OUTSIDE}:443 (connect)", ConnectionRefused),
        (lambda: _connect_c((OUTSIDE, 443)), f"{OUTSIDE}:443 (connect)", ConnectionRefused),
        (lambda: _connect_tls((OUTSIDE, 443)), f"{OUTSIDE}:443 (connect)", ConnectionRefused),
        (lambda: _connect((NAME, 443)), f"{NAME}:443 (connect)", LookupRefused),
        (lambda: _connect_early((NAME, 443)), f"{NAME}:443 (connect)", LookupRefused),
        (lambda: _connect_tls((NAME, 443)), f"{NAME}:443 (connect)", LookupRefused),
        (lambda: socket.create_connection((NAME, 443)), f"{NAME}:443 (getaddrinfo)", LookupRefused),
        (lambda: create_connection((OUTSIDE, 443)), f"{OUTSIDE}:443 (connect)", ConnectionRefused),
        (lambda: _udp_to((OUTSIDE, 53)), f"{OUTSIDE}:53 (sendto)", ConnectionRefused),
        (lambda: _udp_to((NAME, 53)), f"{NAME}:53 (sendto)", LookupRefused),
        (lambda: _udp_to(("<broadcast>", 9)), "255.255.255.255:9 (sendto)", ConnectionRefused),
        (lambda: _message_to((OUTSIDE, 53)), f"{OUTSIDE}:53 (sendmsg)", ConnectionRefused),
        (lambda: socket.getaddrinfo(NAME, 443), f"{NAME}:443 (getaddrinfo)", LookupRefused),
        (lambda: socket.getaddrinfo(NAME, "https"), f"{NAME}:443 (getaddrinfo)", LookupRefused),
        (lambda: socket.getaddrinfo(host=NAME, port="8080"), f"{NAME}:8080 (getaddrinfo)", LookupRefused),
        (lambda: socket.getaddrinfo(NAME, None), f"{NAME} (getaddrinfo)", LookupRefused),
        (lambda: getaddrinfo(NAME, 443), f"{NAME}:443 (getaddrinfo)", LookupRefused),
        (lambda: socket.gethostbyname(NAME), f"{NAME} (gethostbyname)", LookupRefused),
        (lambda: gethostbyname(NAME), f"{NAME} (gethostbyname)", LookupRefused),
        (lambda: socket.gethostbyname_ex(NAME), f"{NAME} (gethostbyname)", LookupRefused),
        (lambda: socket.gethostbyaddr(OUTSIDE), f"{OUTSIDE} (gethostbyaddr)", ReverseLookupRefused),
        (lambda: gethostbyaddr(NAME), f"{NAME} (gethostbyaddr)", LookupRefused),
        (lambda: socket.getnameinfo((OUTSIDE, 80), 0), f"{OUTSIDE} (getnameinfo)", ReverseLookupRefused),
        (lambda: getnameinfo((OUTSIDE, 80), 0), f"{OUTSIDE} (getnameinfo)", ReverseLookupRefused),
    ],
)
def test_refused_once_with_the_host_and_the_call(
    act: Callable[[], object], text: str, error: type[NetworkRefused]
) -> None:
    with closed_world() as told, pytest.raises(NetworkRefused) as caught:
        act()
    assert told.texts == [text]
    assert type(caught.value) is error
    assert caught.value.refusal is told.refusals[0]
    assert caught.value.strerror == f"refused: {text}"


def test_a_refusal_has_its_parts() -> None:
    with closed_world() as told:
        for address in ((NAME, 443), (OUTSIDE, 80)):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(address)
        with pytest.raises(OSError, match="refused"):
            socket.gethostbyname(NAME)
    assert told.refusals == [
        Refusal(NAME, 443, f"{NAME}:443 (getaddrinfo)"),
        Refusal(OUTSIDE, 80, f"{OUTSIDE}:80 (connect)"),
        Refusal(NAME, None, f"{NAME} (gethostbyname)"),
    ]


@pytest.mark.parametrize(
    ("host", "port", "place"),
    [(NAME, 443, f"{NAME}:443"), (OUTSIDE6, 443, f"[{OUTSIDE6}]:443"), (OUTSIDE6, None, OUTSIDE6), (NAME, None, NAME)],
)
def test_the_place_of_a_refusal_is_what_hosts_takes(host: str, port: int | None, place: str) -> None:
    assert Refusal(host, port, "").place == place
    assert allowed([place])(host, port)


def test_errors_are_those_of_a_machine_without_a_network() -> None:
    caught: list[OSError] = []
    with closed_world():
        for act in (
            lambda: _connect((OUTSIDE, 443)),
            lambda: socket.gethostbyname(NAME),
            lambda: socket.gethostbyaddr(OUTSIDE),
        ):
            try:
                act()
            except OSError as error:
                caught.append(error)
    assert [error.errno for error in caught] == [errno.ENETUNREACH, socket.EAI_NONAME, 1]
    assert [isinstance(e, socket.gaierror) for e in caught] == [False, True, False]
    assert [isinstance(e, socket.herror) for e in caught] == [False, False, True]
    # What "wait until the server is up" loops catch and try again.
    assert not any(isinstance(error, ConnectionError | TimeoutError) for error in caught)
    assert str(caught[0]) == f"[Errno {errno.ENETUNREACH}] refused: {OUTSIDE}:443 (connect)"
    again = pickle.loads(pickle.dumps(caught[1]))  # noqa: S301  # our own
    assert (type(again), str(again)) == (LookupRefused, str(caught[1]))


def test_connect_ex_gives_the_number_and_is_told_all_the_same() -> None:
    with closed_world() as told, socket.socket() as sock:
        assert sock.connect_ex((OUTSIDE, 443)) == errno.ENETUNREACH
        with pytest.raises(LookupRefused):
            sock.connect_ex((NAME, 443))
    assert told.texts == [f"{OUTSIDE}:443 (connect)", f"{NAME}:443 (connect)"]


def test_a_machines_own_questions_pass() -> None:
    with closed_world() as told:
        assert socket.getfqdn()
        with suppress(OSError):
            socket.gethostbyname(socket.gethostname())
        # What is not looked up does not leave.
        assert socket.getaddrinfo(OUTSIDE, 80, type=socket.SOCK_STREAM)[0][4] == (OUTSIDE, 80)
        assert socket.getaddrinfo(None, 80, flags=socket.AI_PASSIVE)
        assert socket.getnameinfo((OUTSIDE, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV) == (OUTSIDE, "80")
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(NAME, 80, flags=socket.AI_NUMERICHOST)
    assert told.texts == []


def test_the_machines_own_name_is_known_by_its_address_too() -> None:
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        pytest.skip("this machine cannot resolve its own name")
    with closed_world() as told, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        gethostbyname(socket.gethostname())
        sock.connect((address, 9))
    assert told.texts == []


# Refused: what is built on them


def _requests() -> None:
    import requests

    requests.get(f"https://{NAME}/", timeout=5)


def _httpx() -> None:
    import httpx

    httpx.get(f"https://{NAME}/")


async def _httpx_async() -> None:
    import httpx

    async with httpx.AsyncClient() as client:
        await client.get(f"https://{NAME}/")


async def _aiohttp() -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        await session.get(f"https://{NAME}/")


async def _datagrams() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(NAME, 443))


@pytest.mark.parametrize(
    "act",
    [
        lambda: http.client.HTTPSConnection(NAME).connect(),
        lambda: urllib.request.build_opener().open(f"https://{NAME}/"),
        _requests,
        _httpx,
        lambda: asyncio.run(_httpx_async()),
        lambda: asyncio.run(_aiohttp()),
        lambda: asyncio.run(asyncio.wait_for(asyncio.open_connection(NAME, 443), 5)),
        lambda: asyncio.run(_datagrams()),
    ],
    ids=[
        "http.client",
        "urllib",
        "requests",
        "httpx",
        "httpx async",
        "aiohttp",
        "asyncio streams",
        "asyncio datagrams",
    ],
)
def test_clients_are_refused_at_the_first_try(act: Callable[[], object]) -> None:
    with closed_world() as told, pytest.raises(Exception, match=f"refused: {NAME}:443"):
        act()
    assert told.texts == [f"{NAME}:443 (getaddrinfo)"]


async def _sock_connect() -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (OUTSIDE, 443))


async def _open_addresses() -> None:
    await asyncio.open_connection(OUTSIDE, 443)


@pytest.mark.parametrize("act", [_sock_connect, _open_addresses])
def test_asyncio_connects_through_the_guard(act: Callable[[], Any]) -> None:
    with closed_world() as told, pytest.raises(ConnectionRefused):
        asyncio.run(act())
    assert told.texts == [f"{OUTSIDE}:443 (connect)"]


def test_asyncio_sends_datagrams_through_the_guard() -> None:
    async def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_sendto(sock, b"x", (OUTSIDE, 53))

    with closed_world() as told, pytest.raises(ConnectionRefused):
        asyncio.run(send())
    assert told.texts == [f"{OUTSIDE}:53 (sendto)"]


@pytest.mark.parametrize("act", [_requests, _httpx])
def test_a_proxy_outside_is_what_is_named(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.corp.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with closed_world() as told, pytest.raises(OSError, match="refused") if act is _requests else suppress(Exception):
        act()
    assert told.texts == ["proxy.corp.example:3128 (getaddrinfo)"]


# Let through


def test_loopback_is_open() -> None:
    with loopback_server() as port, closed_world() as told:
        for host in ("127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f.1", "0.0.0.0", ""):  # noqa: S104
            with socket.create_connection((host or None, port)) as sock:
                assert sock.recv(5) == b"hello", host
        with socket.socket() as sock:
            sock.connect(("", port))
            assert sock.recv(5) == b"hello"
        with socket.socket() as sock:
            sock.connect((b"localhost", port))
            assert sock.recv(5) == b"hello"
    assert told.texts == []


def test_mapped_loopback_is_open() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    with loopback_server() as port, closed_world() as told, socket.socket(socket.AF_INET6) as sock:
        try:
            sock.connect(("::ffff:127.0.0.1", port))
        except NetworkRefused:
            raise
        except OSError:
            pytest.skip("no IPv6")
        assert sock.recv(5) == b"hello"
    assert told.texts == []


def test_servers_and_clients_on_loopback_work() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    async def stream() -> bytes:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "localhost", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            writer.close()
            return await reader.read()

    # The empty host makes the server ask for this machine's own name.
    with closed_world() as told, http.server.HTTPServer(("", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://localhost:{server.server_port}/") as reply:
            assert reply.status == 204
        thread.join(5)
        assert asyncio.run(stream()) == b""
    assert told.texts == []


def test_other_families_are_open(tmp_path: Any) -> None:
    with closed_world() as told, ExitStack() as stack:
        path = str(tmp_path / "s")
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(path)
        one, other = socket.socketpair()
        stack.enter_context(one)
        stack.enter_context(other)
        one.sendmsg([b"x"])
        assert other.recv(1) == b"x"
        if hasattr(socket, "AF_NETLINK"):
            netlink = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
            netlink.connect((0, 0))
    assert told.texts == []


def test_what_was_connected_before_stays_connected() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        with guarded(lambda host, port: False, told := Told()):
            sender.send(b"a")
            sender.sendall(b"b")
            sender.sendmsg([b"c"])
            assert [receiver.recv(1) for _ in range(3)] == [b"a", b"b", b"c"]
    assert told.texts == []


# Names and the addresses they resolve to


def only_localhost(host: str, port: int | None) -> bool:
    """Allows a name and not its address, so that what is remembered can be seen on loopback."""
    return host == "localhost"


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: socket.getaddrinfo("localhost", None),
        lambda: socket.gethostbyname("localhost"),
        lambda: socket.gethostbyname_ex("LocalHost"),
        lambda: socket.gethostbyaddr("localhost"),
        lambda: getaddrinfo("localhost", 80),
        lambda: gethostbyname("localhost"),
    ],
)
def test_an_allowed_name_is_allowed_by_its_address(look_up: Callable[[], object]) -> None:
    with loopback_server() as port, guarded(only_localhost, told := Told()):
        with pytest.raises(ConnectionRefused):
            socket.create_connection(("127.0.0.1", port))
        look_up()
        socket.create_connection(("127.0.0.1", port)).close()
    assert told.texts == [f"127.0.0.1:{port} (connect)"]


def test_a_lookup_is_made_once() -> None:
    """Twice: socket.getaddrinfo no longer calls what the guard wraps, and answers that rotate are not known again."""
    seen: list[object] = []
    on = True
    sys.addaudithook(lambda event, args: seen.append(args[0]) if on and event == "socket.getaddrinfo" else None)
    with closed_world() as told:
        socket.getaddrinfo("localhost", 80)
        getaddrinfo("localhost", 81)
        asyncio.run(_resolve("localhost"))
    on = False
    assert (seen, told.texts) == (["localhost"] * 3, [])


async def _resolve(host: str) -> None:
    await asyncio.get_running_loop().getaddrinfo(host, 80)


def test_a_resolver_without_its_c_function_is_watched_by_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_socket", None)
    with loopback_server() as port, guarded(only_localhost, told := Told()):
        socket.create_connection(("localhost", port)).close()
        with pytest.raises(LookupRefused):
            socket.create_connection((NAME, port))
    assert told.texts == [f"{NAME}:{port} (getaddrinfo)"]


def test_what_one_guard_remembered_the_next_does_not_know() -> None:
    with guarded(only_localhost, Told()):
        socket.gethostbyname("localhost")
    with guarded(only_localhost, told := Told()), pytest.raises(ConnectionRefused):
        _connect(("127.0.0.1", 9))
    assert told.texts == ["127.0.0.1:9 (connect)"]


def test_a_name_with_another_port_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 0))]
    monkeypatch.setattr(sys.modules["_socket"], "getaddrinfo", lambda *args, **kwargs: answer)
    with closed_world(["postgres:5432"]) as told:
        with pytest.raises(LookupRefused, match="postgres:6379"):
            socket.getaddrinfo("postgres", 6379)
        assert socket.getaddrinfo("postgres", None) == answer
        with pytest.raises(ConnectionRefused):
            _connect(("10.1.2.3", 6379))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            # A datagram socket's connect sends nothing; whether there is a route is not ours to say.
            try:
                sock.connect(("10.1.2.3", 5432))
            except NetworkRefused:
                raise
            except OSError:
                pass
    assert told.texts == ["postgres:6379 (getaddrinfo)", "postgres:6379 (connect to 10.1.2.3)"]


# hosts


@pytest.mark.parametrize(
    ("hosts", "question", "answer"),
    [
        ([], ("localhost", 1), True),
        ([], ("LOCALHOST.", None), True),
        ([], ("db.localhost", 1), True),
        ([], ("notlocalhost", 1), False),
        ([], ("localhost.example.com", 1), False),
        ([], ("127.255.0.9", 1), True),
        ([], ("::1", 1), True),
        ([], ("::1%lo", 1), True),
        ([], ("::ffff:127.3.2.1", 1), True),
        ([], ("::ffff:10.0.0.1", 1), False),
        ([], ("0.0.0.0", 1), True),  # noqa: S104
        ([], ("::", 1), True),
        ([], ("", 1), True),
        ([], ("0x7f000001", 1), True),
        ([], ("128.1", 1), False),
        ([], ("169.254.169.254", 80), False),
        ([], (socket.gethostname(), 1), True),
        (["postgres:5432"], ("postgres", 5432), True),
        (["postgres:5432"], ("Postgres.", 5432), True),
        (["postgres:5432"], ("postgres", 5433), False),
        (["postgres:5432"], ("postgres", None), True),
        (["postgres:5432"], ("postgres.example", 5432), False),
        (["db.internal"], ("db.internal", 1), True),
        (["DB.internal."], ("db.INTERNAL", 1), True),
        (["db.internal"], ("a.db.internal", 1), False),
        (["10.0.0.7"], ("10.0.0.7", 1), True),
        (["10.0.0.7"], ("10.7", 1), True),
        (["10.0.0.7"], ("10.0.0.8", 1), False),
        (["[2001:db8::1]:80"], ("2001:DB8:0::1", 80), True),
        (["[2001:db8::1]:80"], ("2001:db8::1", 81), False),
        (["2001:db8::1"], ("2001:db8::1", 81), True),
        (["*.corp.example"], ("a.corp.example", 1), True),
        (["*.corp.example"], ("a.b.Corp.example.", 1), True),
        (["*.corp.example"], ("corp.example", 1), False),
        (["*.corp.example"], ("evilcorp.example", 1), False),
        (["*.0.7"], ("10.9.0.7", 1), False),
        (["*.corp.example:443"], ("a.corp.example", 80), False),
        (["*.corp.example:443"], ("a.corp.example", 443), True),
        (["bücher.example"], ("xn--bcher-kva.example", 1), True),
        (["xn--bcher-kva.example"], ("BÜCHER.example", 1), True),
        (["*.bücher.example"], ("a.xn--bcher-kva.example", 1), True),
        (["a.example", "b.example:1"], ("b.example", 1), True),
    ],
)
def test_hosts(hosts: list[str], question: tuple[str, int | None], answer: bool) -> None:
    assert allowed(hosts)(*question) is answer


def test_hosts_that_are_none_are_told_all_at_once() -> None:
    wrong = ["https://a.example/x", "a.example:0", "a b", "", "*", "a*.example", "10.0.0.0/8", "[::1:80", 80, "h:70000"]
    form = 'write "db.internal", "postgres:5432", "[::1]:80" or "*.corp.example"'
    assert wrong_hosts(wrong) == (
        f"hosts: 'https://a.example/x' is a URL or a network, not a host: {form}",
        "hosts: 'a.example:0' has no port between 1 and 65535",
        f"hosts: 'a b' is no host: {form}",
        f"hosts: '' is no host: {form}",
        f"hosts: '*' is no host: {form}",
        f"hosts: 'a*.example' is no host: {form}",
        f"hosts: '10.0.0.0/8' is a URL or a network, not a host: {form}",
        f"hosts: '[::1:80' is no host: {form}",
        f"hosts: 80 is no text: {form}",
        "hosts: 'h:70000' has no port between 1 and 65535",
    )


def test_hosts_that_are_no_list() -> None:
    with pytest.raises(ValueError, match=re.escape("hosts='postgres' is not a list of hosts")) as caught:
        allowed("postgres")
    assert wrong_hosts("postgres") == (str(caught.value),)
    assert str(caught.value) == "hosts='postgres' is not a list of hosts: write hosts=[\"postgres:5432\"]"


# Addresses that are none


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ((None, 80), TypeError),
        ((2130706433, 80), TypeError),
        ((OUTSIDE,), TypeError),
        ((), TypeError),
        (OUTSIDE, TypeError),
        (("127.0.0.1", 70000), OverflowError),
    ],
)
def test_an_address_that_python_refuses_is_refused_in_its_words(address: Any, error: type[Exception]) -> None:
    def words() -> str:
        with socket.socket() as sock, pytest.raises(error) as caught:
            sock.connect(address)
        return str(caught.value)

    before = words()
    with closed_world() as told:
        assert words() == before
    assert told.texts == []


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        (b"search.example.com", NAME),
        (bytearray(b"search.example.com"), NAME),
        ("SEARCH.example.com.", NAME),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a\nb", "a?b"),
        ("x" * 5_000, "x" * 5_000),
        ("\udcff", "?"),
    ],
)
def test_hosts_in_odd_forms_are_named_in_one_line(host: Any, shown: str) -> None:
    with closed_world() as told, pytest.raises(LookupRefused):
        socket.getaddrinfo(host, 443)
    assert told.texts == [f"{shown}:443 (getaddrinfo)"]


def test_an_address_with_a_scope() -> None:
    with closed_world() as told, suppress(OSError):
        _connect(("fe80::1", 80, 0, 1), socket.AF_INET6)
    assert told.texts == ["[fe80::1]:80 (connect)"]


# Guards among guards


def test_guards_nest_and_what_one_refuses_is_refused() -> None:
    with loopback_server() as port, closed_world() as outer:
        with guarded(lambda host, port: False, inner := Told()), pytest.raises(ConnectionRefused):
            _connect(("127.0.0.1", port))
        _connect(("127.0.0.1", port))
        with guarded(lambda host, port: True, Told()), pytest.raises(ConnectionRefused):
            _connect((OUTSIDE, 443))
    assert inner.texts == [f"127.0.0.1:{port} (connect)"]
    assert outer.texts == [f"{OUTSIDE}:443 (connect)"]


def test_guards_may_close_in_any_order() -> None:
    first, second = closed_world(), closed_world()
    one = first.__enter__()
    two = second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(LookupRefused):
        socket.gethostbyname(NAME)
    second.__exit__(None, None, None)
    assert (one.texts, two.texts) == ([], [f"{NAME} (gethostbyname)"])


def test_what_the_callback_raises_goes_through() -> None:
    class Stop(BaseException):
        pass

    def stop(refusal: Refusal) -> str:
        raise Stop(refusal.text)

    for act in (lambda: socket.gethostbyname(NAME), lambda: gethostbyname(NAME), lambda: _connect_c((OUTSIDE, 1))):
        with guarded(allowed([]), stop), pytest.raises(Stop):
            act()


def test_the_callback_may_look_up_and_connect_itself() -> None:
    with loopback_server() as port:
        seen: list[object] = []

        def look(refusal: Refusal) -> str:
            with socket.create_connection(("localhost", port)) as sock:
                seen.append(sock.recv(5))
            return "no"

        with guarded(lambda host, port: False, look), pytest.raises(LookupRefused, match="no"):
            socket.gethostbyname(NAME)
    assert seen == [b"hello"]


def test_refusals_are_told_in_the_thread_and_context_that_connects() -> None:
    node: contextvars.ContextVar[str] = contextvars.ContextVar("node", default="-")
    seen: list[tuple[str, str]] = []

    def told(refusal: Refusal) -> str:
        seen.append((node.get(), threading.current_thread().name))
        return "no"

    def connect(name: str) -> None:
        node.set(name)
        with pytest.raises(OSError, match="no"):
            _connect((OUTSIDE, 1))

    async def task(name: str) -> None:
        node.set(name)
        with pytest.raises(OSError, match="no"):
            await _sock_connect()

    async def tasks() -> None:
        await asyncio.gather(task("write"), task("edit"))

    with guarded(allowed([]), told):
        thread = threading.Thread(target=connect, args=("research",), name="worker")
        thread.start()
        thread.join(5)
        asyncio.run(tasks())
    assert sorted(seen) == [("edit", "MainThread"), ("research", "worker"), ("write", "MainThread")]


def test_many_threads_under_one_guard_and_guards_that_come_and_go() -> None:
    def work(number: int) -> str:
        with closed_world(), suppress(OSError):
            socket.create_connection((f"host{number}.example", 80))
        return ""

    before = state()
    with closed_world() as told, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(_connect, (OUTSIDE, port)) for port in range(1, 201)]
        errors = [future.exception() for future in futures]
    assert all(isinstance(error, ConnectionRefused) for error in errors)
    assert sorted(r.port or 0 for r in told.refusals) == list(range(1, 201))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert state() == before


def _child() -> int:
    try:
        _connect((OUTSIDE, 443))
    except ConnectionRefused:
        return 7
    return 0


def _forked() -> None:
    sys.exit(_child())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_inherits_the_guard() -> None:
    with closed_world():
        process = multiprocessing.get_context("fork").Process(target=_forked)
        process.start()
        process.join(10)
    assert process.exitcode == 7


# What is left behind


def state() -> dict[str, Any]:
    names = ("connect", "connect_ex", "sendto", "sendmsg")
    functions = ("socket", "getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
    return (
        {name: vars(early_socket).get(name) for name in names}
        | {name: vars(socket)[name] for name in functions}
        | {"_socket.getaddrinfo": sys.modules["_socket"].getaddrinfo}
    )


def test_sockets_are_as_they_were() -> None:
    before = state()
    with closed_world():
        assert state() != before
        with closed_world():
            pass
    assert state() == before
    with pytest.raises(ZeroDivisionError), closed_world():
        _ = 1 / 0
    assert state() == before
    assert network._names == {}


def test_after_the_guard_nothing_is_refused() -> None:
    with closed_world() as told:
        wrapped = socket.getnameinfo
    assert wrapped(("127.0.0.1", 1), socket.NI_NUMERICSERV)[1] == "1"
    with loopback_server() as port, guarded(lambda host, port: False, Told()):
        connect = socket.socket.connect
    with loopback_server() as port, socket.socket() as sock:
        connect(sock, ("127.0.0.1", port))
    assert told.texts == []


def test_the_wrappers_hold_where_another_hook_refuses_ours() -> None:
    source = """
import socket, sys
def veto(event, args):
    if event == "sys.addaudithook":
        raise RuntimeError
sys.addaudithook(veto)
from pytest_agenttrace.network import allowed, guarded
told = []
with guarded(allowed([]), lambda refusal: told.append(refusal.text) or ""):
    for address in (("203.0.113.7", 1), ("a.example", 2)):
        try:
            socket.create_connection(address)
        except OSError:
            pass
print(told)
"""
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("['203.0.113.7:1 (connect)', 'a.example:2 (getaddrinfo)']\n", "")


# Beside other guards


class OtherGuard:
    """What pytest-recording's --block-network and pytest-socket's --allow-hosts do: a function of their own as
    `socket.socket.connect`, and what they found when they were imported put back."""

    def __init__(self) -> None:
        self.found = socket.socket.connect

    def open(self) -> None:
        def connect(sock: Any, address: Any) -> Any:
            if address[0] == OUTSIDE:
                raise RuntimeError(f"Network is disabled for host {address[0]!r}")
            return self.found(sock, address)

        socket.socket.connect = connect  # type: ignore[method-assign]

    def close(self) -> None:
        socket.socket.connect = self.found  # type: ignore[method-assign]


@pytest.fixture
def clean_class() -> Iterator[None]:
    """Leaves the socket class without a `connect` of its own, whatever a test puts there."""
    yield
    with suppress(AttributeError):
        del early_socket.connect


@pytest.mark.usefixtures("clean_class")
@pytest.mark.parametrize("order", ["tots", "tost", "otts", "otst"])
def test_another_guard_on_connect_in_any_order(order: str) -> None:
    """`o` opens ours and `s` closes it; the first `t` opens theirs, the second closes it."""
    before, theirs, ours, told = early_socket.connect, OtherGuard(), closed_world(), Told()
    theirs_open = False
    for step in order:
        if step == "o":
            told = ours.__enter__()
        elif step == "s":
            ours.__exit__(None, None, None)
        else:
            theirs.close() if theirs_open else theirs.open()
            theirs_open = not theirs_open
        if told.refusals == [] and order.index("o") <= order.index(step) and step != "s":
            with pytest.raises((NetworkRefused, RuntimeError)):
                _connect((OUTSIDE, 443))
    assert early_socket.connect is before
    with loopback_server() as port:
        _connect(("127.0.0.1", port))


@pytest.mark.usefixtures("clean_class")
def test_what_another_guard_lets_through_ours_still_sees() -> None:
    with closed_world() as told:
        # As if it had been imported before ours was open: what it calls is the class's own connect.
        theirs = OtherGuard()
        theirs.found = socket.SocketType.connect
        theirs.open()
        with pytest.raises(ConnectionRefused):
            _connect(("203.0.113.8", 443))
        theirs.close()
        with pytest.raises(ConnectionRefused):
            _connect((OUTSIDE, 443))
    assert told.texts == ["203.0.113.8:443 (connect)", f"{OUTSIDE}:443 (connect)"]


@pytest.mark.usefixtures("clean_class")
def test_a_guard_imported_under_ours_calls_nothing_in_circles() -> None:
    with closed_world():
        theirs = OtherGuard()
    theirs.open()
    with closed_world() as told:
        with pytest.raises(ConnectionRefused):
            _connect(("203.0.113.8", 443))
        with loopback_server() as port:
            _connect(("127.0.0.1", port))
    theirs.close()
    with loopback_server() as port:
        _connect(("127.0.0.1", port))
    assert told.texts == ["203.0.113.8:443 (connect)"]


def test_a_guard_on_the_resolver_may_close_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-socket puts the resolver back only where it finds its own function there."""
    real = socket.getaddrinfo

    def theirs(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("A test tried to use socket.getaddrinfo.")

    monkeypatch.setattr(socket, "getaddrinfo", theirs)
    with closed_world():
        if socket.getaddrinfo is theirs:
            monkeypatch.setattr(socket, "getaddrinfo", real)
    assert socket.getaddrinfo is real
    assert socket.getaddrinfo("localhost", 80)


def test_a_subclass_in_the_place_of_the_socket_class(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()

    class Guarded(socket.socket):
        """What pytest-socket's --disable-socket puts there, as far as it matters here."""

    monkeypatch.setattr(socket, "socket", Guarded)
    with closed_world() as told:
        for act in (_connect_early, _connect_tls, _connect):
            with pytest.raises(LookupRefused):
                act((NAME, 443))
    monkeypatch.undo()
    assert told.texts == [f"{NAME}:443 (connect)"] * 3
    assert state() == before
