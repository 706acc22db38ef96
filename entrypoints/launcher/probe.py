"""Questions to a running server: does it live, does it know its model, does a token come out."""

from __future__ import annotations

import json
import os

from launcher.engines import Engine
from launcher.errors import Unavailable

LIVE_TIMEOUT = 10.0
METRIC_TIMEOUT = 2.0
TOKEN_TIMEOUT = 20.0


class Busy(Unavailable):
    """No token came in time, from an engine that counts none: it may be busy, or hang."""


class Server:
    """The engine's HTTP server on this machine. Every method has a deadline of its own, in seconds."""

    def __init__(self, engine: Engine, port: int, api_key: str | None = None, host: str = "") -> None:
        """Nothing is contacted yet. `host` is what the server listens on; everything means the loopback as well."""
        self.host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - compared only
        self.engine = engine
        self.port = port
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    def live(self) -> None:
        """Raises Unavailable unless the server answers its health path with 200."""
        self._request("GET", self.engine.HEALTH, timeout=LIVE_TIMEOUT)

    def model(self) -> str:
        """The name of the served model. Raises Unavailable when none is listed."""
        text = self._request("GET", "/v1/models", timeout=LIVE_TIMEOUT)
        try:
            return str(json.loads(text)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise Unavailable(f"/v1/models lists no model: {text[:200]}") from None

    def token(self, model: str, timeout: float = TOKEN_TIMEOUT) -> None:
        """Have one token generated. A busy server that makes progress counts: its queue may be longer than our patience.

        Raises Unavailable when no token came out; Busy where only time ran out, and the engine does not tell whether it makes progress.
        """
        before = self.progress()
        body = json.dumps({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0})
        try:
            self._request("POST", "/v1/completions", body, timeout=timeout)
        except Unavailable as error:
            after = self.progress()
            if before is None and after is None and isinstance(error.__context__, TimeoutError):  # what _request met
                raise Busy(str(error)) from None
            if before is None or after is None or after <= before:
                raise

    def progress(self) -> float | None:
        """Tokens generated so far, or None where the engine does not say."""
        return self._metric(self.engine.PROGRESS) if self.engine.PROGRESS else None

    def running(self) -> float | None:
        """Requests running or waiting, or None where the engine does not say."""
        return self._metric(*self.engine.RUNNING)

    def _metric(self, *names: str) -> float | None:
        """The sum of these metrics, or None when the server does not say."""
        try:
            text = self._request("GET", "/metrics", timeout=METRIC_TIMEOUT)
        except Unavailable:
            return None
        return total(text, *names)

    def _request(self, method: str, path: str, body: str | None = None, *, timeout: float) -> str:
        import http.client  # 40 ms: not before the engine runs

        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, self.headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, ValueError, http.client.HTTPException) as error:
            shown = "" if isinstance(error, ValueError) else error  # its text may hold the key
            raise Unavailable(f"{method} {path}: {shown or type(error).__name__}") from None
        finally:
            connection.close()
        if response.status != 200:  # noqa: PLR2004 - plain HTTP
            raise Unavailable(f"{method} {path}: {response.status} {text[:200].strip()}")
        return text


def values(text: str, *names: str) -> list[float]:
    """These metrics in the Prometheus text format, one value for each of their label sets; `name{label="value"}` is one of those alone.

    Empty where a value is no number.
    """
    wanted = [name.rstrip("}").partition("{") for name in names]
    found = (
        line for line in text.splitlines() if any(line.split("{")[0].split(" ")[0] == name and label in line for name, _, label in wanted)
    )
    try:
        return [float(line.rsplit(" ", 1)[1]) for line in found]
    except (ValueError, LookupError):
        return []


def total(text: str, *names: str) -> float | None:
    """Their sum; None where there are none."""
    found = values(text, *names)
    return sum(found) if found else None


class State:
    """A word on disk for `launch health` and for the middleware: what the supervisor does now."""

    def __init__(self, path: str) -> None:
        """One file a server."""
        self.path = path

    def write(self, word: str) -> None:
        """Replace the word in one step."""
        with open(f"{self.path}.new", "w", encoding="utf-8") as file:
            file.write(word)
        os.replace(f"{self.path}.new", self.path)

    def read(self) -> str:
        """The word, or nothing when no supervisor has written one."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read()
        except OSError:
            return ""
