"""From rows to decisions about stacks: what a stack is wherever it runs, and what its compose file needs on top."""

from __future__ import annotations

from typing import Any

from engineroom.catalog import Catalog
from engineroom.resolve import BASE_IMAGE, GATEWAY_IMAGE, PAGE_IMAGE, PROMETHEUS_IMAGE, answer_flags, model_folder, tag
from engineroom.rows import Scalar, Stack, Variable

FETCH_BYTES_PER_SECOND = 20_000_000  # a slow line to the model hub; only a deadline depends on it
MOST_START_SECONDS = 4 * 3600  # who serves 671 B has a faster line, or the weights on disk
START_SECONDS = 600  # imports, compilation and graph capture, generously
JOIN_SECONDS = 600  # from the first node of a stack to the last: somebody types on each machine
STOP_MARGIN_SECONDS = 15  # between the launcher's deadline and its container's
ROUTER_DRAIN_SECONDS = 120  # as entrypoints/router has it
READY = ("launch", "health", "--ready")
SECRETS = "/run/engineroom"
GATEWAY_PORT = 8443
GATEWAY_SECRETS = {  # where its files are in a container, whatever mounts them
    f"gateway_{name}": f"{SECRETS}/gateway_{name}" for name in ("keys", "certificate", "certificate_key")
}
CHOICES = ("LAUNCH_MAX_MODEL_LEN", "LAUNCH_MAX_SEQS", "LAUNCH_JOIN_SECONDS")  # of a stack's row, and under Compose its user's
GATEWAY_CHOICES = (  # its user's
    "GATEWAY_NAMES", "GATEWAY_ORIGINS", "GATEWAY_KEY_STREAMS", "GATEWAY_KEY_RATE", "GATEWAY_BODY_MIB", "GATEWAY_ANSWER_SECONDS",
)  # fmt: skip


def served(catalog: Catalog, name: str, other: str = "") -> dict[str, Any]:
    """What a stack is in every form: image, model, layout, settings, sizes in GiB, times in seconds; `other` is a model to take its own's place."""
    stack = catalog.stacks[name]
    if other not in ("", stack.model):  # the row's own deadline is for its own model
        stack = stack.model_copy(update={"model": other, "start_seconds": None})
    image, release, model = catalog.images[stack.image], catalog.release_of(stack.image), catalog.models[stack.model]
    page = catalog.release_of(PAGE_IMAGE)
    start = start_seconds(stack, model.bytes)
    return {
        "name": name,
        "title": stack.title,
        "image": tag(stack.image, release),
        "page_image": page.published,
        "page_settings": {variable.name: variable for variable in page.settings},
        "model": model_folder(stack.model) if image.model == stack.model else model.hub,
        "model_name": api_name(catalog, stack),
        "nodes": stack.nodes,
        "gpus": stack.gpus,
        "clustered": stack.nodes > 1,
        "engine_environment": engine_environment(stack, answer_flags(model, release), start),
        "healthy_seconds": healthy_seconds(stack, model.bytes),
        "stop_seconds": stack.drain_seconds + STOP_MARGIN_SECONDS,
        "shm_gib": 16 if stack.gpus > 1 else 1,
        "ready_command": READY,
    }


def compose(catalog: Catalog, name: str) -> dict[str, Any]:
    """What the compose template needs."""
    stack = catalog.stacks[name]
    release = catalog.release_of(stack.image)
    clustered, found = stack.nodes > 1, served(catalog, name)
    settings = found.pop("engine_environment")
    return {
        **found,
        "engine_environment": {variable: setting for variable, setting in settings.items() if variable not in CHOICES},
        "choices": {variable: setting for variable, setting in settings.items() if variable in CHOICES},
        "effect": "starts the server, waits until a token comes out of it, and starts the page",
        "dockerfile": f"images/{stack.image}/Dockerfile",
        "base": f"${{VENDOR_IMAGE:-{release.base}}}" if release.base else f"${{BASE_IMAGE:-{BASE_IMAGE}}}",
        "secrets": ["hf_token", "cluster_token"] if clustered else ["hf_token"],
        "role": "head" if clustered else "single",
        "passed_on": passed_on(stack),
        "server": "127.0.0.1:${API_PORT:-8000}" if clustered else f"{name}-engine:8000",
        "page_port": "${WEBUI_PORT:-3000}" if clustered else "8080",
        "gateway": gateway(catalog, name, clustered=clustered, drain_seconds=stack.drain_seconds),
        "metrics": metrics(catalog, name),
    }


