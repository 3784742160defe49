"""gRPC to the model, refused in a sentence."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace import CassetteMiss
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.grpc_channels import no_model_channels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def grpc() -> Any:
    return importlib.import_module("grpc")


@pytest.mark.parametrize(
    "target",
    [
        "generativelanguage.googleapis.com:443",
        "dns:///generativelanguage.googleapis.com",
        "us-central1-aiplatform.googleapis.com:443",
        "aiplatform.googleapis.com",
        "aiplatform.eu.rep.googleapis.com:443",
    ],
)
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_grpc_to_the_model_is_refused_in_a_sentence(
    target: str, record: bool, later: bool, grpc: Any, here: Path
) -> None:
    owner = grpc.aio if later else grpc
    before = owner.secure_channel
    with (
        open_cassette(here / "x.yaml", Opening(mode="record" if record else "replay")) as session,
        pytest.raises(CassetteMiss) as caught,
    ):
        owner.secure_channel(target, grpc.ssl_channel_credentials())
    host = target.removeprefix("dns:///").removesuffix(":443")
    assert str(caught.value) == (
        "(no node), call 1: gRPC cannot be recorded: use the REST transport\n"
        f"  a channel to {host}\n"
        '  Where the client takes one: transport="rest". ChatGoogleGenerativeAI speaks REST since version 4.'
    )
    assert [miss.text for miss in session.misses] == [str(caught.value)]
    assert owner.secure_channel is before


def test_other_grpc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in: real channels of theirs would dial.
    grpc = types.ModuleType("grpc")
    grpc.__dict__["secure_channel"] = lambda target, credentials, options=None: f"channel to {target}"
    monkeypatch.setitem(sys.modules, "grpc", grpc)

    def refuse(host: str) -> Any:
        raise AssertionError(host)

    with no_model_channels(refuse):
        for target in ("localhost:4317", "pubsub.googleapis.com:443", "generativelanguage.googleapis.com.example"):
            assert grpc.__dict__["secure_channel"](target, credentials=None) == f"channel to {target}"


def test_grpc_that_is_imported_later_is_watched_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "grpc.py").write_text(
        "import types\n"
        "def secure_channel(target, credentials):\n    return 'open'\n"
        "aio = types.SimpleNamespace(secure_channel=secure_channel)\n"
    )
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "grpc", raising=False)
    finders = list(sys.meta_path)
    with open_cassette(here / "x.yaml") as session:
        grpc = importlib.import_module("grpc")
        for owner in (grpc, grpc.aio):
            with pytest.raises(CassetteMiss, match="gRPC cannot be recorded"):
                owner.secure_channel("generativelanguage.googleapis.com", None)
    assert len(session.misses) == 2
    assert grpc.secure_channel("generativelanguage.googleapis.com", None) == "open"
    assert sys.meta_path == finders
    monkeypatch.delitem(sys.modules, "grpc")
