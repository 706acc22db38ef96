"""The engine's parent: starts it (and Ray, and what else its node needs), watches it, forwards signals, drains, reaps, and explains its end.

An engine that ends by itself is a failure even with status 0. Nothing it started outlives it, and it does not outlive us.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import IO, TYPE_CHECKING

from launcher import cache, log
from launcher.engines import ENGINES
from launcher.errors import EngineDied, LaunchError, Refused, StartTimeout, Unavailable
from launcher.phases import Phases
from launcher.plan import LaunchPlan
from launcher.probe import TOKEN_TIMEOUT, Busy, Server, State
from launcher.processes import adopt_orphans, die_with_parent, ending, kill_descendants, leash, oom_kills

if TYPE_CHECKING:
    from launcher import cluster

TAIL_LINES = 50  # shown at the end
KEPT_LINES = 2000  # and kept to explain it: the cause stands above the tracebacks of every rank
KEPT_BYTES = 4096  # of a line, from its beginning
LOADING_GRACE = 5.0  # a load can be repeated: it gets little time
IDLE_CHECKS = 2  # so many looks a second apart must find nothing running: counters lag behind requests
WORKER_GRACE = 5.0  # after the head's own deadline
HEAD_FIRST = 2.0  # how long a follower whose engine has gone waits for the head to say why
LAST_WORDS = 5.0  # from a line that names a dead part to our own ending: the engine may end by itself and explain more
STOP_GRACE = 10.0  # for the engine's own ending, once nothing runs any more
WATCH_SECONDS = 5.0
FAILURES = 3  # so many failed probes in a row are a dead engine
TICK = 0.25
READY_TICK = 0.2  # between two questions whether it is ready
BUSY_SECONDS = 1800  # an engine that counts no tokens may let our own wait so long: 32,768 tokens of others' at 18 a second
TERMINATION_LOG = "/dev/termination-log"  # where Kubernetes reads a container's last words
TERMINATION_SIZE = 4000  # characters; Kubernetes reads 4096 bytes

STOP = {signal.SIGTERM, signal.SIGINT}
FORWARD = {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
WATCHED = STOP | FORWARD | {signal.SIGCHLD}
ASKED = {0} | {-number for number in STOP}  # how an engine ends that was asked to, whoever did


def run(plan: LaunchPlan, secrets: dict[str, str] | None = None) -> int:
    """Start this node's part of the stack and stay until it is gone. Returns 0 when the end was asked for.

    Raises EngineDied, StartTimeout or Unavailable otherwise.
    """
    return Supervisor(plan, secrets or {}).run()


class Child:
    """A process that the main loop starts and reaps. `quiet` keeps its output to its last lines; all of it is passed on otherwise."""

    def __init__(
        self, command: list[str], environment: dict[str, str], *, quiet: bool, death: re.Pattern[bytes] | None, phases: Phases | None = None
    ) -> None:
        """Not started yet."""
        self.command, self.environment, self.quiet, self.death = command, environment, quiet, death
        self.phases = phases  # until it is ready
        self.kept: collections.deque[bytes] = collections.deque(maxlen=KEPT_LINES)
        self.started, self.ended = threading.Event(), threading.Event()
        self.status: int | None = None
        self.error: EngineDied | None = None
        self.last_words: tuple[float, str] | None = None  # when the engine's own log named a dead part, and how

    def start(self) -> None:
        """In the main thread: the kernel kills a child when the thread that started it ends."""

        def in_child() -> None:  # before exec: die with the launcher, and with the signals of an ordinary process
            die_with_parent()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

        try:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - it makes two system calls and takes no lock
            )
        except OSError as error:
            self.error = EngineDied(f"The program {self.command[0]} cannot be started: {error.strerror}.")
        else:
            self.pump = threading.Thread(target=self._pump, args=(self.process.stdout,), daemon=True)
            self.pump.start()
        self.started.set()

    def send(self, number: signal.Signals) -> None:
        """In the main thread, which reaps: Popen.send_signal() may reap by itself, and then `status` would stay unset for ever."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self.ended.wait(seconds)

    def lines(self) -> list[str]:
        """What it wrote, as far as it is kept."""
        self.pump.join(timeout=2)
        return [line.decode("utf-8", "replace").rstrip() for line in list(self.kept)]

    def output(self) -> str:
        """Its last lines, indented."""
        return "\n".join(f"  | {line}" for line in self.lines()[-TAIL_LINES:]) or "  | (nothing)"

    def _pump(self, stream: IO[bytes]) -> None:
        """Pass the output on, and keep the end of it."""
        rest = b""
        while chunk := os.read(stream.fileno(), 65536):  # not by lines: a progress bar ends none
            if not self.quiet:
                try:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
                except OSError:  # nobody reads our output: the engine must not hang on that
                    log.discard(sys.stdout)
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            self.kept.extend(line[:KEPT_BYTES] for line in lines if line)
            if phases := self.phases:
                for line in lines:
                    phases.line(line[:KEPT_BYTES])
            if self.death and not self.last_words:
                found = next((line for line in lines if self.death.match(line)), None)
                self.last_words = (time.monotonic(), found.decode("utf-8", "replace").strip()) if found else None
            rest = rest[:KEPT_BYTES]  # its beginning: cut in the middle, what a visitor wrote could pass for the engine's own words
        self.kept.extend([rest] if rest else [])