def passed_on(stack: Stack) -> list[str]:
    """Variables that the engine's container gets from the shell or `.env` where they are set there, beside CHOICES."""
    names = ["HF_ENDPOINT", "HF_HUB_OFFLINE", "LAUNCH_LOG", "LAUNCH_PROBE_SECONDS"]
    names += [] if stack.profile else ["LAUNCH_PROFILE"]
    names += [] if stack.max_seqs else ["LAUNCH_MAX_SEQS"]
    return names + (["LAUNCH_CLUSTER_PORT", "LAUNCH_PEER_SECONDS"] if stack.nodes > 1 else [])


def api_name(catalog: Catalog, stack: Stack) -> str:
    """What the API calls a stack's model: the row's name, except by TensorRT-LLM, which knows no other than the model's own."""
    own = catalog.release_of(stack.image).engine == "trtllm"
    return catalog.models[stack.model].hub if own else stack.model


def gateway(catalog: Catalog, name: str, *, clustered: bool, drain_seconds: int) -> dict[str, Any]:
    """The gateway in front of a stack. On several nodes it is on the head's own network, since page and server listen on its loopback."""
    engines, page, listen = f"{name}-engine:8000", f"{name}:8080", f"0.0.0.0:{GATEWAY_PORT}"
    if clustered:
        engines, page, listen = (
            "127.0.0.1:${API_PORT:-8000}",
            "127.0.0.1:${WEBUI_PORT:-3000}",
            "${GATEWAY_ADDRESS:-0.0.0.0}:${GATEWAY_PORT:-8443}",
        )
    return {
        "image": tag(GATEWAY_IMAGE, catalog.release_of(GATEWAY_IMAGE)),
        "base": f"${{BASE_IMAGE:-{BASE_IMAGE}}}",
        "environment": gateway_environment(engines, page, listen, drain_seconds),
        "secrets": GATEWAY_SECRETS,
        "choices": GATEWAY_CHOICES,
    }


def gateway_environment(engines: str, page: str, listen: str, drain_seconds: int) -> list[Variable]:
    """The gateway's settings wherever it runs, GATEWAY_CHOICES left out: those are as entrypoints/gateway has them, or as its user sets them."""
    return [
        Variable(name="GATEWAY_ENGINES", value=engines, why="every address behind it is a replica"),
        Variable(name="GATEWAY_PAGE", value=page, why="the chat page"),
        Variable(name="GATEWAY_LISTEN", value=listen, why="TLS alone is spoken there"),
        Variable(name="GATEWAY_DRAIN_SECONDS", value=str(drain_seconds), why="the stack's row"),
        Variable(name="GATEWAY_KEYS_FILE", value=GATEWAY_SECRETS["gateway_keys"], why="lines of name:key"),
        Variable(name="GATEWAY_CERTIFICATE_FILE", value=GATEWAY_SECRETS["gateway_certificate"], why="PEM, with the chain"),
        Variable(name="GATEWAY_CERTIFICATE_KEY_FILE", value=GATEWAY_SECRETS["gateway_certificate_key"], why="its private key"),
    ]


def metrics(catalog: Catalog, name: str) -> dict[str, Any] | None:
    """Prometheus beside a stack; None where its engine has nothing to tell it."""
    stack = catalog.stacks[name]
    if not catalog.release_of(stack.image).metrics.running:
        return None
    here = "127.0.0.1:${PROMETHEUS_PORT:-9090}" if stack.nodes > 1 else "127.0.0.1:9090"
    return {
        "image": tag(PROMETHEUS_IMAGE, catalog.release_of(PROMETHEUS_IMAGE)),
        "base": f"${{BASE_IMAGE:-{BASE_IMAGE}}}",
        "listen": here if stack.nodes > 1 else "0.0.0.0:9090",
        "here": here,
    }


def profiles(catalog: Catalog, name: str) -> dict[str, str]:
    """The profiles of a stack's compose file that add something, each with its image, after which its service is called too."""
    found = {"gateway": GATEWAY_IMAGE}
    return found | {"metrics": PROMETHEUS_IMAGE} if name in catalog.stacks and metrics(catalog, name) else found


