"""The process table below this launcher: nothing that it started may outlive it, or it them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time

# Where the kernel counts the processes of this container that it killed for want of memory: cgroup v2, v1.
# https://docs.kernel.org/admin-guide/cgroup-v2.html
OOM_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here, since a child between fork and exec must take no lock


def adopt_orphans() -> None:
    """Make grandchildren whose parents end our own children, so that they are seen and reaped."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill the calling process when its parent ends, however that ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill every process below this one, however deep, also those in sessions of their own."""
    deadline = time.monotonic() + 5
    while (pids := _descendants()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def named(names: tuple[str, ...]) -> dict[int, str]:
    """Living processes below this one that bear one of these names, by process id."""
    found = {}
    for pid in _descendants():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            name = file.read().strip()
            if name in names:
                found[pid] = name
    return found


def leash(group: int | None = None) -> subprocess.Popen[bytes]:
    """Have a process group, or else all processes that are below this one now, killed when it has gone: its end closes a pipe.

    For daemons and grandchildren, which the kernel does not kill with us as it does our children. Keep the result as long as it is to hold.
    """
    line = f"read -r _; kill -9 {' '.join(map(str, [-group] if group else _descendants()))}"
    return subprocess.Popen(["/bin/sh", "-c", line], stdin=subprocess.PIPE, start_new_session=True)


def _descendants() -> list[int]:
    """Living processes below this one (zombies are gone already for our purpose)."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def ending(code: int) -> str:
    """How a process ended, in words, from its return code."""
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for want of memory, the container's or the machine's; None where it does not say."""
    for path in OOM_COUNTS:
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            found = re.search(r"^oom_kill (\d+)$", file.read(), re.MULTILINE)
            if found:
                return int(found[1])
    return None


def _prctl(option: int, value: int) -> None:
    LIBC.prctl(option, value, 0, 0, 0)
