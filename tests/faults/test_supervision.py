"""Faults of the engine and of the launcher, forced with a stub; the numbers are those of the fault table."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faults.conftest import Launched

from launcher import probe
from launcher.engines import ENGINES
from launcher.errors import Unavailable

Launch = Callable[..., Launched]
LOGS = Path(__file__).parents[1] / "data/logs"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleepers(seconds: str) -> list[int]:
    """Processes `sleep <seconds>` on this machine."""
    wanted = f"sleep\0{seconds}\0"
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_text() == wanted:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.fault(1)
def test_fault_01_engine_exits_0_uninvited(launch: Launch) -> None:
    """An engine that ends by itself is a failure, even with status 0."""
    launched = launch(STUB_EXITS_AFTER="2", STUB_STATUS="0")

    assert launched.exit_code(15) == 70
    assert "ended with status 0" in launched.output


@pytest.mark.fault(2)
def test_fault_02_engine_killed(launch: Launch) -> None:
    """A killed engine gives 70 within 5 s, with its last 50 lines and no more."""
    launched = launch(STUB_LINES="60")
    launched.wait_for("ready after")
    os.kill(launched.engine_pid(), signal.SIGKILL)

    assert launched.exit_code(5) == 70
    assert "killed by SIGKILL" in launched.output
    tail = launched.output.partition("Its last 50 lines:")[2].splitlines()
    assert next(line for line in tail if line).strip() == "| line 10"


@pytest.mark.fault(3)
def test_fault_03_worker_process_dies(launch: Launch) -> None:
    """A server that says 503 for its dead core is ended with 70 within 30 s."""
    launched = launch(STUB_CORE_DIES_AFTER="3")
    launched.wait_for("ready after")

    assert launched.exit_code(30) == 70
    assert "503" in launched.output


@pytest.mark.fault(4)
def test_fault_04_hangs_while_health_says_200(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token comes out though /health says 200: the probe ends it with 70."""
    launched = launch(
        STUB_STUCK_AFTER="3",
        LAUNCH_PROBE_SECONDS="1",
    )
    launched.wait_for("ready after")

    assert launched.exit_code(90) == 70
    assert "no token comes out" in launched.output


@pytest.mark.fault(5)
def test_fault_05_launcher_killed(launch: Launch) -> None:
    """Neither the engine nor a process of its own outlives a launcher that was killed."""
    launched = launch(STUB_CORE="1")
    launched.wait_for("ready after")
    engine = launched.engine_pid()
    started = [engine, *children(engine)]
    assert len(started) == 2
    launched.process.kill()
    launched.process.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not any(map(alive, started))


@pytest.mark.fault(6)
def test_fault_06_sigterm_when_idle(launch: Launch) -> None:
    """SIGTERM to an idle server: 0 within 10 s, and nothing is left."""
    launched = launch(STUB_CHILD="7331")
    launched.wait_for("ready after")
    assert sleepers("7331")
    launched.stop()

    assert launched.exit_code(10) == 0
    assert sleepers("7331") == []


@pytest.mark.fault(7)
def test_fault_07_sigterm_in_mid_stream(launch: Launch) -> None:
    """The stream that runs finishes, new requests get 503, and the launcher ends with 0."""
    launched = launch()
    launched.wait_for("ready after")
    with launched.stream(30) as stream:
        stream.readline()
        launched.stop()
        launched.wait_for("draining")
        with pytest.raises(urllib.error.HTTPError, match="503"):
            launched.stream(1)
        text = stream.read().decode()

    assert "[DONE]" in text
    assert launched.exit_code(10) == 0


@pytest.mark.fault(8)
def test_fault_08_drain_deadline(launch: Launch) -> None:
    """A stream that outlasts the drain is cut at the deadline, and every process is gone."""
    launched = launch(LAUNCH_DRAIN_SECONDS="1", STUB_CHILD="7332")
    launched.wait_for("ready after")
    with launched.stream(600) as stream:
        stream.readline()
        launched.stop()

        assert launched.exit_code(10) == 0
    assert "deadline passed" in launched.output
    assert sleepers("7332") == []


