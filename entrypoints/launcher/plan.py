"""The launch plan: everything that is decided before anything starts, so that it can be printed and tested."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from launcher import __version__, cache, flags, hardware, hub, layout, loader, profiles, raynode, sizing
from launcher import role as roles
from launcher.engines import ENGINES
from launcher.engines.common import Request, flag_value, has_flag
from launcher.errors import Refused
from launcher.facts import ImageFacts
from launcher.settings import Settings


class Cluster(NamedTuple):
    """The place of this node among several. `gpus` are those of a node; `rank` is None where the head gives it; seconds.

    `agreed` is what every node must say alike. The token is a secret and not here.
    """

    executor: str
    reason: str
    nodes: int
    rank: int | None
    head: str | None
    interface: str | None
    port: int
    gpus: int
    join_seconds: float
    peer_seconds: float
    agreed: dict[str, object]


class LaunchPlan(NamedTuple):
    """What will run. `environment` holds only what is added to the container's own; secrets in it are in `secret_names`.

    `cache` is where it keeps what it compiles, `cached` what the hub's cache has of a model that is no folder; `config` is its config.json as far as it is known,
    `presets` are the flags of the profile, `sizing` what it takes of the GPUs; `copies` of it run side by side (data parallel).
    `line` is the engine's command line as this node's settings make it, without what is known only once the nodes have met.
    `notes` say which flags were translated, `warnings` what is doubtful.
    """

    image: str
    engine: str
    version: str
    role: str
    rule: str
    cluster: Cluster | None
    model: str
    model_name: str
    cache: cache.Cache
    cached: hub.Cached | None
    config: Mapping[str, Any]
    profile: str | None
    presets: tuple[sizing.Choice, ...]
    sizing: sizing.Sizing
    copies: int
    max_model_len: int | None
    tp: int
    pp: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    host: str
    port: int
    line: list[str]
    environment: dict[str, str]
    secret_names: tuple[str, ...]
    state: str
    start_seconds: float
    drain_seconds: float
    probe_seconds: float

    @property
    def serves(self) -> bool:
        """Whether this node has the API."""
        return self.role != "worker"

    @property
    def command(self) -> list[str]:
        """What this node starts: nothing on a worker under Ray, which starts the engine's processes from the head."""
        return [] if self.role == "worker" and self.cluster and self.cluster.executor == "ray" else self.line


START = "VLLM_WORKER_MULTIPROC_METHOD"  # `vllm serve` takes spawn by itself: a new Python, which imports everything once more
# Flags that may name another repository of the hub than the model's: with one of these the engine may have to ask it.
OTHER_REPOSITORIES = ("tokenizer", "tokenizer-path", "hf-config-path", "speculative-config", "speculative-draft-model-path", "lora-modules")


