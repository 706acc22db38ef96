"""vLLM: `vllm serve`."""

from __future__ import annotations

import os

from launcher.engines.common import Request, flags, merged

HEALTH = "/health"
PROGRESS = "vllm:generation_tokens_total"
RUNNING: tuple[str, ...] = ("vllm:num_requests_running", "vllm:num_requests_waiting")

MIDDLEWARE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "middleware")


def command(request: Request) -> list[str]:
    """`vllm serve MODEL …`; a switched-off flag is `--no-flag` in every release that we pin."""
    values: dict[str, object] = {
        "served-model-name": request.model_name,
        "host": "0.0.0.0",  # noqa: S104 - the container's own network; what is published is the stack's choice
        "port": request.port,
        "tensor-parallel-size": request.tp if request.tp > 1 else None,
        "pipeline-parallel-size": request.pp if request.pp > 1 else None,
        "max-model-len": request.max_model_len,
        "max-num-seqs": request.max_seqs,
    }
    line = flags(merged(request, values), off="no-")
    return ["vllm", "serve", request.model, *line, "--middleware", "engineroom_drain.Drain", *request.extra]


def environment(request: Request) -> dict[str, str]:
    """Where the middleware is and what it asks; the API key, since command lines are public."""
    path = os.pathsep.join(part for part in (MIDDLEWARE, os.environ.get("PYTHONPATH", "")) if part)
    key = {"VLLM_API_KEY": request.api_key} if request.api_key else {}
    return {"PYTHONPATH": path, "ENGINEROOM_STATE": request.state, **key}
