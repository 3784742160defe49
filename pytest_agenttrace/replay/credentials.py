"""Google credentials for replay, where no token is ever checked: Vertex AI's clients ask for one before each call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from pytest_agenttrace.environment import DUMMY_KEY

__all__ = ["dummy_credentials", "dummy_sent", "token_reply"]

VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
TOKEN = "agenttrace-replay-needs-no-token"  # noqa: S105  # no secret: it says so
# google-auth's own format of a user's credentials; a token that has not expired is not refreshed.
_USER = {
    "type": "authorized_user",
    "client_id": TOKEN,
    "client_secret": TOKEN,
    "refresh_token": TOKEN,
    "token": TOKEN,
    "expiry": "2999-01-01T00:00:00Z",
}
_TOKEN_URLS = frozenset(
    {
        ("oauth2.googleapis.com", "/token"),
        ("www.googleapis.com", "/oauth2/v4/token"),
        ("accounts.google.com", "/o/oauth2/token"),
    }
)


@contextmanager
def dummy_credentials(directory: Path | None = None) -> Iterator[None]:
    """Application default credentials that need no login, no metadata server and no refresh.

    They stand before those of gcloud and of the machine, and before a file that the environment names: a real login
    would dial for its token. The file lies in `directory`, by default in a temporary one of its own. Afterwards the
    environment is as before, unless somebody else has changed it.
    """
    before = os.environ.get(VARIABLE)
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="agenttrace-", ignore_cleanup_errors=True)))
        path = directory / "credentials.json"
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_USER), encoding="utf-8")
        os.environ[VARIABLE] = str(path)
        try:
            yield
        finally:
            if os.environ.get(VARIABLE) == str(path):
                os.environ.pop(VARIABLE)
                if before is not None:
                    os.environ[VARIABLE] = before


def token_reply(method: str, url: str) -> dict[str, Any] | None:
    """What replay says to credentials that code under test has built itself and that ask Google for a token.

    In vcrpy's shape; None for any other request. Source: RFC 6749, section 5.1.
    """
    parts = urlsplit(url)
    if method.upper() != "POST" or (parts.hostname, parts.path) not in _TOKEN_URLS:
        return None
    return {
        "status": {"code": 200, "message": "OK"},
        "headers": {"content-type": ["application/json"]},
        "body": {"string": json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}).encode()},
    }


def dummy_sent(headers: Mapping[str, Any]) -> bool:
    """Whether a request carries a dummy key or token, which only replay and a scripted server take."""
    given = {name.lower(): str(value) for name, value in headers.items()}
    return given.get("x-goog-api-key") == DUMMY_KEY or given.get("authorization") == f"Bearer {TOKEN}"
