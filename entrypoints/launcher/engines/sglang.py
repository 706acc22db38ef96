"""SGLang: `python3 -m sglang.launch_server`. Its own default address is 127.0.0.1:30000."""

from __future__ import annotations

import re

from launcher.engines.common import Request, flags, merged, refuse_key

HEALTH = "/health"
CACHE = "SGLANG_CACHE_DIR"
PROGRESS = "sglang:realtime_tokens_total"  # rises with each step; generation_tokens_total only when a request ends
DEATH: re.Pattern[bytes] | None = None
RUNNING: tuple[str, ...] = ("sglang:num_running_reqs", "sglang:num_queue_reqs")


def command(request: Request) -> list[str]:
    """`python3 -m sglang.launch_server --model-path MODEL …`; a flag that is off is left out."""
    values: dict[str, object] = {
        "model-path": request.model,
        "served-model-name": request.model_name,
        "host": request.host,
        "port": request.port,
        "tp-size": request.tp if request.tp > 1 else None,
        "pp-size": request.pp if request.pp > 1 else None,
        "context-length": request.max_model_len,
        "max-running-requests": request.max_seqs,
        "enable-metrics": True,
    }
    return ["python3", "-m", "sglang.launch_server", *flags(merged(request, values), off=""), *request.extra]


def native(nodes: int, rank: int | str, address: str, port: int) -> list[str]:
    """Flags of one node; SGLang gives every node but the first a health page and no API."""
    return ["--nnodes", str(nodes), "--node-rank", str(rank), "--dist-init-addr", f"{address}:{port}"]


def cluster_environment(ip: str) -> dict[str, str]:
    """Variables of a node in a stack of several."""
    return {"SGLANG_HOST_IP": ip, "HOST_IP": ip}


def environment(request: Request) -> dict[str, str]:
    """Nothing beside the image's own. Raises Refused for a key."""
    refuse_key(request, "SGLang")
    return {}
