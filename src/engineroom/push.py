"""Push built images to a registry, and note under which digest it has them: `jobs` names them so.

Docker itself sends gzip layers, which everything can pull. On request skopeo sends zstd ones, made from the OCI layout that `docker save`
writes since release 25; the image's configuration travels unchanged in both cases, so that its id is the same everywhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import requests
from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound

from engineroom import build, disk, pushed, resolve, transfer
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, EngineRoomError, ServiceUnavailable
from engineroom.host import Host
from engineroom.pushed import Pushed

STALL_SECONDS = 600  # a registry that takes a layer of 2 GiB in may be silent for minutes
# As Docker reads names: without a dot, a port or `localhost` the first part would be a user of Docker Hub.
REGISTRY = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|[\w.-]+(?=:))(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", re.ASCII)


def push(
    catalog: Catalog, host: Host, images: Sequence[str], registry: str, say: build.Say, *, zstd: bool = False
) -> Iterator[tuple[str, Pushed]]:
    """Push images (none: all that are built here), each into the lock as soon as the registry has it.

    Raises BadRequest without a registry, EngineRoomError for an image that is not built here, ServiceUnavailable when the registry
    cannot be reached or wants a login.
    """
    repository = f"{registry_name(registry or host.registry)}/{resolve.REPOSITORY}"
    names = {image: resolve.tag(image, catalog.release_of(image)) for image in images or catalog.images}
    pushed.read(catalog.root)  # one that cannot be read is refused before hours of work
    build.require_docker()
    if zstd and not shutil.which("skopeo"):
        raise ServiceUnavailable("zstd layers are sent by skopeo, and there is none on PATH.\nType: scripts/skopeo; or leave --zstd out")
    ids = {image: built for image, name in names.items() if (built := build.image_id(name))}
    missing = [image for image in names if image not in ids]
    if missing and (images or not ids):
        raise EngineRoomError(f"{names[missing[0]]} is not here, so it cannot be pushed. Type: make image TARGET={missing[0]}")
    for image, built in ids.items():
        target = f"{repository}:{names[image].rpartition(':')[2]}"
        say(f"pushing {target}")
        digest = _by_skopeo(catalog.root, built, target, say) if zstd else ""
        compression: Literal["gzip", "zstd"] = "zstd" if digest else "gzip"
        reference = f"{repository}@{digest or _by_docker(built, target, say)}"
        _require_there(reference)
        row = Pushed(reference=reference, tag=target.rpartition(":")[2], id=built, compression=compression, pushed=datetime.now(UTC).date())
        pushed.write(catalog.root, image, row)
        yield image, row


def registry_name(text: str) -> str:
    """A registry as names of images begin, without the slash at its end. Raises BadRequest for none or what is not one."""
    if not text:
        raise BadRequest("Which registry? Type: engineroom push --registry registry.example/team, or set ENGINEROOM_REGISTRY in .env.")
    name = text.rstrip("/")
    if not REGISTRY.fullmatch(name):
        raise BadRequest(
            f"{text!r} is no registry: wanted is HOST[:PORT][/FOLDER...] in lower case, without https://, as registry.example:5000/team. "
            "Docker Hub is docker.io/USER."
        )
    return name


def on_loopback(registry: str) -> bool:
    """Whether a registry is on this machine, by its address alone: Docker speaks plain HTTP to these, and to no other unless it is told."""
    host = re.split("[:/]", registry, maxsplit=1)[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def diagnose(target: str, said: str) -> EngineRoomError:
    """The cause of a failed push, from what Docker or skopeo said last: what to type, or that the same again is worth a try."""
    registry = target.split("/", maxsplit=1)[0]
    if re.search(r"basic auth credentials|unauthori[sz]ed|denied|authentication required|\b40[13]\b", said):
        return ServiceUnavailable(
            f"{target}: the registry wants a login that may push there: {said}\nType: docker login {registry}; then the same again."
        )
    if "x509" in said:
        return ServiceUnavailable(
            f"{target}: the registry's certificate is not trusted: {said}\n"
            f"Put its authority's certificate into /etc/docker/certs.d/{registry}/ca.crt."
        )
    if "server gave HTTP response to HTTPS client" in said:
        return ServiceUnavailable(
            f"{target}: the registry speaks plain HTTP, which is accepted on this machine's own addresses alone. Give it a certificate."
        )
    if "index.json: no such file" in said:
        return EngineRoomError(f"{target}: zstd layers need Docker 25 or newer, which saves images as OCI layouts. Leave --zstd out.")
    if re.search(r"dial tcp|no such host|connection re|timeout|timed out|deadline exceeded|EOF|broken pipe|\b5\d\d [A-Z]", said):
        return ServiceUnavailable(
            f"{target}: the registry did not answer: {said}\nCheck its name and the network, then run the same again: what it has is not sent twice."
        )
    return EngineRoomError(f"{target} could not be pushed: {said}")


def _by_docker(image_id: str, target: str, say: build.Say) -> str:
    """Push as Docker does. Returns the manifest's digest."""
    client, seen, digest = build.client(timeout=STALL_SECONDS), set(), ""
    try:
        with _named(client, image_id, target):
            for event in client.api.push(target, stream=True, decode=True):
                if "error" in event:
                    raise diagnose(target, event["error"])
                layer, status = event.get("id", ""), event.get("status", "")
                if layer and status not in ("Preparing", "Waiting") and (layer, status) not in seen:
                    seen.add((layer, status))
                    say(f"{layer}: {status}")
                digest = event.get("aux", {}).get("Digest", digest)
    except (APIError, requests.RequestException) as error:
        raise diagnose(target, str(error)) from None
    return digest


