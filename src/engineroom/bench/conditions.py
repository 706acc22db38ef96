"""What is measured, and on what: without that, a figure says nothing."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom import machine
from engineroom.api import Api, model, request
from engineroom.errors import BadRequest, EngineRoomError, ServiceUnavailable
from launcher import hardware, log

if TYPE_CHECKING:  # a machine without Docker measures as well
    from docker.models.containers import Container

    from engineroom.catalog import Catalog

PROOF_TOKENS = 16
PROGRAM_SECONDS = 120  # it imports all of the engine
GPU_SECONDS = 60  # a driver that is loaded for each question takes seconds per GPU
# In an image: what it is and what GPUs it sees; the launcher's own Python and modules.
LOOK = """
import json, sys
sys.path.insert(0, "/opt/launcher")
from launcher import hardware
found = hardware.look({})
print(json.dumps({"image": json.load(open("/etc/engineroom/image.json")), "gpus": [gpu.name for gpu in found.gpus], "driver": found.driver}))
"""


def of_api(api: Api, name: str) -> dict[str, Any]:
    """What a server tells of itself, with this machine's GPUs where it is here. One short request warms it up.

    Raises as `api.model`, and EngineRoomError where the server ends answers before they have the wanted length.
    """
    row = model(api, name)
    body = {"model": row["id"], "prompt": "1", "max_tokens": PROOF_TOKENS, "temperature": 0, "ignore_eos": True}
    usage = json.loads(request(api, "/completions", body).read()).get("usage") or {}
    if usage.get("completion_tokens") != PROOF_TOKENS:
        raise EngineRoomError(
            f"{api.url} does not keep to `ignore_eos`: of {PROOF_TOKENS} tokens that were asked for, usage has {usage.get('completion_tokens')}. "
            "Answers of unequal length cannot be compared."
        )
    here = hardware.look({}) if api.local else hardware.NONE
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": api.url,
        "engine": row.get("owned_by", ""),
        "release": _version(api),
        "model": row["id"],
        "root": row.get("root") or "",
        "context": row.get("max_model_len"),
        "gpus": [gpu.name for gpu in here.gpus],
        "driver": here.driver,
        "cpu": _cpu(),
    }


def of_stack(catalog: Catalog, stack: str, container: Container) -> dict[str, Any]:
    """What the catalog and a stack's running container say of it; goes over what its server tells."""
    row = catalog.stack(stack)
    checkpoint = catalog.models[row.model]
    environment = _environment(container)
    answer = machine.inside(container, "/usr/bin/python3", "-IS", "-c", LOOK, seconds=GPU_SECONDS)
    if not answer.well:
        raise ServiceUnavailable(f"{container.name} does not say what it runs: {answer.error}\nType: make status STACK={stack}")
    found = json.loads(answer.text)
    served = environment.get("LAUNCH_MODEL") or found["image"]["model"]
    return {
        "stack": stack,
        "engine": found["image"]["engine"],
        "release": found["image"]["version"],
        "model": served,
        "revision": checkpoint.revision if served == checkpoint.hub else "",
        "image": container.attrs["Config"]["Image"],
        "image_id": container.attrs["Image"],
        "nodes": row.nodes,
        "gpus": found["gpus"],
        "driver": found["driver"],
        "command": _command(container),
        "environment": dict(sorted(environment.items())),
    }


def _version(api: Api) -> str:
    """Its release, which vLLM and TensorRT-LLM tell beside the API, and others do not."""
    try:
        return str(json.loads(request(api._replace(url=api.url.removesuffix("/v1")), "/version").read())["version"])
    except (EngineRoomError, ValueError, LookupError, TypeError):
        return ""


def version_of(program: str) -> str:
    """The release of a `vllm` that is here. Raises BadRequest when it does not tell."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BadRequest(f"{program} --version: {error}") from None
    return (said.split() or [""])[-1]


def _cpu() -> str:
    """The name of this machine's processor."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
    return found[1] if found else ""


def _command(container: Container) -> str:
    """The engine's command line, as the launcher said it when the container started."""
    began = datetime.fromisoformat(container.attrs["State"]["StartedAt"][:19]).replace(tzinfo=UTC)
    rest = b""
    for chunk in container.logs(stream=True, follow=False, since=began):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            said = log.read(line.decode("utf-8", "replace"))
            if said and (said.event == "command" or said.message.startswith("command ")):
                return said.message.removeprefix("command").strip()
    return ""


def _environment(container: Container) -> dict[str, str]:
    """Settings that say how the engine runs; secrets come as files, and are none of them."""
    pairs = (line.partition("=") for line in container.attrs["Config"]["Env"])
    wanted = ("LAUNCH_", "VLLM_", "SGLANG_", "NCCL_", "OMP_", "TLLM_", "TRTLLM_")
    return {
        name: value
        for name, _, value in pairs
        if name.startswith(wanted) and not re.search(r"KEY|TOKEN|SECRET|PASSWORD|_DIR$|_ROOT$", name)
    }
