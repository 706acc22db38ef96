"""vLLM: `vllm serve`."""

from __future__ import annotations

from launcher.engines.common import Request, flags

HEALTH = "/health"
PROGRESS = "vllm:generation_tokens_total"
RUNNING: tuple[str, ...] = ("vllm:num_requests_running", "vllm:num_requests_waiting")


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
    if request.drain_flag:
        values[request.drain_flag.removeprefix("--")] = int(request.drain_seconds)
    return ["vllm", "serve", request.model, *flags({**values, **request.args}, off="no-"), *request.extra]


def environment(request: Request) -> dict[str, str]:
    """The API key goes through the environment, since command lines are public."""
    return {"VLLM_API_KEY": request.api_key} if request.api_key else {}
