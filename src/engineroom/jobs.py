"""Cluster jobs: one stack row in every scheduler's form. What does not differ between forms is decided here, once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engineroom import gpu_labels, pushed, stacks
from engineroom.build import Say
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotRun
from engineroom.forms import FORMS
from engineroom.host import Host
from engineroom.resolve import GATEWAY_IMAGE, PAGE_IMAGE, tag
from engineroom.rows import Variable
from engineroom.stacks import SECRETS

API_PORT, PAGE_PORT = 8000, 8080
CACHES_GIB = 20  # compiled kernels of one engine release: a few GiB were seen, and a new release starts anew
PRE_STOP_SECONDS = 5  # a Service goes on sending requests until every node has heard that the pod is leaving
START_MARGIN_SECONDS = 60  # between the launcher's deadline and Kubernetes': its own end has a status and says why, a kill has neither
MODELS = "/models"
SBATCH_NODES = re.compile(r"constraint|gres|gpus.*|partition|nodelist")  # options of sbatch that say which nodes
DNS_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Options:
    """What a cluster's user chooses. Empty means: the default that the help text names."""

    namespace: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    gang_size: int | None = None
    model: str = ""
    models: str = ""
    hf_token: str = ""
    cluster_token: str = ""
    storage_class: str = ""
    url: str = "http://localhost:3000"
    gateway: bool = False
    gateway_replicas: int = 1
    gateway_keys: str = ""
    gateway_certificate: str = ""


def render(catalog: Catalog, host: Host, stack: str, form: str, options: Options, *, say: Say = lambda _: None) -> dict[str, str]:
    """The files of a stack in one form: name -> text. What must be known of the images goes to `say`.

    Raises UnknownName or CannotBuild for the stack, BadRequest for options that are malformed, CannotRun with the reason where the
    stack cannot run as asked.
    """
    catalog.stack(stack)
    check_options(options, form)
    check_place(catalog, stack, form, options)
    return FORMS[form](catalog, {**job(catalog, host, stack, options, say=say), "command": f"engineroom jobs {stack} --to {form}"})


def job(catalog: Catalog, host: Host, name: str, options: Options, *, say: Say = lambda _: None) -> dict[str, Any]:
    """What every form needs: the stack as it is everywhere, and what a cluster adds. Sizes in GiB, times in seconds."""
    row = catalog.stacks[name]
    model = known_model(catalog, options.model) or row.model
    found = stacks.served(catalog, name, model)
    inside, url = found["model"].startswith("/"), origin(options.url)
    environment = [
        Variable(name="LAUNCH_MODEL", value=options.model or found["model"], why="a hub id, or a folder in the container"),
        Variable(name="LAUNCH_MODEL_NAME", value=found["model_name"], why="the name that the API shows"),
        *found["engine_environment"].values(),
    ]
    secrets = {}
    if options.hf_token:
        secrets["hf_token"] = options.hf_token
        environment.append(Variable(name="HF_TOKEN_FILE", value=f"{SECRETS}/hf_token", why="the model hub's token"))
    if row.nodes > 1:
        secrets["cluster_token"] = options.cluster_token or f"{label(name)}-cluster-token"
        environment.append(Variable(name="LAUNCH_CLUSTER_TOKEN_FILE", value=f"{SECRETS}/cluster_token", why="only who knows it may join"))
    return {
        **found,
        "label": label(name),
        "image": pushed.reference(catalog, row.image, f"{host.registry}{found['image']}", say),
        "page_image": page_image(catalog, host, found["page_image"]),
        "environment": environment,
        "gateway": gateway(catalog, host, name, options, say),
        "page_environment": page_environment(found, f"{label(name)}-engine:{API_PORT}", url),
        "secrets": secrets,
        "cluster_token": options.cluster_token,
        "secrets_folder": SECRETS,
        "models": options.models,
        "models_folder": MODELS,
        "namespace": options.namespace,
        "node_selector": dict(options.node_selector),
        "gpu_rules": gpu_labels.rules(catalog, row),
        "storage_class": options.storage_class,
        "url": url,
        "port": API_PORT,
        "page_port": PAGE_PORT,
        "cpus": 4 * row.gpus or 2,
        "memory_gib": 16 + 16 * row.gpus if row.gpus else 4,
        "weights_gib": 0 if inside or options.model.startswith("/") else math.ceil(catalog.models[model].bytes * 1.1 / 2**30),
        "caches_gib": CACHES_GIB,
        "pre_stop_seconds": PRE_STOP_SECONDS,
        "grace_seconds": PRE_STOP_SECONDS + found["stop_seconds"],
        "probes": probes(found["healthy_seconds"]),
    }