class Supervisor:
    """One node of a stack, or the only one: its engine, its Ray, and their descendants."""

    def __init__(self, plan: LaunchPlan, secrets: dict[str, str]) -> None:
        """Nothing is started yet."""
        self.plan = plan
        self.server = Server(ENGINES[plan.engine], plan.port, secrets.get("LAUNCH_API_KEY"), plan.host)
        self.state = State(plan.state)
        self.node = _node(plan, secrets.get("LAUNCH_CLUSTER_TOKEN", ""))
        self.wanted: collections.deque[Child] = collections.deque()
        self.children: dict[int, Child] = {}
        self.essential: dict[int, str] = {}
        self.engine: Child | None = None
        self.ready = threading.Event()
        self.failure: LaunchError | None = None  # the first that any thread finds; read by the main loop
        self.leaving = ""  # why this stack ends though nobody asked this node to
        self.over = ""  # why there is nothing left to wait for
        self.stops = 0  # requests to stop this node
        self.stopping = False
        self.kill_at: float | None = None
        self.next_look, self.idle = 0.0, 0
        self.terminated = False  # the engine has had its SIGTERM
        self.killed = False  # or worse, and from us
        self.announced = False
        self.patience = HEAD_FIRST

    def run(self) -> int:
        """See `run` above."""
        adopt_orphans()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some parents, and then nothing could be reaped
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self.began = time.monotonic()
        self.oom_kills = oom_kills()
        try:
            self.state.write("loading" if self.plan.serves else "worker joining")
        except OSError as error:
            raise Refused(f"{self.state.path} cannot be written ({error.strerror}): set TMPDIR to a folder that can.") from None
        threading.Thread(target=self._work, daemon=True).start()
        asked = False
        try:
            self._loop()
            found = self._verdict()
            asked = True
        finally:
            if self.node:  # no more than a farewell when a cause was given before
                self.node.close("it was stopped" if asked else "its launcher failed", asked=asked)
            kill_descendants()
        self.phase("stopped" if self.plan.serves else "worker stopped")
        if found:
            raise self._with_tail(found)
        log.write("stopped", f"stopped on request after {self._age()}")
        return 0

    def _verdict(self) -> LaunchError | None:
        """What went wrong, if anything did; the other nodes hear of it first, before they notice it by its consequences."""
        status = self.engine.status if self.engine else None
        uninvited = status is not None and not (self.terminated or self.killed or (status in ASKED and self._asked_as_well()))
        if uninvited and not self.plan.serves and status != -signal.SIGKILL:
            deadline = time.monotonic() + self.patience  # a follower's engine often dies of the head's end, and the head knows why
            while not (self.failure or self.over) and time.monotonic() < deadline:
                time.sleep(TICK)
            uninvited = not (self.over or self.stops)
        found: LaunchError | None = None
        if self.failure and not self.stops:
            found = self.failure
        elif uninvited and status is not None and not self.over:
            found = EngineDied(f"The engine {ending(status)} after {self._age()}, and nobody had asked it to end.")
        elif self.leaving and not self.stops:
            found = Unavailable(f"{self.leaving}, and the stack cannot go on without it.")
        if found and self.node:
            self.node.close(str(found), asked=False)
        return found

    def _asked_as_well(self) -> bool:
        """Whether this node was to stop. `scancel` asks every process at once: the engine may have ended before our own signal is here."""
        if not self.stops:
            time.sleep(TICK)
            self.stops += bool(signal.sigpending() & STOP)
        return self.stops > 0

    def _work(self) -> None:
        """What takes its time: the nodes meet, the engine loads; then see to it that tokens keep coming out."""
        try:
            command, environment = self.node.bring_up(self) if self.node else (self.plan.command, self.plan.environment)
            if command:
                self.engine = self.spawn(command, environment, engine=True)
                self.leash = leash(self.engine.process.pid)  # a core without its server would keep the GPU
            if self.node and not self.plan.serves:
                self.node.follow(self)
                return
            model = self._await_ready(time.monotonic())
            self.started()
            if self.node:
                self.node.ready()
            self._guard(model)
        except LaunchError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would watch any more
            self.fail(EngineDied(f"The engine's answers are not understood ({type(error).__name__}: {error})."))

    def spawn(self, command: list[str], environment: dict[str, str], *, quiet: bool = False, engine: bool = False) -> Child:
        """Have the main loop start a process. Raises EngineDied when it cannot be started."""
        death, phases = (ENGINES[self.plan.engine].DEATH, Phases(self.plan.engine)) if engine else (None, None)
        child = Child(command, environment, quiet=quiet, death=death, phases=phases)
        self.wanted.append(child)
        os.kill(os.getpid(), signal.SIGCHLD)  # wakes the main loop
        child.started.wait()
        if child.error:
            raise child.error
        return child

    def guard(self, essential: dict[int, str]) -> None:
        """From now on the end of any of these processes is a failure."""
        self.essential = essential

    def fail(self, error: LaunchError) -> None:
        """End everything for this reason; the first one counts."""
        self.failure = self.failure or error

    def leave(self, cause: str) -> None:
        """A peer was asked to stop: finish what runs, then end."""
        self.leaving = self.leaving or cause

    def end(self, cause: str) -> None:
        """There is nothing left to wait for, and that is as it should be."""
        self.over = self.over or cause

    def ending(self) -> None:
        """The head has begun to stop: the end of a follower's engine is its doing."""
        self.patience = STOP_GRACE + WORKER_GRACE

    def phase(self, word: str) -> None:
        """Write the state; a full or vanished folder must not end a server."""
        with contextlib.suppress(OSError):
            self.state.write(word)

    def _loop(self) -> None:
        """Start what is wanted, handle signals, deadlines and deaths, until the engine is gone or nothing is left to wait for."""
        while True:
            received = signal.sigtimedwait(WATCHED, TICK)
            # Continued after a SIGSTOP, Python returns what happens to be in memory (its own check of the deadline comes between).
            if received is not None and received.si_signo in WATCHED:
                self._on_signal(signal.Signals(received.si_signo))
            while self.wanted and not self.over:
                child = self.wanted.popleft()
                child.start()
                if not child.error:
                    self.children[child.process.pid] = child
            self._reap()
            if self.over or (self.engine and self.engine.status is not None) or self.killed:
                if self.over:
                    log.write("stop", f"{self.over}: ending this node")
                return
            if self.engine and self.engine.last_words and time.monotonic() > self.engine.last_words[0] + LAST_WORDS:
                self.fail(EngineDied(f"The engine's own log names a dead part: {self.engine.last_words[1]}"))
            if self.ready.is_set() and not self.announced and not self.stopping:
                self.announced = True
                self.phase("ready")
                log.write("ready", f"ready after {self._age()}: port {self.plan.port}", port=self.plan.port)
            if self.leaving and not self.stopping:
                self._stop(self.leaving)
            if self.failure and self.stopping and not self.plan.serves:
                self.over = self.over or "the head has ended"
            if self.failure and not self.stopping:
                log.write("failure", f"{self.failure} Ending this node.")
                self.killed = True  # run() kills, once the other nodes have been told why
                return
            if self.failure and self.plan.serves and not (self.terminated or self.killed):
                log.write("failure", f"{self.failure} What still runs cannot finish.")
                self._kill()
            if self.stopping and self.plan.serves and self.engine and not self.terminated and self._drained():
                self.kill_at = time.monotonic() + STOP_GRACE
                self._terminate(self.engine)
            if self.kill_at is not None and time.monotonic() > self.kill_at:
                log.write("kill", "deadline passed: killing what is left")
                self._kill()

    def _on_signal(self, number: signal.Signals) -> None:
        if number in FORWARD:
            if self.engine:
                self.engine.send(number)
        elif number in STOP:
            self.stops += 1
            if self.stops == 1 and not self.stopping:
                self._stop(number.name)
            elif self.stops > 1:
                log.write("kill", f"{number.name} again: killing the engine")
                self._kill()

    def _stop(self, cause: str) -> None:
        """First request to stop: a loading engine ends at once, a ready one finishes what it is doing, and so do its workers."""
        now = time.monotonic()
        self.stopping = True
        if self.node and self.node.stopping():
            log.write("drain", f"{cause}: the head finishes what it is doing, {self.plan.drain_seconds:g} s at most")
            self.phase("worker draining")
            self.kill_at = now + self.plan.drain_seconds + WORKER_GRACE
        elif not self.engine:
            self.over = f"{cause} while the nodes meet"
        elif not self.ready.is_set():
            log.write("stop", f"{cause} while loading: ending the engine")
            self.kill_at = now + LOADING_GRACE
            self._terminate(self.engine)
        else:
            self.phase("draining")
            log.write("drain", f"{cause}: draining, {self.plan.drain_seconds:g} s at most")
            self.kill_at = now + self.plan.drain_seconds
            if not ENGINES[self.plan.engine].RUNNING:  # it does not say what runs: its own ending must do, and gets the time
                self._terminate(self.engine)

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

    def _terminate(self, engine: Child) -> None:
        self.terminated = True
        engine.send(signal.SIGTERM)

    def _reap(self) -> None:
        """Collect every child that has ended, ours or inherited."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            child = self.children.pop(pid, None)
            if child:
                child.process.returncode = child.status = code
                child.ended.set()
            name = self.essential.pop(pid, "")
            if name:
                self.fail(EngineDied(f"Ray's {name} on this node {ending(code)}, and nobody had asked it to end."))

    def _await_ready(self, began: float) -> str:
        last = "no answer yet"
        while time.monotonic() - began < self.plan.start_seconds:
            try:
                self.server.live()
                model = self.server.model()
                self.server.token(model)
            except Unavailable as error:
                last = str(error)
                time.sleep(READY_TICK)
                continue
            self.ready.set()
            return model
        raise StartTimeout(f"The engine is not ready after {self.plan.start_seconds:g} s ({last}); LAUNCH_START_SECONDS is the deadline.")

    def started(self) -> None:
        """Say what the start took. What the engine prints from now on may hold what visitors wrote."""
        if self.engine and self.engine.phases:
            phases, self.engine.phases = self.engine.phases, None
            cache.started(self.plan.cache, phases.ready())

    def _guard(self, model: str) -> None:
        came = time.monotonic()  # the last token of ours
        failures, next_token, seen = 0, came + self.plan.probe_seconds, self.server.progress()
        while not self.stopping:
            time.sleep(WATCH_SECONDS if not failures else 1)
            try:
                self.server.live()
                if self.plan.probe_seconds and (failures or time.monotonic() >= next_token):
                    try:
                        self.server.token(model, timeout=min(TOKEN_TIMEOUT, max(2, self.plan.probe_seconds)))
                        came = time.monotonic()
                    except Busy:
                        if time.monotonic() - came > BUSY_SECONDS:
                            raise
                    next_token = time.monotonic() + self.plan.probe_seconds
                failures = 0
                seen = self.server.progress()
            except Unavailable as error:
                before, seen = seen, self.server.progress()
                if before is not None and seen is not None and seen > before:
                    continue  # busy, and tokens come out
                failures += 1
                log.write("probe", f"probe {failures} of {FAILURES} failed: {error}", failures=failures)
                if failures == FAILURES and not self.stopping:
                    suspect = self.node.suspect() if self.node else None
                    raise suspect or EngineDied(f"The engine runs and no token comes out: {error}.") from None

    def _with_tail(self, error: LaunchError) -> LaunchError:
        """The error, why it came to that, and the engine's last lines."""
        why = self._why() if isinstance(error, (EngineDied, StartTimeout)) else ""
        head = "\n".join(part for part in (str(error), why) if part)
        if not self.engine:
            _last_words(head, "")
            return type(error)(head)
        output = self.engine.output()
        _last_words(head, output)
        return type(error)(f"{head}\nIts last {min(len(self.engine.kept), TAIL_LINES)} lines:\n{output}")

    def _why(self) -> str:
        """What the engine's end came from, as far as the kernel and its own output say; empty when they say nothing."""
        if not self.engine:
            return ""
        from launcher import explain  # not needed by a server that runs

        before, now = self.oom_kills, oom_kills()
        short = before is not None and now is not None and now > before
        log = explain.Log(self.plan.engine)
        for line in [f"memory.events: oom_kill {before} -> {now}"] if short else self.engine.lines():
            log.add(line)
        found = explain.report(log)
        if self.engine.status == -signal.SIGKILL and not (self.killed or found):
            return (
                "Cause: not known. Where nobody sent the signal, the machine is out of memory: `dmesg | grep -i 'killed process'` on the host tells."
                if now is None
                else "Cause: not known. The kernel's count of processes killed for want of memory has not risen: somebody sent the signal, or a watchdog did."
            )
        return found

    def _age(self) -> str:
        return f"{time.monotonic() - self.began:.0f} s"


def _node(plan: LaunchPlan, token: str) -> cluster.Head | cluster.Worker | None:
    """What this node does for a stack of several; nothing of it is loaded for one node."""
    if not plan.cluster:
        return None
    from launcher import cluster

    return (cluster.Head if plan.serves else cluster.Worker)(plan, plan.cluster, token, partial(log.write, "cluster"))


def _last_words(head: str, output: str) -> None:
    """What Kubernetes shows of a container that ended: the cause, and as much of the output's end as there is room for."""
    room = max(TERMINATION_SIZE - len(head) - 1, 0)
    with contextlib.suppress(OSError), open(TERMINATION_LOG, "r+", encoding="utf-8") as file:  # only where it exists
        file.write(f"{head[:TERMINATION_SIZE]}\n{output[len(output) - min(room, len(output)) :]}")
        file.truncate()
