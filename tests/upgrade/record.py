"""Records the upgrade's cassette with the client that is installed, from the scripted server:
`python -m tests.upgrade.record PATH`, run with langchain-google-genai 4.0.0.
"""

from __future__ import annotations

import asyncio
import os
import sys

from pytest_agenttrace import GeminiServer, capture
from tests.upgrade.app import answer, graph


def main(path: str) -> None:
    with GeminiServer(answer) as server:
        os.environ |= {"GOOGLE_GEMINI_BASE_URL": server.url, "GOOGLE_API_KEY": "scripted"}
        with capture(path, record=True, allow=["usage"]) as trace:
            asyncio.run(graph().ainvoke({"subject": "three things", "facts": []}))
            print(trace)  # noqa: T201  # a script


if __name__ == "__main__":
    main(sys.argv[1])
