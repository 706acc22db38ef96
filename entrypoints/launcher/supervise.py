"""The engine's parent: starts it, watches it, forwards signals, drains, reaps, and explains its end.

An engine that ends by itself is a failure even with status 0. Nothing it started outlives it, and it does not outlive us.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from launcher.engines import ENGINES
from launcher.errors import EngineDied, LaunchError, Refused, StartTimeout, Unavailable
from launcher.plan import LaunchPlan
from launcher.probe import TOKEN_TIMEOUT, Server, State
from launcher.processes import adopt_orphans, die_with_parent, ending, kill_descendants

TAIL_LINES = 50
LOADING_GRACE = 5.0  # a load can be repeated: it gets little time
IDLE_CHECKS = 2  # so many looks a second apart must find nothing running: counters lag behind requests
STOP_GRACE = 10.0  # for the engine's own ending, once nothing runs any more
WATCH_SECONDS = 5.0
FAILURES = 3  # so many failed probes in a row are a dead engine
TICK = 0.25
TERMINATION_LOG = "/dev/termination-log"  # where Kubernetes reads a container's last words

STOP = {signal.SIGTERM, signal.SIGINT}
FORWARD = {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
WATCHED = STOP | FORWARD | {signal.SIGCHLD}


def run(plan: LaunchPlan, secrets: dict[str, str] | None = None) -> int:
    """Start the engine and stay until it is gone. Returns 0 when the end was asked for.

    Raises EngineDied or StartTimeout otherwise.
    """
    return Supervisor(plan, (secrets or {}).get("LAUNCH_API_KEY")).run()


class Supervisor:
    """One engine process and its descendants."""

    def __init__(self, plan: LaunchPlan, api_key: str | None) -> None:
        """Nothing is started yet."""
        self.plan = plan
        self.server = Server(ENGINES[plan.engine], plan.port, api_key)
        self.state = State(plan.state)
        self.tail: collections.deque[bytes] = collections.deque(maxlen=TAIL_LINES)
        self.ready = threading.Event()
        self.failure: LaunchError | None = None  # written by the watch thread, read by the main loop
        self.stops = 0
        self.kill_at: float | None = None
        self.next_look, self.idle = 0.0, 0
        self.terminated = False  # the engine has had its SIGTERM
        self.killed = False  # or worse, and from us
        self.announced = False

    def run(self) -> int:
        """See `run` above."""
        adopt_orphans()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some parents, and then nothing could be reaped
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self.began = time.monotonic()
        try:
            self.state.write("loading")
        except OSError as error:
            raise Refused(f"{self.state.path} cannot be written ({error.strerror}): set TMPDIR to a folder that can.") from None
        self.engine = self._start()
        pump = threading.Thread(target=self._pump, args=(self.engine.stdout,), daemon=True)
        pump.start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            status = self._loop()
        finally:
            kill_descendants()
        pump.join(timeout=2)
        self._tell("stopped")
        if self.failure and not self.stops:
            raise self._with_tail(self.failure)
        if not (self.terminated or self.killed):
            raise self._with_tail(EngineDied(f"The engine {ending(status)} after {self._age()}, and nobody had asked it to end."))
        say(f"stopped on request after {self._age()}")
        return 0

    def _start(self) -> subprocess.Popen[bytes]:
        def in_child() -> None:  # before exec: die with the launcher, and with the signals of an ordinary process
            die_with_parent()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

        try:
            return subprocess.Popen(
                self.plan.command,
                env={**os.environ, **self.plan.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - no other thread runs yet
            )
        except OSError as error:
            raise EngineDied(f"The engine's program {self.plan.command[0]} cannot be started: {error.strerror}.") from None

    def _loop(self) -> int:
        """Handle signals, deadlines and deaths until the engine is gone; returns its wait status as a return code."""
        while True:
            received = signal.sigtimedwait(WATCHED, TICK)
            if received is not None:
                self._on_signal(signal.Signals(received.si_signo))
            status = self._reap()
            if status is not None:
                return status
            if self.ready.is_set() and not self.announced and not self.stops:
                self.announced = True
                self._tell("ready")
                say(f"ready after {self._age()}: port {self.plan.port}")
            if self.failure and not self.stops:
                say(f"{self.failure} Ending the engine.")
                self._kill()
            elif self.stops and not self.terminated and self._drained():
                self.kill_at = time.monotonic() + STOP_GRACE
                self._terminate()
            if self.kill_at is not None and time.monotonic() > self.kill_at:
                say("deadline passed: killing what is left")
                self._kill()

    def _on_signal(self, number: signal.Signals) -> None:
        if number in FORWARD:
            self.engine.send_signal(number)
        elif number in STOP:
            self.stops += 1
            if self.stops == 1:
                self._stop(number)
            else:
                say(f"{number.name} again: killing the engine")
                self._kill()

    def _stop(self, number: signal.Signals) -> None:
        """First request to stop: a loading engine ends at once, a ready one finishes what it is doing."""
        now = time.monotonic()
        if not self.ready.is_set():
            say(f"{number.name} while loading: ending the engine")
            self.kill_at = now + LOADING_GRACE
            self._terminate()
            return
        self._tell("draining")
        say(f"{number.name}: draining, {self.plan.drain_seconds:g} s at most")
        self.kill_at = now + self.plan.drain_seconds
        if not ENGINES[self.plan.engine].RUNNING:  # it does not say what runs: its own ending must do, and gets the time
            self._terminate()

    def _drained(self) -> bool:
        """Nothing has been running for a while, as far as the engine tells."""
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + 1
        self.idle = self.idle + 1 if self.server.running() == 0 else 0  # no answer is not idle
        return self.idle == IDLE_CHECKS

    def _kill(self) -> None:
        self.killed = True
        kill_descendants()

    def _tell(self, word: str) -> None:
        """Write the state; a full or vanished folder must not end a server."""
        with contextlib.suppress(OSError):
            self.state.write(word)

    def _terminate(self) -> None:
        self.terminated = True
        self.engine.send_signal(signal.SIGTERM)

    def _reap(self) -> int | None:
        """Collect every child that has ended, ours or inherited; the engine's return code once it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.engine.returncode
            if pid == self.engine.pid:
                self.engine.returncode = os.waitstatus_to_exitcode(status)
            if pid == 0:
                return self.engine.returncode

    def _pump(self, stream: IO[bytes]) -> None:
        """Pass the engine's output on, and keep its last lines."""
        rest = b""
        while chunk := os.read(stream.fileno(), 65536):  # not by lines: a progress bar ends none
            with contextlib.suppress(OSError):  # nobody reads our output: the engine must not hang on that
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            self.tail.extend(line for line in lines if line)
            rest = rest[-4096:]
        self.tail.extend([rest] if rest else [])

    def _watch(self) -> None:
        """Wait until a token comes out, then see to it that tokens keep coming out."""
        try:
            model = self._await_ready()
            self._guard(model)
        except LaunchError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would watch any more
            self.failure = EngineDied(f"The engine's answers are not understood ({type(error).__name__}).")

    def _await_ready(self) -> str:
        last = "no answer yet"
        while time.monotonic() - self.began < self.plan.start_seconds:
            try:
                self.server.live()
                model = self.server.model()
                self.server.token(model)
            except Unavailable as error:
                last = str(error)
                time.sleep(1)
                continue
            self.ready.set()
            return model
        raise StartTimeout(f"The engine is not ready after {self.plan.start_seconds:g} s ({last}); LAUNCH_START_SECONDS is the deadline.")

    def _guard(self, model: str) -> None:
        failures, next_token, seen = 0, time.monotonic() + self.plan.probe_seconds, self.server.progress()
        while not self.stops:
            time.sleep(WATCH_SECONDS if not failures else 1)
            try:
                self.server.live()
                if self.plan.probe_seconds and (failures or time.monotonic() >= next_token):
                    self.server.token(model, timeout=min(TOKEN_TIMEOUT, max(2, self.plan.probe_seconds)))
                    next_token = time.monotonic() + self.plan.probe_seconds
                failures = 0
                seen = self.server.progress()
            except Unavailable as error:
                before, seen = seen, self.server.progress()
                if before is not None and seen is not None and seen > before:
                    continue  # busy, and tokens come out
                failures += 1
                say(f"probe {failures} of {FAILURES} failed: {error}")
                if failures == FAILURES and not self.stops:
                    raise EngineDied(f"The engine runs and no token comes out: {error}.") from None

    def _with_tail(self, error: LaunchError) -> LaunchError:
        lines = [line.decode("utf-8", "replace").rstrip() for line in self.tail]
        shown = "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"
        found = type(error)(f"{error}\nIts last {len(lines)} lines:\n{shown}")
        _last_words(str(found))
        return found

    def _age(self) -> str:
        return f"{time.monotonic() - self.began:.0f} s"


def say(text: str) -> None:
    """A line of the launcher's own, apart from the engine's output."""
    with contextlib.suppress(OSError):
        print(f"INFO [launch] {text}", file=sys.stderr, flush=True)


def _last_words(text: str) -> None:
    with contextlib.suppress(OSError), open(TERMINATION_LOG, "r+", encoding="utf-8") as file:  # only where it exists
        file.write(text[-4000:])
        file.truncate()
