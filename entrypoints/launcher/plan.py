"""The launch plan: everything that is decided before anything starts, so that it can be printed and tested."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from launcher import role as roles
from launcher.engines import ENGINES
from launcher.engines.common import Request
from launcher.errors import Refused
from launcher.facts import ImageFacts
from launcher.settings import Settings


class LaunchPlan(NamedTuple):
    """What will run. `environment` holds only what is added to the container's own; secrets in it are in `secret_names`."""

    image: str
    engine: str
    version: str
    role: str
    rule: str
    model: str
    model_name: str
    port: int
    command: list[str]
    environment: dict[str, str]
    secret_names: tuple[str, ...]
    state: str
    start_seconds: float
    drain_seconds: float
    probe_seconds: float


def make(settings: Settings, facts: ImageFacts, env: Mapping[str, str]) -> LaunchPlan:
    """Decide role, model, layout, command and environment. Raises Refused for what cannot work."""
    role = roles.detect(settings)
    model = settings.model or facts.model
    if not model:
        raise Refused(
            "No model: set LAUNCH_MODEL to a folder in the container or a hub id, for example deepseek-ai/DeepSeek-R1-Distill-Qwen-7B."
        )
    engine = ENGINES[facts.engine]
    gpus = visible_gpus(env, facts) if settings.gpus is None else settings.gpus
    pp = settings.pp or settings.nodes
    request = Request(
        model=model,
        model_name=settings.model_name or (facts.model_name if model == facts.model else "") or model.rstrip("/").rsplit("/", 1)[-1],
        port=settings.port,
        tp=settings.tp or max(gpus * settings.nodes // pp, 1),
        pp=pp,
        max_model_len=settings.max_model_len,
        max_seqs=settings.max_seqs,
        defaults=facts.args,
        args=settings.args,
        extra=settings.extra,
        api_key=settings.secrets.get("LAUNCH_API_KEY"),
        state=state_file(settings.port),
    )
    defaults = {name: value for name, value in facts.env.items() if name not in env}
    added = engine.environment(request)
    if "HF_TOKEN" in settings.secrets:
        added["HF_TOKEN"] = settings.secrets["HF_TOKEN"]
    return LaunchPlan(
        image=facts.image,
        engine=facts.engine,
        version=facts.version,
        role=role.name,
        rule=role.rule,
        model=request.model,
        model_name=request.model_name,
        port=request.port,
        command=engine.command(request),
        environment={**defaults, **added},
        secret_names=tuple(name for name, value in added.items() if value in settings.secrets.values()),
        state=request.state,
        start_seconds=settings.start_seconds,
        drain_seconds=settings.drain_seconds,
        probe_seconds=settings.probe_seconds,
    )


def state_file(port: int) -> str:
    """The file in which the supervisor says what it does: loading, ready, draining or stopped."""
    return os.path.join(os.environ.get("TMPDIR", "/tmp"), f"launch-{port}.state")  # noqa: S108 - one server a port


def only_port() -> int | None:
    """The port of the only launcher that has left a state file here, if there is just one."""
    folder = os.path.dirname(state_file(0))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    ports = [name[len("launch-") : -len(".state")] for name in names if name.startswith("launch-") and name.endswith(".state")]
    return int(ports[0]) if len(ports) == 1 and ports[0].isdigit() else None


def visible_gpus(env: Mapping[str, str], facts: ImageFacts) -> int:
    """GPUs that the engine may use: those of CUDA_VISIBLE_DEVICES, else those whose device nodes are in this container."""
    if not any(facts.gpus.values()):
        return 0
    if env.get("CUDA_VISIBLE_DEVICES"):
        return len(env["CUDA_VISIBLE_DEVICES"].split(","))
    return sum(name.removeprefix("nvidia").isdigit() for name in os.listdir("/dev") if name.startswith("nvidia"))
