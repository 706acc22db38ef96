"""One module per engine behind one protocol; this dict is the whole registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from launcher.engines import sglang, trtllm, vllm
from launcher.engines.common import Request


class Engine(Protocol):
    """What the launcher must know about an engine."""

    HEALTH: str
    """Path that answers 200 when the server lives."""
    PROGRESS: str
    """Name of the counter in /metrics that grows with every generated token; empty where there is none."""
    RUNNING: tuple[str, ...]
    """Names of the gauges in /metrics that count requests under way."""

    CACHE: str
    """Variable that names the folder of its own caches; empty where there is none."""
    DEATH: re.Pattern[bytes] | None
    """A line of the engine's own log that says that a part of it is dead."""

    def command(self, request: Request) -> list[str]:
        """The server's command line."""
        ...

    def environment(self, request: Request) -> dict[str, str]:
        """Variables that the server needs beside the image's own."""
        ...

    def native(self, nodes: int, rank: int | str, address: str, port: int) -> list[str]:
        """Flags of one node in the engine's own multi-node form."""
        ...

    def cluster_environment(self, ip: str) -> dict[str, str]:
        """Variables of one node of several; those that are set already stay."""
        ...


ENGINES: Final[Mapping[str, Engine]] = {"sglang": sglang, "trtllm": trtllm, "vllm": vllm}
