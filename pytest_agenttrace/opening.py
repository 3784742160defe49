"""A cassette as pytest asks for it: where it lies, how it is opened, and what its last recording has cost."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.collect import SESSION, marker_layers
from pytest_agenttrace.options import cassettes_of, mode_of, spending_of
from pytest_agenttrace.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from pytest_agenttrace.calls import Pricer
    from pytest_agenttrace.prices import Prices
    from pytest_agenttrace.replay import Opening, Shares

__all__ = [
    "OPEN",
    "PRICES",
    "cassette_of",
    "fixture_value",
    "hold_back",
    "named_path",
    "opening_of",
    "own_path",
    "price_of",
]

# What is open until pytest ends.
OPEN = pytest.StashKey[ExitStack]()
# The project's own prices; None where it has none.
PRICES: pytest.StashKey[Prices | None] = pytest.StashKey()
_HELD = pytest.StashKey[bool]()


def price_of(config: pytest.Config) -> Pricer:
    """What calls cost: by the project's own file of prices, or by the table."""
    from pytest_agenttrace.prices import price_call

    own = config.stash[PRICES]
    return price_call if own is None else own


def _known_path(item: pytest.Item) -> Path | None:
    """A test's cassette by its markers; what `agenttrace_config` says is not known before it runs."""
    try:
        return cassette_of(item, read_settings(marker_layers(item)))
    except SettingsError:
        return None


def cassette_of(item: pytest.Item, settings: Settings) -> Path:
    """A test's cassette: the one that its settings name, or its own."""
    if settings.cassette is not None:
        return named_path(item.path, settings.cassette)
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    return own_path(item.config, item.path, ".".join([*classes, item.name]))


def named_path(file: Path, cassette: str) -> Path:
    """A cassette by its path, relative to the file that names it."""
    return Path(os.path.normpath(file.parent / cassette))


def own_path(config: pytest.Config, file: Path, name: str) -> Path:
    """The cassette that nobody has named, of a test or a fixture in this file."""
    from pytest_agenttrace.replay import cassette_path

    root = config.rootpath
    module = file.relative_to(root) if file.is_relative_to(root) else _outside(file, root)
    return cassette_path(root, cassettes_of(config), str(module), name)


def _outside(path: Path, root: Path) -> Path:
    """Where a module outside of rootdir stands below it: apart from others of its name."""
    try:
        place = Path(os.path.relpath(path.parent, root)).as_posix()
    except ValueError:  # another drive of Windows
        place = path.parent.as_posix()
    return Path(f"outside-{blake2b(place.encode(), digest_size=4).hexdigest()}", path.name)


def opening_of(
    request: pytest.FixtureRequest, item: pytest.Item, settings: Settings, target: str, shares: Shares | None = None
) -> Opening:
    """How a cassette is opened for a test, or for a run of several; `target` is what pytest runs to record it."""
    from pytest_agenttrace.replay import Opening

    session = request.config.stash[SESSION]
    return Opening(
        mode_of(request.config),
        settings.match,
        settings.ignore,
        settings.hosts,
        settings.order,
        settings.secrets,
        filters=_vcr_config(request, item),
        command=f"pytest {shlex.quote(target)}",
        shares=shares,
        late=session.late.append,
        price=price_of(request.config),
        spending=spending_of(request.config, session.parts),
    )


def _vcr_config(request: pytest.FixtureRequest, item: pytest.Item) -> Mapping[str, Any]:
    """What pytest-recording's users filter out of their cassettes, where it is installed."""
    beside = request.config.pluginmanager.hasplugin("recording") or request.config.pluginmanager.hasplugin(
        "pytest_recording.plugin"
    )
    found = fixture_value(request, item, "vcr_config") if beside else {}
    return found if isinstance(found, Mapping) else {}


def fixture_value(request: pytest.FixtureRequest, item: pytest.Item, fixture: str) -> Any:
    """What a fixture gives, also one of a narrower scope, as its test sees it."""
    try:
        return request.getfixturevalue(fixture)
    except pytest.fail.Exception:
        # Not public: without it the fixture needs the wider scope.
        get: Callable[[str], Any] | None = getattr(getattr(item, "_request", None), "getfixturevalue", None)
        if get is None:
            raise
        return get(fixture)


def hold_back(config: pytest.Config) -> None:
    """Keep threads that tests have left behind off the network, once there are any, until pytest ends."""
    from pytest_agenttrace import replay

    if _HELD not in config.stash and (held := replay.hold_back(config.stash[SESSION].late.append)) is not None:
        config.stash[_HELD] = True
        config.stash[OPEN].enter_context(held)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Before anything is paid for: what the last recording has cost."""
    config = session.config
    if (
        mode_of(config) not in ("record", "missing")
        or config.option.collectonly
        or _worker_of(config) not in (None, "gw0")
    ):
        return
    from pytest_agenttrace.replay import CassetteError
    from pytest_agenttrace.rerecord import last_recording

    alone = [item for item in session.items if "gemini_cassette" in getattr(item, "fixturenames", ())]
    # Where the cassettes of `agent_run` lie is not known before their fixtures run.
    shared = [item for item in session.items if "agent_run" in getattr(item, "fixturenames", ())]
    items = list(dict.fromkeys([*alone, *shared]))
    paths = list(dict.fromkeys(path for item in alone if (path := _known_path(item)) is not None))
    try:
        before, absent = last_recording(paths, price_of(config))
    except CassetteError as error:
        raise pytest.UsageError(str(error)) from None
    tests = "1 test" if len(items) == 1 else f"{len(items)} tests"
    none_yet = f"; {absent} of {len(paths)} cassettes are new" if absent else ""
    unseen = ", those of agent_run left out" if shared else ""
    text = (
        f"agenttrace: recording {tests}; their last recording{unseen}: {before if before.calls else 'none'}{none_yet}"
    )
    if _worker_of(config) is None:
        _say(config, text)
    else:
        config.stash[SESSION].parts.mkdir(parents=True, exist_ok=True)
        (config.stash[SESSION].parts / "before").write_text(text)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """xdist: the first worker has left word of what the last recording has cost."""
    said = node.config.stash[SESSION].parts / "before"
    if said.exists():
        _say(node.config, said.read_text())
        said.unlink()


def _say(config: pytest.Config, text: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(text)


def _worker_of(config: pytest.Config) -> str | None:
    """The name of xdist's worker; None where there is none."""
    given: dict[str, str] = getattr(config, "workerinput", {})
    return given.get("workerid")