def make(settings: Settings, facts: ImageFacts, env: Mapping[str, str], found: hardware.Hardware | None = None) -> LaunchPlan:
    """Decide role, model, layout, command and environment. `found` is the hardware, looked up when it is not given.

    Raises Refused for what cannot work.
    """
    translated = flags.translate(settings, facts, env)
    settings = translated.settings
    role = roles.detect(settings, env)
    model = _model(settings, facts)
    found = found or (hardware.look(env) if any(facts.gpus.values()) else hardware.NONE)
    gpus = _gpus(settings, len(found.gpus))
    words = [word for value in settings.args.values() if isinstance(value, tuple) for word in value]
    cached = None if os.path.isdir(model) else hub.cached(model, flag_value(words, "revision") or "main", env)
    folder = model if cached is None else cached.folder
    config = sizing.config_of(model, folder)
    copies = _copies(words, role.nodes)
    if role.name == "worker" and settings.tp and settings.pp:
        cut = layout.Layout(settings.tp, settings.pp)  # the head judges it, and names a worker that has too few GPUs
    else:
        cut = layout.decide(settings.tp, settings.pp, role.nodes, gpus // max(copies, 1), config)
    facts, presets = profiles.apply(settings, facts, config, cut.tp * cut.pp * max(copies, 1))
    executor = layout.choose_executor(settings.executor, role.nodes, facts.executors, facts.image)
    ahead: tuple[str, ...] = ()
    if executor.name != "native":  # there all nodes need the same flags, and one may have the weights elsewhere than another
        facts, ahead = loader.choose(facts, folder, words, translated.snapshot, lambda: hardware.limits().free)
    engine, request = ENGINES[facts.engine], _request(settings, facts, model, executor.name, cut)
    node = sizing.Node(cut, role.nodes, executor.name, found.gpus[: max(cut.tp * cut.pp * copies // role.nodes, 1)])
    sized = sizing.size(settings, facts, engine.command(request), sizing.Model(config, folder), node)
    request = request._replace(
        max_model_len=settings.max_model_len or sized.max_model_len,
        max_seqs=settings.max_seqs or sized.max_seqs,
        fraction=sized.fraction,
    )
    line = engine.command(request)
    flags.check(translated.snapshot, line)
    anywhere = engine.command(request._replace(host="", port=0))
    kept = cache.plan(engine.CACHE, facts.release, node.gpus, request.model, line=anywhere, env=env)
    added = {**kept.variables, **engine.environment(request)}
    if cached and not cached.lacks and "HF_HUB_OFFLINE" not in env and not _asks_more(line):
        added["HF_HUB_OFFLINE"] = "1"
    if facts.fork and len(node.gpus) == role.nodes == 1 and START not in env:
        added[START] = "fork"
    if "HF_TOKEN" in settings.secrets:
        added["HF_TOKEN"] = settings.secrets["HF_TOKEN"]
    defaults = {name: value for name, value in facts.env.items() if name not in env}
    return LaunchPlan(
        image=facts.image,
        engine=facts.engine,
        version=facts.version,
        role=role.name,
        rule=role.rule,
        cluster=_cluster(settings, role, executor, gpus, _agreed(request, facts, line, role.nodes)) if role.nodes > 1 else None,
        model=request.model,
        model_name=request.model_name,
        cache=kept,
        cached=cached,
        config=config,
        profile=settings.profile,
        presets=presets,
        sizing=sized,
        copies=copies,
        max_model_len=request.max_model_len,
        tp=cut.tp,
        pp=cut.pp,
        notes=(*translated.notes, *ahead),
        warnings=(*translated.warnings, *cut.warnings),
        host=request.host,
        port=request.port,
        line=line,
        environment={**defaults, **added, **translated.variables},
        secret_names=tuple(name for name, value in added.items() if value in settings.secrets.values()),
        state=request.state,
        start_seconds=settings.start_seconds,
        drain_seconds=settings.drain_seconds,
        probe_seconds=settings.probe_seconds,
    )


def _model(settings: Settings, facts: ImageFacts) -> str:
    """The model: the one that is set, else the image's. Raises Refused without either."""
    model = settings.model or facts.model
    if not model:
        raise Refused(
            "No model: set LAUNCH_MODEL to a folder in the container or a hub id, for example deepseek-ai/DeepSeek-R1-Distill-Qwen-7B."
        )
    return model


def _gpus(settings: Settings, visible: int) -> int:
    """GPUs of this node: those that are set, else those that are there. Raises Refused for more than there are."""
    gpus = visible if settings.gpus is None else settings.gpus
    if 0 < visible < gpus:
        raise Refused(
            f"LAUNCH_GPUS is {gpus}, and this container sees {visible}. Give it more (docker run --gpus {gpus}), or set LAUNCH_GPUS."
        )
    return gpus


def _copies(words: list[str], nodes: int) -> int:
    """Copies of the model that run side by side on one node."""
    asked = flag_value(words, "data-parallel-size", "dp-size")
    return int(asked) if asked.isdigit() and nodes == 1 and "--enable-dp-attention" not in words else 1


def _request(settings: Settings, facts: ImageFacts, model: str, executor: str, cut: layout.Layout) -> Request:
    """What the engine is asked for, before its memory is dealt out."""
    named = facts.model_name if model == facts.model else ""
    return Request(
        model=model,
        model_name=settings.model_name or named or model.rstrip("/").rsplit("/", 1)[-1],
        host=settings.host,
        port=settings.port,
        executor=executor,
        tp=cut.tp,
        pp=cut.pp,
        max_model_len=settings.max_model_len,
        max_seqs=settings.max_seqs,
        fraction=None,
        defaults=facts.args,
        args=settings.args,
        extra=settings.extra,
        api_key=settings.secrets.get("LAUNCH_API_KEY"),
        state=state_file(settings.port),
    )


def _agreed(request: Request, facts: ImageFacts, line: list[str], nodes: int) -> dict[str, object]:
    """What all nodes must have alike; with Ray, the head's flags alone count."""
    return {
        "launcher": __version__,
        "engine": f"{facts.engine} {facts.version}",
        "executor": request.executor,
        "nodes": nodes,
        "model": request.model,
        "tensor parallel": request.tp,
        "pipeline parallel": request.pp,
        **({"flags": shlex.join(line[2:])} if request.executor == "native" else {}),
    }


def _cluster(settings: Settings, role: roles.Role, executor: layout.Executor, gpus: int, agreed: dict[str, object]) -> Cluster:
    """The place of this node among several. Raises Refused without a token, and for ports that run into each other."""
    if "LAUNCH_CLUSTER_TOKEN" not in settings.secrets and not settings.insecure_cluster:
        raise Refused(
            f"A stack of {role.nodes} nodes needs a token that all of them share: without one, whoever reaches their ports can run programs here.\n"
            "Make one with `openssl rand -hex 32 > cluster-token`, give the file to every node, and set LAUNCH_CLUSTER_TOKEN_FILE to it\n"
            "(with our compose files: CLUSTER_TOKEN_FILE).\n"
            "On a network that nobody else reaches, LAUNCH_INSECURE_CLUSTER=true does without."
        )
    raynode.check_ports(settings.cluster_port, settings.port, executor.name)
    if executor.name == "ray":
        agreed = {**agreed, "ray": raynode.version()}
        if not agreed["ray"]:
            raise Refused("There is no `ray` program in this container. Set LAUNCH_EXECUTOR=native, or use an image of this release.")
    return Cluster(
        executor=executor.name,
        reason=executor.reason,
        nodes=role.nodes,
        rank=role.rank,
        head=role.head,
        interface=settings.interface,
        port=settings.cluster_port,
        gpus=gpus,
        join_seconds=settings.join_seconds,
        peer_seconds=settings.peer_seconds,
        agreed=agreed,
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


def _asks_more(command: list[str]) -> bool:
    return flag_value(command, "trust-remote-code") == "true" or any(has_flag(command, name) for name in OTHER_REPOSITORIES)
