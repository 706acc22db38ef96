"""Every example against the running demo, as a person would start it; faults come from a server in front of it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from demo import ROOT, Demo, free_port

QUESTION = "What is 348 + 275?"


def run(address: str, example: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """An example in a process of its own, with nothing but the address in its environment."""
    env = {"PATH": os.environ["PATH"], "OPENAI_BASE_URL": address, "NO_PROXY": "*"}
    command = [sys.executable, f"examples/{example}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, input=typed, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.containers
def test_chat_shows_the_thought_apart(demo: Demo) -> None:
    """The thought is dimmed and ends before the answer, which has no tags of it."""
    result = run(demo.api, "chat.py", QUESTION)

    assert result.returncode == 0, result.stderr
    thought, answer = result.stdout.split("\nAnswer: ")
    assert thought.startswith("\033[2mThought: ")
    assert thought.endswith("\033[0m")
    assert "The ones: 8 + 5 = 13" in thought
    assert r"\boxed{623}" in answer
    assert "think>" not in result.stdout


@pytest.mark.containers
def test_chat_as_tutor_goes_on(demo: Demo) -> None:
    """A conversation of two questions, with a task before the first; an empty line ends it."""
    result = run(demo.api, "chat.py", "--as", "tutor", typed=f"{QUESTION}\nWhat is 905 - 48?\n\n")

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Answer: ") == 2
    assert r"\boxed{857}" in result.stdout


@pytest.mark.containers
@pytest.mark.parametrize(("expected", "status"), [("623", 0), ("624", 1)])
def test_math_solver_checks_the_box(demo: Demo, expected: str, status: int) -> None:
    """The right answer ends with 0, another with 1 and both values."""
    result = run(demo.api, "math_solver.py", QUESTION, expected)

    assert result.returncode == status, result.stderr
    assert "answer: 623 (ended by stop)" in result.stdout
    assert ("result: 623 (as expected)" in result.stdout) is (status == 0)
    assert ("wrong: 623, expected 624" in result.stderr) is (status == 1)


@pytest.mark.containers
def test_json_output_has_the_shape(demo: Demo) -> None:
    """The engine lets nothing but the schema through, whatever the model would have said."""
    result = run(demo.api, "json_output.py", QUESTION)

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[0])
    assert found.keys() == {"first", "operator", "second", "result"}
    assert found["operator"] in {"+", "-"}
    assert "The shape is right" in result.stdout


@pytest.mark.containers
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_tool_call_says_why_there_is_none(demo: Demo, force: list[str]) -> None:
    """The demo model knows no tools and its server offers none: that is said, in the server's words."""
    result = run(demo.api, "tool_call.py", QUESTION, *force)

    assert result.returncode == 1
    assert "This server takes no tool calls" in result.stderr
    assert "--tool-call-parser" in result.stderr
    assert "Traceback" not in result.stderr


class Front(BaseHTTPRequestHandler):
    """Hands requests on to the demo, after the faults that are left in `faults`: a status, `drop` (no answer) or `cut` (in mid-stream)."""

    target = ""
    faults: list[int | str] = []  # noqa: RUF012 - set by each test
    asked = 0

    def do_GET(self) -> None:
        self.forward(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        fault = type(self).faults.pop(0) if type(self).faults else None
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault != "drop":
            self.forward(body, lines=6 if fault == "cut" else None)
        self.close_connection = True

    def forward(self, body: bytes | None, lines: int | None = None) -> None:
        """The demo's answer, or its first lines."""
        upstream = http.client.HTTPConnection(type(self).target)
        upstream.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = upstream.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(answer):
            if number == lines:
                return  # without the last chunk: the client sees that something is missing
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Nothing."""


@pytest.fixture
def front(demo: Demo) -> Iterator[type[Front]]:
    """A server in front of the demo that fails as it is told."""
    Front.target, Front.asked, Front.faults = urlsplit(demo.api).netloc, 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Front.address = f"http://127.0.0.1:{server.server_port}/v1"
    yield Front
    server.shutdown()
    server.server_close()


@pytest.mark.containers
def test_retry_waits_as_it_is_asked_to(front: type[Front]) -> None:
    """429, 503 and no answer at all are tried again, after Retry-After where it is sent; then the answer comes."""
    front.faults = [429, 503, "drop"]
    result = run(front.address, "retry.py", QUESTION)

    assert result.returncode == 0, result.stderr
    assert r"\boxed{623}" in result.stdout
    assert front.asked == 4
    assert result.stderr.count("Trying again in 1.0 s") == 2
    assert result.stderr.count("Trying again in") == 3


@pytest.mark.containers
def test_retry_never_repeats_what_has_begun(front: type[Front]) -> None:
    """An answer that breaks off is not asked for again, and is said to be incomplete."""
    front.faults = ["cut"]
    result = run(front.address, "retry.py", QUESTION)

    assert (result.returncode, front.asked) == (70, 1)
    assert "The answer broke off" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.containers
@pytest.mark.parametrize(("fault", "status", "asked"), [(400, 69, 1), (503, 75, 2)])
def test_retry_gives_up(front: type[Front], fault: int, status: int, asked: int) -> None:
    """What cannot get better ends at once, the rest when patience is over."""
    front.faults = [fault] * 9
    result = run(front.address, "retry.py", QUESTION, "--patience", "1.5")

    assert (result.returncode, front.asked) == (status, asked), result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_server() -> None:
    """All begin alike: they say where they asked and what to check."""
    result = run(f"http://127.0.0.1:{free_port()}/v1", "chat.py", QUESTION)

    assert result.returncode == 69
    assert "nothing answers there" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_example_is_documented() -> None:
    """The page of the examples names each program."""
    programs = {path.name for path in ROOT.glob("examples/*.py") if "__main__" in path.read_text()}

    assert {name for name in programs if f"`{name}`" not in (ROOT / "examples/README.md").read_text()} == set()
