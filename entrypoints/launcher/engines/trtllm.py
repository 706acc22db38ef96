"""TensorRT-LLM: `trtllm-serve`. Its own default address is localhost."""

from __future__ import annotations

from launcher.engines.common import Request, flags, merged, refuse_key

HEALTH = "/health"
PROGRESS = ""
RUNNING: tuple[str, ...] = ()


def command(request: Request) -> list[str]:
    """`trtllm-serve MODEL …`; a flag that is off is left out. Options here are spelt with underscores."""
    values: dict[str, object] = {
        "host": "0.0.0.0",  # noqa: S104 - the container's own network; what is published is the stack's choice
        "port": request.port,
        "tp_size": request.tp if request.tp > 1 else None,
        "pp_size": request.pp if request.pp > 1 else None,
        "max_seq_len": request.max_model_len,
        "max_batch_size": request.max_seqs,
    }
    line = {name.replace("-", "_"): value for name, value in merged(request, values).items()}
    return ["trtllm-serve", request.model, *flags(line, off=""), *request.extra]


def environment(request: Request) -> dict[str, str]:
    """Nothing beside the image's own. Raises Refused for a key."""
    refuse_key(request, "TensorRT-LLM")
    return {}