@pytest.mark.fault(9)
@pytest.mark.parametrize("ignores", ["", "1"], ids=["obeys", "ignores SIGTERM"])
def test_fault_09_sigterm_while_loading(launch: Launch, ignores: str) -> None:
    """SIGTERM during a load: 0 within 10 s."""
    launched = launch(STUB_LOADS="60", **({"STUB_IGNORES_TERM": "1"} if ignores else {}))
    launched.wait_for("stub: argv")
    launched.stop()

    assert launched.exit_code(10) == 0


@pytest.mark.fault(9)
@pytest.mark.parametrize("loads", ["60", "0"], ids=["loading", "ready"])
@pytest.mark.parametrize("dies", ["1", ""], ids=["dies of it", "catches it"])
def test_fault_09_sigterm_to_every_process_at_once(launch: Launch, loads: str, dies: str) -> None:
    """As `scancel` does it, in any order: an engine that is gone before the launcher reads its own signal ended on request."""
    launched = launch(STUB_LOADS=loads, STUB_DIES_OF_TERM=dies)
    launched.wait_for("stub: argv" if loads == "60" else "ready after")
    engine = launched.engine_pid()
    os.kill(engine, signal.SIGTERM)
    launched.stop()

    assert launched.exit_code(10) == 0
    assert "stopped on request" in launched.output


