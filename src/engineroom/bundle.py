"""`engineroom bundle`: everything that a bug report needs in one file, and no secret."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docker.models.containers import Container

from engineroom import doctor, machine, plan_text, planner, running, status
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError
from engineroom.host import Host, settings

BLANK = "********"
LOG_LINES = 5000
SHORTEST = 6  # characters of a secret: what is shorter stands in too many other words
# Names of settings that hold secrets; those that name the file of one do not.
SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|credentials?|api_?key|secret_key|_keys?)$")
PATTERNS = (
    re.compile(r"(?i)(?<=bearer )[^\s\"',;]+"),
    re.compile(r"(?<=://)[^/\s\"']+(?=@)"),  # user and password in an address
    re.compile(r"\b(?:hf|sk|ghp|glpat)[_-][\w-]{8,}"),  # tokens of hubs and services, by their form
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"),  # a signed web token
    re.compile(r"(?i)(?<=--api-key[= ])\S+|(?<=--hf-token[= ])\S+"),
    re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),  # people's addresses, which the page logs
    re.compile(r"(?<=prompt: )(?P<quote>['\"]).*?(?P=quote)(?=, (?:params|sampling|prompt))"),  # what a visitor wrote: vLLM before 0.10
)
DOCKER_FACTS = (
    "ServerVersion", "OperatingSystem", "KernelVersion", "Architecture", "NCPU", "MemTotal", "Driver", "CgroupVersion", "CgroupDriver",
    "SecurityOptions", "Runtimes", "DefaultRuntime", "DiscoveredDevices", "LiveRestoreEnabled",
)  # fmt: skip


class Redactor:
    """Blanks what is known to be secret, and what looks like it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """`secrets` are the words themselves; the longest go first, since one may stand in another."""
        whole = {word for word in secrets if len(word) >= SHORTEST}
        forms = {
            form for word in whole for form in (word, json.dumps(word)[1:-1], quote(word, safe=""))
        }  # as it stands in JSON and in addresses
        self.words = sorted(forms, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for word in self.words:
            text = text.replace(word, BLANK)
        for pattern in PATTERNS:
            text = pattern.sub(BLANK, text)
        return text


def write(catalog: Catalog, host: Host, stack: str, file: Path) -> list[str]:
    """Write the archive, readable for its owner alone, and return the names in it. Raises UnknownName or CannotBuild, ServiceUnavailable."""
    row = catalog.any_stack(stack)
    services = running.containers(catalog, host, stack).get(stack, {})
    config = _config(host, {stack, *services})
    redactor = Redactor(secrets(host, config, services.values()))
    parts: dict[str, Callable[[], Any]] = {
        "versions.json": lambda: _versions(host, services),
        "docker.json": lambda: {name: value for name, value in machine.docker().info.items() if name in DOCKER_FACTS},
        "compose.json": lambda: blanked(config),
        "status.json": lambda: status.as_json(status.Watch(catalog, host, stack).once()),
        "doctor.json": lambda: [check._asdict() for check in doctor.examine(catalog, host, stack).checks],
        "plan.json": lambda: plan_text.as_json(catalog, planner.of_stack(catalog, stack), None) if row.gpus else "no GPU, no plan",
    }
    if catalog.release_of(row.image).launched:
        parts["image.json"] = lambda: json.loads((catalog.root / "images" / row.image / "image.json").read_text())
    for name, container in services.items():
        parts[f"{name}.state.json"] = partial(_state, container)
        parts[f"{name}.log"] = partial(running.log_text, container, LOG_LINES)
    file.parent.mkdir(parents=True, exist_ok=True)
    _pack(file, parts, redactor)
    return list(parts)


def secrets(host: Host, config: Mapping[str, Any], containers: Iterable[Container]) -> set[str]:
    """Every secret that is known here: of settings, of containers, and in files that Compose mounts as secrets, word by word."""
    found = {value for name, value in settings(host.root).items() if SECRET_NAME.search(name)}
    for container in containers:
        pairs = (line.partition("=") for line in container.attrs["Config"]["Env"])
        found |= {value for name, _, value in pairs if SECRET_NAME.search(name)}
    files = {Path(row["file"]) for row in (config.get("secrets") or {}).values() if row.get("file")}
    for file in (*files, *(file for file in (host.hf_token, host.cluster_token, host.gateway_keys, host.upstream_key) if file)):
        if file.is_file():
            found |= set(machine.text_of(file).replace(":", " ").split())
    return found


def blanked(config: Any) -> Any:
    """A composition without the values of settings whose names say that they are secret."""
    if isinstance(config, dict):
        return {
            name: BLANK if isinstance(value, str) and value and SECRET_NAME.search(name) else blanked(value)
            for name, value in config.items()
        }
    return [blanked(item) for item in config] if isinstance(config, list) else config


def default_file(catalog: Catalog, stack: str) -> Path:
    """Where `bundle` writes when nothing else is said."""
    return catalog.root / "build" / "bundles" / f"{stack}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"


def _config(host: Host, services: set[str]) -> dict[str, Any]:
    """What Compose makes of these services and what they depend on; empty when it refuses, which then stands in no file but in its own words."""
    # only those that the files still have: a container may be of another release
    known = machine.ask("docker", "compose", "--profile", "*", "config", "--services", cwd=host.root)
    answer = machine.ask("docker", "compose", "config", "--format", "json", *sorted(services & set(known.text.split())), cwd=host.root)
    return dict(json.loads(answer.text)) if answer.well else {"refused": answer.error}


def _state(container: Container) -> dict[str, Any]:
    return {**container.attrs["State"], "RestartCount": container.attrs["RestartCount"]}


def _versions(host: Host, services: Mapping[str, Container]) -> dict[str, Any]:
    info = machine.docker()
    return {
        "engineroom": version("engineroom"),
        "commit": machine.ask("git", "-C", str(host.root), "describe", "--always", "--dirty").text.strip(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "docker": info.info.get("ServerVersion", info.problem),
        "compose": info.plugin("compose"),
        "buildx": info.plugin("buildx"),
        "images": {name: {"name": of.attrs["Config"]["Image"], "id": of.attrs["Image"]} for name, of in services.items()},
    }


def _text(part: Callable[[], Any]) -> str:
    """A part as text. One that cannot be made must not keep the others from a report: it says why."""
    try:
        made = part()
    except (EngineRoomError, OSError, ValueError, subprocess.SubprocessError) as error:
        made = f"{type(error).__name__}: {error}"
    return made if isinstance(made, str) else json.dumps(made, indent=1, default=str)


def _pack(file: Path, parts: Mapping[str, Callable[[], Any]], redactor: Redactor) -> None:
    """Write the parts into a new file, which replaces one of that name when it is whole."""
    descriptor, part_file = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")  # its owner's alone
    try:
        with os.fdopen(descriptor, "wb") as target, tarfile.open(fileobj=target, mode="w:gz") as archive:
            for name, part in parts.items():
                _add(archive, f"{file.name.removesuffix('.tar.gz')}/{name}", redactor.clean(_text(part)))
        Path(part_file).replace(file)
    finally:
        Path(part_file).unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    about = tarfile.TarInfo(name)
    about.size, about.mtime, about.mode = len(data), int(time.time()), 0o600
    archive.addfile(about, io.BytesIO(data))