def rules(catalog: Catalog, name: str) -> dict[str, Any]:
    """What a stack's rules for Prometheus need: the engine's own names, and how long it may be silent."""
    stack = catalog.stacks[name]
    return {
        "name": name,
        "release": catalog.images[stack.image].engine,
        "names": catalog.release_of(stack.image).metrics.model_dump(),
        "healthy_seconds": healthy_seconds(stack, catalog.models[stack.model].bytes),
        "clustered": stack.nodes > 1,
    }


def upstream(catalog: Catalog, name: str) -> dict[str, Any]:
    """What the compose template of a page in front of another's service needs."""
    row, page = catalog.upstream_stacks[name], catalog.release_of(PAGE_IMAGE)
    return {
        "name": name,
        "title": row.title,
        "effect": "starts a router to the service that UPSTREAM_URL names, and the page: docs/upstream.md",
        "image": tag(row.image, catalog.release_of(row.image)),
        "dockerfile": f"images/{row.image}/Dockerfile",
        "base": f"${{BASE_IMAGE:-{BASE_IMAGE}}}",
        "page_image": page.published,
        "page_settings": {variable.name: variable for variable in page.settings},
        "page_port": "8080",
        "model_name": "${UPSTREAM_MODEL:-}",
        "server": f"{name}-engine:8000",
        "clustered": False,
        "gateway": gateway(catalog, name, clustered=False, drain_seconds=ROUTER_DRAIN_SECONDS),
        "metrics": None,
        "stop_seconds": ROUTER_DRAIN_SECONDS + STOP_MARGIN_SECONDS,
    }


def start_seconds(stack: Stack, model_bytes: int) -> int:
    """Deadline for the first token: the row's own, else from the bytes that may have to be fetched first."""
    return stack.start_seconds or min(START_SECONDS + model_bytes // FETCH_BYTES_PER_SECOND, MOST_START_SECONDS)


def healthy_seconds(stack: Stack, model_bytes: int) -> int:
    """How long a container may be unhealthy before that is a failure: until the first token, and until all nodes are there."""
    return start_seconds(stack, model_bytes) + (JOIN_SECONDS if stack.nodes > 1 else 0)


def engine_environment(stack: Stack, answer: dict[str, tuple[Scalar, str]], start: int) -> dict[str, Variable]:
    """The launcher's settings of a stack, each with its reason."""

    def variable(name: str, value: object, why: str) -> Variable:
        return Variable(name=name, value=str(value).lower() if isinstance(value, bool) else str(value), why=why)

    found = [
        variable("LAUNCH_MAX_MODEL_LEN", stack.max_model_len, "the stack's row"),
        variable("LAUNCH_START_SECONDS", start, "from the model's size"),
        variable("LAUNCH_DRAIN_SECONDS", stack.drain_seconds, "the stack's row"),
    ]
    if stack.gpus:
        found.append(variable("LAUNCH_GPUS", stack.gpus, "the stack's row"))
    if stack.gpus or stack.tp:
        found.append(variable("LAUNCH_TP", stack.tensor_parallel, "the stack's row" if stack.tp else "tensor parallel within a node"))
    if stack.nodes > 1:
        found += [
            variable("LAUNCH_NODES", stack.nodes, "the stack's row"),
            variable("LAUNCH_JOIN_SECONDS", JOIN_SECONDS, "until every node must be there"),
        ]
    if stack.nodes > 1 or stack.pipeline_parallel > 1:
        found.append(variable("LAUNCH_PP", stack.pipeline_parallel, "pipeline parallel over what tensor parallel leaves"))
    if stack.profile:
        found.append(variable("LAUNCH_PROFILE", stack.profile, "the stack's row"))
    if stack.max_seqs:
        found.append(variable("LAUNCH_MAX_SEQS", stack.max_seqs, "the stack's row"))
    flags = answer | {setting.flag: (setting.value, setting.why) for setting in stack.args}
    found += [variable(f"LAUNCH_ARG_{flag.upper().replace('-', '_')}", *value) for flag, value in flags.items()]
    return {v.name: v for v in (*found, *stack.env)}
