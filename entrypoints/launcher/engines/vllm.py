"""vLLM: `vllm serve`."""

from __future__ import annotations

import os
import re

from launcher.engines.common import Request, flags, merged

HEALTH = "/health"
CACHE = "VLLM_CACHE_ROOT"
PROGRESS = "vllm:generation_tokens_total"
RUNNING: tuple[str, ...] = ("vllm:num_requests_running", "vllm:num_requests_waiting")

# Its own log names a dead worker long before /health does; only lines of its logger count, since others may quote a visitor.
DEATH: re.Pattern[bytes] | None = re.compile(
    rb"(?:\([^)]*\) )*ERROR [^\[]*\[[\w./]+\.py:\d+\] "
    rb"(?:RayWorkerProc .*died unexpectedly|Worker proc \S+ died unexpectedly|EngineCore encountered a fatal error)"
)
STEP_SECONDS = "120"  # the longest step of all ranks: after a lost one the engine itself would wait 300 s

MIDDLEWARE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "middleware")


def command(request: Request) -> list[str]:
    """`vllm serve MODEL …`; a switched-off flag is `--no-flag` in every release that we pin."""
    values: dict[str, object] = {
        "served-model-name": request.model_name,
        "host": request.host,
        "port": request.port,
        "tensor-parallel-size": request.tp if request.tp > 1 else None,
        "pipeline-parallel-size": request.pp if request.pp > 1 else None,
        "max-model-len": request.max_model_len,
        "max-num-seqs": request.max_seqs,
        "gpu-memory-utilization": request.fraction,
        "distributed-executor-backend": {"native": "mp", "": None}.get(request.executor, request.executor),
    }
    line = flags(merged(request, values), off="no-")
    return ["vllm", "serve", request.model, *line, "--middleware", "engineroom_drain.Drain", *request.extra]


def native(nodes: int, rank: int | str, address: str, port: int) -> list[str]:
    """Flags of one node in the engine's own multi-node form; every node but the first has no server."""
    line = ["--nnodes", str(nodes), "--node-rank", str(rank), "--master-addr", address, "--master-port", str(port)]
    return line if rank == 0 else [*line, "--headless"]


def cluster_environment(ip: str) -> dict[str, str]:
    """Variables of a node in a stack of several: its address, and the deadline of a step for the executors that we pin."""
    return {"VLLM_HOST_IP": ip, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": STEP_SECONDS, "RAY_CGRAPH_get_timeout": STEP_SECONDS}


def environment(request: Request) -> dict[str, str]:
    """Where the middleware is and what it asks; the API key, since command lines are public."""
    path = os.pathsep.join(part for part in (MIDDLEWARE, os.environ.get("PYTHONPATH", "")) if part)
    key = {"VLLM_API_KEY": request.api_key} if request.api_key else {}
    return {"PYTHONPATH": path, "ENGINEROOM_STATE": request.state, **key}
