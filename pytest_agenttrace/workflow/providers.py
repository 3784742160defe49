"""The chat models that nodes ask: Gemini by langchain-google-genai, others by langchain's init_chat_model."""

from __future__ import annotations

import asyncio
import threading
from importlib import import_module
from importlib.util import find_spec
from os import environ
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pytest_agenttrace.environment import KEY_VARIABLES
from pytest_agenttrace.workflow.failing import WorkflowError, said_of
from pytest_agenttrace.workflow.models import PROVIDER, LlmSettings
from pytest_agenttrace.workflow.naming import PROVIDERS

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["GOOGLE", "Models", "gemini_settings", "worth_another_try"]

# Both are Gemini by its API.
GOOGLE = (PROVIDER, "google_genai")

# Providers whose package is not called langchain-<provider>: https://docs.langchain.com/oss/python/integrations/chat
_PACKAGES = {
    "anthropic_bedrock": "langchain-aws",
    "azure_openai": "langchain-openai",
    "bedrock": "langchain-aws",
    "bedrock_converse": "langchain-aws",
    "google_anthropic_vertex": "langchain-google-vertexai",
    "nvidia": "langchain-nvidia-ai-endpoints",
}


class Models:
    """Chat models, each made once for its settings. Thread safe.

    A model's async client belongs to the event loop that it was first used in, so that each loop has its own.
    """

    def __init__(self, timeout: float) -> None:
        # The node's own limit ends first, so that the error is always that one's.
        self.timeout = timeout + 1
        self._lock = threading.Lock()
        self._outside: dict[Any, BaseChatModel] = {}
        self._inside: WeakKeyDictionary[Any, dict[Any, BaseChatModel]] = WeakKeyDictionary()

    def get(self, settings: LlmSettings) -> BaseChatModel:
        """The model of these settings, with the environment's key as it is now. Raises `WorkflowError`."""
        key = (settings, *(environ.get(name) for name in (*KEY_VARIABLES, "GOOGLE_GEMINI_BASE_URL")))
        with self._lock:
            kept = self._kept()
            if key not in kept:
                kept[key] = _made(settings, self.timeout)
            return kept[key]

    def _kept(self) -> dict[Any, BaseChatModel]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._outside
        return self._inside.setdefault(loop, {})


def _made(settings: LlmSettings, timeout: float) -> BaseChatModel:
    if settings.provider in GOOGLE:
        return _gemini(settings, timeout)
    return _other(settings, timeout)


def _gemini(settings: LlmSettings, timeout: float) -> BaseChatModel:
    from langchain_google_genai import ChatGoogleGenerativeAI

    vertex = environ.get("GOOGLE_GENAI_USE_VERTEXAI", "").lower() in ("true", "1")
    if not vertex and not any(environ.get(name) for name in KEY_VARIABLES):
        raise WorkflowError(f"{settings.model} needs an API key: set {' or '.join(KEY_VARIABLES)}")
    address = {} if settings.api_base is None else {"base_url": settings.api_base}
    try:
        # One try: a node is tried again as a whole. The client takes 0 for its own default of several.
        return ChatGoogleGenerativeAI(
            model=settings.model or "",
            timeout=timeout,
            max_retries=1,
            **gemini_settings(settings),
            **address,
        )
    except Exception as error:
        raise WorkflowError(f"{settings.model} cannot be asked: {said_of(error)}") from error


def gemini_settings(settings: LlmSettings) -> dict[str, Any]:
    """How Gemini is to answer, by langchain-google-genai's names."""
    given = {"temperature": settings.temperature, "max_output_tokens": settings.max_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _other(settings: LlmSettings, timeout: float) -> BaseChatModel:
    provider = settings.provider or ""
    package = _PACKAGES.get(provider, f"langchain-{provider.replace('_', '-')}")
    if find_spec("langchain") is None:
        unknown = "" if provider in PROVIDERS else " (a provider that is unknown here)"
        raise WorkflowError(f"provider {provider}{unknown} needs packages: pip install langchain {package}")
    keys = _KEYS.get(provider, ())
    if keys and settings.api_base is None and not any(environ.get(name) for name in keys):
        raise WorkflowError(f"{settings.model} needs an API key: set {keys[0]}")
    given = {
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "base_url": settings.api_base,
        # Those of all providers, where they have them; the node's own limit holds beside.
        "timeout": timeout,
        "max_retries": 0,
    }
    options = {name: value for name, value in given.items() if value is not None}
    try:
        # By name: the package is no dependency, and type checkers find it on some machines only.
        init_chat_model = import_module("langchain.chat_models").init_chat_model
        made: BaseChatModel = init_chat_model(settings.model, model_provider=provider, **options)
    except ImportError as error:
        raise WorkflowError(f"provider {provider} needs a package: pip install {package}") from error
    except Exception as error:
        raise WorkflowError(f"{provider} {settings.model} cannot be asked: {said_of(error)}") from error
    return made


# Whose client takes a missing key for none at all, and dials. langchain-anthropic 1.0 to 1.7.
_KEYS = {"anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")}


# HTTP statuses of servers that may answer the next time.
_AGAIN = (408, 409, 425, 429)


def worth_another_try(error: BaseException) -> bool:
    """Whether a call that failed may succeed the next time: a busy server, a limit, a broken or slow connection.

    By the HTTP status that the clients of all providers put on their exceptions, else by the kind of exception;
    looked for along the causes, since LangChain wraps what clients raise.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        status = _status(found)
        if status is not None:
            return status in _AGAIN or status >= 500
        if isinstance(found, ConnectionError | TimeoutError) or _of_transport(found):
            return True
        found = found.__cause__ or found.__context__
    return False


def _status(error: BaseException) -> int | None:
    for name in ("status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None


_TRANSPORT = {
    "httpx": ("TransportError",),
    "httpcore": ("NetworkError", "TimeoutException", "ProtocolError"),
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "requests": ("ConnectionError", "Timeout"),
    "openai": ("APIConnectionError",),
    "anthropic": ("APIConnectionError",),
}


def _of_transport(error: BaseException) -> bool:
    """By the names of classes, so that no client is imported that nobody uses."""
    return any(cls.__name__ in _TRANSPORT.get(cls.__module__.partition(".")[0], ()) for cls in type(error).__mro__)