def known_model(catalog: Catalog, wanted: str) -> str:
    """The catalog's name for a hub id; empty for a folder, or nothing. Raises BadRequest for an id of unknown size: disk and deadline come from that."""
    if not wanted or wanted.startswith("/"):
        return ""
    if name := catalog.model_of_hub(wanted):
        return name
    raise BadRequest(
        f"--model {wanted} is no hub id in images/models.toml, so its size is not known, from which disk and deadline follow. Add a row there "
        f"(CONTRIBUTING.md, Add a model), or fetch it yourself and say --models WHERE --model {MODELS}/NAME.\n"
        f"Known: {', '.join(model.hub for model in catalog.models.values() if not model.hub.startswith('/'))}."
    )


def page_image(catalog: Catalog, host: Host, published: str) -> str:
    """The page's own image where it was pushed, else the one that is set and can be pulled, else Open WebUI's."""
    row = pushed.read(catalog.root).get(PAGE_IMAGE)
    own = tag(PAGE_IMAGE, catalog.release_of(PAGE_IMAGE))  # of this machine alone
    return row.reference if row else host.webui_image if host.webui_image not in ("", own) else published


def gateway(catalog: Catalog, host: Host, name: str, options: Options, say: Say) -> dict[str, Any]:
    """The gateway in front of a stack, and the Secrets that it reads: of keys, and of a certificate as Kubernetes keeps those."""
    image = f"{host.registry}{tag(GATEWAY_IMAGE, catalog.release_of(GATEWAY_IMAGE))}"
    return {
        "enabled": options.gateway,
        "image": pushed.reference(catalog, GATEWAY_IMAGE, image, say if options.gateway else lambda _: None),
        "replicas": options.gateway_replicas,
        "own_secrets": bool(options.gateway_keys or options.gateway_certificate),
        "port": stacks.GATEWAY_PORT,
        "keys": options.gateway_keys or f"{label(name)}-gateway-keys",
        "certificate": options.gateway_certificate or f"{label(name)}-gateway-tls",
        "environment": stacks.gateway_environment(
            f"{label(name)}-engines:{API_PORT}",
            f"{label(name)}-page:80",
            f"0.0.0.0:{stacks.GATEWAY_PORT}",
            catalog.stacks[name].drain_seconds,
        ),
    }


def page_environment(found: Mapping[str, Any], server: str, url: str) -> list[Variable]:
    """The page's settings; `server` is where it finds the API, `url` where people open it."""
    return [
        *found["page_settings"].values(),
        Variable(name="WEBUI_URL", value=url, why="where people open the page"),
        Variable(name="CORS_ALLOW_ORIGIN", value=url, why="where people open the page"),
        Variable(name="OPENAI_API_BASE_URLS", value=f"http://{server}/v1", why="the stack's own server"),
        Variable(name="DEFAULT_MODELS", value=found["model_name"], why="the stack's model"),
    ]


def label(name: str) -> str:
    """A stack's name where dots are not allowed: Kubernetes' names of services and pods."""
    return name.replace(".", "-")