@contextlib.contextmanager
def _named(client: DockerClient, image_id: str, target: str) -> Iterator[None]:
    """An image's name in the registry, which Docker wants to push it, for as long as that takes; an old one of a user's comes back."""
    before = build.image_id(target)
    client.images.get(image_id).tag(target)
    try:
        yield
    finally:
        if before:
            client.images.get(before).tag(target)
        else:
            client.images.remove(target, noprune=True)


def _by_skopeo(root: Path, image_id: str, target: str, say: build.Say) -> str:
    """Push with zstd layers. Returns the manifest's digest, or nothing when the registry does not take such an image."""
    place = root / "build"
    place.mkdir(exist_ok=True)
    size = int(build.client().images.get(image_id).attrs["Size"])
    disk.require_space(place, size, f"zstd layers are made from files: pushing {target}", "Leave --zstd out.")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        with transfer.docker_save([image_id]) as source, tarfile.open(fileobj=source, mode="r|") as archive:
            archive.extractall(folder, filter="data")
        digest = Path(folder, "digest")
        command = ["skopeo", "--insecure-policy", "copy"]  # a policy says whose images to take; this one is ours
        command += ["--dest-compress-format", "zstd", "--digestfile", str(digest)]
        command += ["--dest-tls-verify=false"] if on_loopback(target) else []
        command += ["--dest-authfile", str(login)] if (login := _docker_login()).exists() else []
        said = _run([*command, f"oci:{folder}", f"docker://{target}"], say)
        if digest.exists():
            return digest.read_text().strip()
    if "uploading manifest" in said:  # it took every layer, and then not what they make
        say(f"the registry takes no zstd layers, so they go as gzip: {said}")
        return ""
    raise diagnose(target, said)


def _docker_login() -> Path:
    """Where `docker login` keeps what it was told; skopeo reads the same form."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")


def _run(command: Sequence[str], say: build.Say) -> str:
    """Run skopeo to its end, giving each line to `say`; an interrupt ends it as well. Returns what it said last."""
    last = ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        for line in process.stdout or ():
            last = line.rstrip()
            say(last)
    finally:
        process.terminate()
        process.wait()
    found = re.search(r'msg="(.*)"$', last)
    return found[1].replace('\\"', '"') if found else last


def _require_there(reference: str) -> None:
    """Ask the registry, through the engine, for what was pushed. Raises EngineRoomError when it has no such digest."""
    try:
        build.client().images.get_registry_data(reference)
    except NotFound:
        raise EngineRoomError(f"The registry took {reference} and does not have it. Run the same again.") from None
    except (DockerException, requests.RequestException) as error:
        raise diagnose(reference, str(error)) from None
