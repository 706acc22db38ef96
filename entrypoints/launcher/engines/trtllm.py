"""TensorRT-LLM: `trtllm-serve`. Its own default address is localhost."""

from __future__ import annotations

import re

from launcher.engines.common import Request, flags, merged, refuse_key
from launcher.errors import Refused

HEALTH = "/health"
CACHE = ""
PROGRESS = ""
DEATH: re.Pattern[bytes] | None = None
RUNNING: tuple[str, ...] = ()


def command(request: Request) -> list[str]:
    """`trtllm-serve MODEL …`; a flag that is off is left out. Options here are spelt with underscores."""
    values: dict[str, object] = {
        "host": request.host,
        "port": request.port,
        "tp_size": request.tp if request.tp > 1 else None,
        "pp_size": request.pp if request.pp > 1 else None,
        "max_seq_len": request.max_model_len,
        "max_batch_size": request.max_seqs,
    }
    line = {name.replace("-", "_"): value for name, value in merged(request, values).items()}
    return ["trtllm-serve", request.model, *flags(line, off=""), *request.extra]


def native(nodes: int, rank: int | str, address: str, port: int) -> list[str]:  # noqa: ARG001 - one protocol for all engines
    """TensorRT-LLM spreads over nodes by MPI, which the launcher does not start. Raises Refused."""
    raise Refused("TensorRT-LLM is not started over several nodes by this release. Choose a model that fits one node.")


def cluster_environment(ip: str) -> dict[str, str]:  # noqa: ARG001
    """Nothing: it has no several nodes."""
    return {}


def environment(request: Request) -> dict[str, str]:
    """Nothing beside the image's own. Raises Refused for a key."""
    refuse_key(request, "TensorRT-LLM")
    return {}