def probes(healthy_seconds: int) -> dict[str, dict[str, Any]]:
    """Startup waits for a token as long as the start may take, and a margin; then a token every half minute keeps a pod in its Service.

    The launcher itself ends an engine that hangs, so liveness only asks for a sign of life.
    """
    failures = math.ceil((healthy_seconds + START_MARGIN_SECONDS) / 10)
    return {
        "startupProbe": {"command": stacks.READY, "period": 10, "timeout": 60, "failures": failures},
        "readinessProbe": {"command": stacks.READY, "period": 30, "timeout": 60, "failures": 3},
        "livenessProbe": {"command": ("launch", "health"), "period": 30, "timeout": 20, "failures": 4},
    }


def check_options(options: Options, form: str) -> None:
    """Raises BadRequest for options that are malformed or do not go together."""
    if options.namespace and not DNS_LABEL.fullmatch(options.namespace):
        raise BadRequest(
            f"--namespace {options.namespace!r} is no name of a namespace: at most 63 small letters, digits and '-', "
            "beginning and ending with a letter or digit."
        )
    for option, name_ in (
        ("--hf-token", options.hf_token),
        ("--cluster-token", options.cluster_token),
        ("--storage-class", options.storage_class),
        ("--gateway-keys", options.gateway_keys),
        ("--gateway-certificate", options.gateway_certificate),
    ):
        if name_ and not DNS_NAME.fullmatch(name_):
            raise BadRequest(f"{option} {name_!r} is no name of an object: small letters, digits, '-' and '.'.")
    if options.models and form not in ("slurm", "crater") and not DNS_NAME.fullmatch(options.models):
        raise BadRequest(
            f"--models {options.models!r} is no name of a claim, which holds models on Kubernetes: small letters, digits, '-' and '.'. "
            "`kubectl get pvc` shows those that there are."
        )
    origin(options.url)
    if not options.gateway and (options.gateway_keys or options.gateway_certificate or options.gateway_replicas > 1):
        raise BadRequest("Without --gateway there is nothing that --gateway-replicas, --gateway-keys and --gateway-certificate are for.")
    if options.model.startswith(MODELS) and not options.models:
        raise BadRequest(
            f"--model {options.model} is a folder below {MODELS}, and nothing is mounted there. Say what holds it with --models."
        )
    if options.model.startswith("/") and not options.model.startswith(f"{MODELS}/"):
        raise BadRequest(f"--model {options.model}: folders are below {MODELS} in the container; --models says what is mounted there.")


def origin(url: str) -> str:
    """The page's address as browsers name it to servers: small letters, no slash at the end, no port that goes without saying.

    Raises BadRequest for what is no address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port over 65535, half of an IPv6 address
        host = port = None
    if not host or not re.fullmatch(r"https?://[^\s/?#@]+/?", url, re.IGNORECASE):
        raise BadRequest(f"--url {url!r} is no address of a page: write it like https://chat.example.")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port not in (None, {"http": 80, "https": 443}[parts.scheme]) else "")


def check_place(catalog: Catalog, name: str, form: str, options: Options) -> None:
    """Raises CannotRun with the reason for a stack that cannot run where or as it is asked to."""
    row = catalog.stacks[name]
    if options.gang_size is not None and options.gang_size != row.nodes:
        fewer = "the others may never come, and the first ones hold their GPUs all the same"
        raise CannotRun(
            f"{name} on {form}: a gang of {options.gang_size} for a stack of {row.nodes} node{'s' if row.nodes > 1 else ''}: "
            f"{fewer if options.gang_size < row.nodes else 'so many never come'}. Leave --gang-size out, or say {row.nodes}."
        )
    for key, value in options.node_selector.items():
        if form == "slurm" and not SBATCH_NODES.fullmatch(key):  # account=h100-project says nothing of the nodes, exclude=h100 the contrary
            continue
        if reason := gpu_labels.contradicts(catalog, row, key, value):
            raise CannotRun(
                f"{name} cannot run on nodes with {key}={value}: {reason}.\nLeave --node-selector {key} out, or choose another stack."
            )