@pytest.mark.fault(9)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_09_sigterm_before_there_is_an_engine(launch: Launch, number: signal.Signals) -> None:
    """While a hub that says nothing is asked: 0 at once, as at any later time."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(20)
        launched = launch(LAUNCH_MODEL="deepseek-ai/none", HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}", NO_PROXY="*")
        line, _ = hub.accept()
        launched.stop(number)

        assert launched.exit_code(3) == 0
        line.close()
    assert "stopped on request before the engine was started" in launched.output


def test_a_reader_that_has_gone_changes_no_exit_code(launch: Launch) -> None:
    """Neither of the engine's output nor of the launcher's own lines: 70 stays 70."""
    deaf = "import os; read, write = os.pipe(); os.close(read); os.dup2(write, 1); os.dup2(write, 2)\n"
    launched = launch(before=deaf, STUB_EXITS_AFTER="2", STUB_LINES="2000")

    assert launched.exit_code(15) == 70


def test_an_engine_that_counts_no_tokens_may_be_busy() -> None:
    """Where time runs out and nothing tells of progress that is said to be so; where something tells, and there is none, it hangs."""

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"vllm:generation_tokens_total 7\n")

        def do_POST(self) -> None:
            time.sleep(1)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        counts, tells_nothing = (probe.Server(ENGINES[name], server.server_port) for name in ("vllm", "trtllm"))
        with pytest.raises(probe.Busy):
            tells_nothing.token("m", timeout=0.2)
        with pytest.raises(Unavailable) as found:
            counts.token("m", timeout=0.2)
        server.shutdown()
    assert not isinstance(found.value, probe.Busy)


@pytest.mark.fault(10)
def test_fault_10_second_sigterm(launch: Launch) -> None:
    """A second SIGTERM kills at once."""
    launched = launch(STUB_IGNORES_TERM="1", LAUNCH_DRAIN_SECONDS="600")
    launched.wait_for("ready after")
    launched.stop()
    launched.wait_for("draining")
    launched.stop()

    assert launched.exit_code(5) == 0


@pytest.mark.fault(11)
def test_fault_11_no_zombies(launch: Launch) -> None:
    """200 orphaned grandchildren are reaped."""
    launched = launch(STUB_ORPHANS="200")
    launched.wait_for("ready after", 30)
    deadline = time.monotonic() + 10
    while (below := children(launched.process.pid)) and len(below) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)

    assert below == [launched.engine_pid()]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_engine_killed_during_a_drain(launch: Launch) -> None:
    """An engine that dies while it should finish its requests is a failure, not a stop on request."""
    launched = launch()
    launched.wait_for("ready after")
    with launched.stream(100) as stream:
        stream.readline()
        launched.stop()
        launched.wait_for("draining")
        os.kill(launched.engine_pid(), signal.SIGKILL)

        assert launched.exit_code(10) == 70


def test_a_progress_bar_is_passed_on(launch: Launch) -> None:
    """Output without an end of line is shown at once."""
    launched = launch(STUB_BAR="1", STUB_LOADS="5")

    launched.wait_for("loading 50%", 4)

    assert "ready after" not in launched.output


def test_no_place_for_the_state(launch: Launch) -> None:
    """A folder for temporary files that is not there is named before the start."""
    launched = launch(TMPDIR="/no/such/folder")

    assert launched.exit_code(10) == 78
    assert "set TMPDIR" in launched.output


def test_start_deadline(launch: Launch) -> None:
    """An engine that is not ready in time ends with 75: worth another try."""
    launched = launch(STUB_LOADS="60", LAUNCH_START_SECONDS="2")

    assert launched.exit_code(15) == 75
    assert "LAUNCH_START_SECONDS" in launched.output


def test_health_tells_draining_from_ready(launch: Launch) -> None:
    """`health --ready` fails during a drain, while `health` still says live."""
    launched = launch(LAUNCH_DRAIN_SECONDS="30")
    launched.wait_for("ready after")
    env = {"LAUNCH_PORT": str(launched.port)}
    assert launch("health", "--ready", **env).exit_code(10) == 0
    with launched.stream(40) as stream:
        stream.readline()
        launched.stop()
        launched.wait_for("draining")

        assert launch("health", "--ready", **env).exit_code(10) == 69
        assert launch("health", **env).exit_code(10) == 0


def test_the_end_is_explained(launch: Launch) -> None:
    """Cause, fix and the line that says so come first, from far above the last lines, and in the termination log as well."""
    launched = launch(
        STUB_LOG=str(LOGS / "cuda-oom-loading.log"), STUB_LINES_AFTER="400", STUB_EXITS_AFTER="1", STUB_STATUS="1",
    )  # fmt: skip

    assert launched.exit_code(20) == 70
    said = launched.output.partition("ERROR [launch] ")[2].splitlines()
    assert [line.partition(":")[0] for line in said[1:5]] == ["Cause", "Fix", "Seen in", "Its last 50 lines"]
    assert "weights do not fit" in said[1]


def test_an_unknown_end_is_not_explained(launch: Launch, tmp_path: Path) -> None:
    """Where the cause is not known it is not guessed: the exception is shown as what it is."""
    log = tmp_path / "log"
    log.write_text(
        "ERROR 01-01 00:00:00 [core.py:1] ValueError: never seen before\nRuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    launched = launch(STUB_LOG=str(log), STUB_EXITS_AFTER="1", STUB_STATUS="1")

    assert launched.exit_code(20) == 70
    assert (
        "The cause is not one that is known here; these are the lines that look like it:\n  ValueError: never seen before\nIts last"
        in launched.output
    )


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("after", "text"),
    [("1", "Cause: The memory of the machine, or of the container, ran out"), ("0", "has not risen: somebody sent the signal")],
)
def test_fault_34_out_of_memory(launch: Launch, tmp_path: Path, after: str, text: str) -> None:
    """A SIGKILL is laid to memory where the kernel counts one more process killed for it, and not where it does not."""
    count = tmp_path / "memory.events"
    count.write_text("oom 3\noom_kill 0\noom_group_kill 0\n")
    launched = launch(before=f"from launcher import processes; processes.OOM_COUNTS = ({str(count)!r},); ")
    launched.wait_for("ready after")
    count.write_text(f"oom 4\noom_kill {after}\noom_group_kill 0\n")
    os.kill(launched.engine_pid(), signal.SIGKILL)

    assert launched.exit_code(10) == 70
    assert text in launched.output


def test_a_stopped_launcher_goes_on(launch: Launch) -> None:
    """A launcher that was frozen and thawed (a suspended machine, a debugger) goes on, and still stops on request."""
    launched = launch()
    launched.wait_for("ready after")
    for _ in range(5):
        launched.stop(signal.SIGSTOP)
        time.sleep(0.5)
        launched.stop(signal.SIGCONT)
        time.sleep(0.3)
    launched.stop()

    assert launched.exit_code(20) == 0, launched.output
