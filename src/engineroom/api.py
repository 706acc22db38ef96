"""Requests to an OpenAI-compatible API, of a stack or of anybody."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engineroom.errors import BadRequest, EngineRoomError, ServiceUnavailable

SILENCE = 120.0  # seconds that an answer may take to begin or to go on
LOCAL = ("localhost", "127.0.0.1", "::1")


class Api(NamedTuple):
    """An OpenAI-compatible API: its address with `/v1`, a key, and a certificate authority for its TLS."""

    url: str
    key: str = ""
    ca: Path | None = None

    @property
    def local(self) -> bool:
        """Whether it is on this machine, where no proxy leads."""
        return urlsplit(self.url).hostname in LOCAL


def key_of(file: Path | None) -> str:
    """The key in the first line of a file; empty without one. Raises BadRequest for what cannot stand in a request."""
    key = file.read_bytes().split(b"\n", 1)[0].strip().decode("ascii", "replace") if file else ""
    if not (key.isascii() and key.isprintable()):
        raise BadRequest(f"{file} holds no key in its first line: wanted are printable ASCII characters alone. Write it anew.")
    return key


def model(api: Api, name: str = "") -> dict[str, Any]:
    """The row that it lists of a model, or its first one. Raises as `request`, and EngineRoomError when it is not listed."""
    try:
        rows = {str(row["id"]): dict(row) for row in json.loads(request(api, "/models").read()).get("data", [])}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise EngineRoomError(
            f"{api.url}/models does not list models: that is no OpenAI-compatible API. Its address ends with /v1."
        ) from None
    if not rows or (name and name not in rows):
        raise EngineRoomError(f"{api.url}/models lists {', '.join(rows) or 'nothing'}" + (f", and not {name}." if name else "."))
    return rows[name or next(iter(rows))]


def request(api: Api, path: str, body: dict[str, Any] | None = None) -> Any:
    """A request. Raises ServiceUnavailable when nothing answers or it says to come back, EngineRoomError when it is refused."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api.key}"} if api.key else {})
    asked = urllib.request.Request(f"{api.url}{path}", json.dumps(body).encode() if body else None, headers)  # noqa: S310 - the scheme is checked
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=api.ca))]
    if api.local:  # whatever proxy is set
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        return urllib.request.build_opener(*handlers).open(asked, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        said = f"{api.url}{path} answers {error.code}: {error.read(300).decode('utf-8', 'replace').strip()}"
        raise (ServiceUnavailable if error.code in (502, 503, 504) else EngineRoomError)(said) from None
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnavailable(f"{api.url} cannot be reached: {getattr(error, 'reason', error)}") from None
