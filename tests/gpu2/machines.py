"""Two machines on one host with two GPUs: each has a network, a host name, a temporary folder and a GPU of its own, as containers would.

Wants root, `nsenter` and `unshare` (util-linux), and pyroute2 for the cable between the two.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launched import Launched
from pyroute2 import IPRoute, NetNS, netns

NAMED = 'hostname "$1" && shift && exec "$@"'


class Machine(Launched):
    """One of the two. `gpu` is its number on the host."""

    def __init__(self, name: str, ip: str, gpu: int, folder: Path) -> None:
        self.space = f"engineroom-{name}"
        super().__init__(name, folder, threads=ThreadPoolExecutor(16, initializer=netns.setns, initargs=(self.space,)))
        self.ip, self.gpu = ip, gpu
        self.temporary = Path(f"/tmp/er-{name}")  # a short name: sockets are made there
        self.temporary.mkdir(exist_ok=True)

    def command(self, *command: str) -> list[str]:
        """A command that runs on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "--uts", "sh", "-c", NAMED, "sh", self.name, *command]

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        """What every program on this machine sees."""
        return super().environment({"CUDA_VISIBLE_DEVICES": str(self.gpu), "TMPDIR": str(self.temporary), **env})

    def close(self) -> None:
        """End whatever is left."""
        super().close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them, and nothing else."""
    first, second = Machine("first", "10.77.0.1", 0, folder / "first"), Machine("second", "10.77.0.2", 1, folder / "second")
    try:
        for machine in (first, second):
            netns.create(machine.space)
        with IPRoute() as here:
            here.link("add", ifname="er-first", kind="veth", peer={"ifname": "er-second"})
            for machine in (first, second):
                here.link("set", index=here.link_lookup(ifname=f"er-{machine.name}")[0], net_ns_fd=machine.space)
        for machine in (first, second):
            with NetNS(machine.space) as there:
                index = there.link_lookup(ifname=f"er-{machine.name}")[0]
                there.addr("add", index=index, address=machine.ip, prefixlen=24)
                for number in (1, index):
                    there.link("set", index=number, state="up")
        yield first, second
    finally:
        for machine in (first, second):
            machine.close()
            machine.threads.shutdown()
            with contextlib.suppress(OSError):
                netns.remove(machine.space)
