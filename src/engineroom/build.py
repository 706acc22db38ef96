"""Build images: `docker buildx bake` on the rendered file, with this machine's settings laid over it."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom import disk, resolve
from engineroom.catalog import Catalog
from engineroom.errors import AuditFailed, BuildFailed, EngineRoomError, ServiceUnavailable
from engineroom.host import Host, existing
from engineroom.rows import Layer, Release

if TYPE_CHECKING:
    from docker import DockerClient

LOCAL_BASE = "engineroom-base:bookworm"
PULL_SECONDS = 600
Say = Callable[[str], None]


def build(catalog: Catalog, host: Host, images: Sequence[str], say: Say, *, offline: Path | None = None, no_cache: bool = False) -> None:
    """Build images one after another, giving each line of progress to `say`.

    `offline` is a folder of `engineroom wheels`: nothing but it is used then, and no step has a network.
    Raises ServiceUnavailable when Docker or a registry is not there, NoSpace when Docker's disk is too small, BuildFailed with the
    cause otherwise.
    """
    for image in images:
        catalog.image(image)
    require_docker()
    if offline:
        host = offline_host(catalog, host, images, offline)
    elif any(catalog.release_of(image).install != "vendor" for image in images):
        host = ensure_base(host, say)
    for image in images:
        require_space(catalog, image)
        with tempfile.TemporaryDirectory() as folder:
            settings = target_settings(catalog.release_of(image), host, Path(folder))
            settings |= offline_settings(settings, Path(folder)) if offline else {}
            settings["labels"] = provenance(catalog, host, image)
            overlay = Path(folder, "host.json")
            overlay.write_text(json.dumps({"target": {image: settings | ({"no-cache": True} if no_cache else {})}}))
            _bake(catalog.root, image, overlay, say)


def build_all(catalog: Catalog, host: Host, say: Say) -> None:
    """Build every image. One that cannot be built here does not keep the others from it.

    Raises ServiceUnavailable without Docker, BuildFailed with the reason of each that failed.
    """
    require_docker()
    failed = []
    for image in catalog.images:
        say(f"building {image}")
        try:
            build(catalog, host, [image], say)
        except EngineRoomError as error:
            failed.append(str(error))
    if failed:
        raise BuildFailed(f"{len(failed)} of {len(catalog.images)} images could not be built:\n\n" + "\n\n".join(failed))


def require_space(catalog: Catalog, image: str) -> None:
    """Raises NoSpace when an image that is not here yet was measured to need more than Docker's disk has."""
    measured = catalog.measured.get(image)
    if measured and not have(resolve.tag(image, catalog.release_of(image))):
        disk.require_docker_space(measured.build_bytes, f"building {image}")


def offline_host(catalog: Catalog, host: Host, images: Sequence[str], folder: Path) -> Host:
    """The settings of this machine with a folder of wheels in the place of index and mirrors.

    Raises ServiceUnavailable when a base image is not here, since it cannot be pulled.
    """
    own = host.base_image or (LOCAL_BASE if not have(resolve.BASE_IMAGE) else "")
    host = replace(host, index="", wheels=folder, base_image=own, apt_sources=existing(str(folder / "debs" / "debian.sources")))
    for image in images:
        release = catalog.release_of(image)
        base = (host.vendor_image or release.base) if release.install == "vendor" else (host.base_image or resolve.BASE_IMAGE)
        if not have(base):
            raise ServiceUnavailable(
                f"{image}: its base image {base} is not here, and without network it cannot be pulled.\n"
                f"Where it is, type: engineroom save base; here: engineroom load FILE. Or set "
                f"{'VENDOR_IMAGE' if release.install == 'vendor' else 'BASE_IMAGE'} to one that is here (docker images)."
            )
    return host


def offline_settings(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What an offline build lays over a target: no network, and installers that know no index. Their files go to `folder`."""
    files = {"uv": folder / "uv.toml", "pip": folder / "pip.conf"}
    files["uv"].write_text("no-index = true\n")
    files["pip"].write_text("[global]\nno-index = true\n")
    return {
        "network": "none",
        "secret": [*settings["secret"], *(f"id={name},src={file}" for name, file in files.items())],
        "args": {**settings["args"], "EXTRA_INDEX": ""},
    }


def target_settings(release: Release, host: Host, folder: Path) -> dict[str, Any]:
    """What this machine adds to a target of bake.json. Secrets leave no trace in the image; files for them go to `folder`."""
    base = host.vendor_image if release.install == "vendor" else host.base_image
    secrets = {"ca": host.ca, "apt": host.apt_sources}
    if host.index:
        for name, file, text in (
            ("uv", folder / "uv.toml", f"index-url = {json.dumps(host.index)}\n"),
            ("pip", folder / "pip.conf", f"[global]\nindex-url = {host.index}\n"),
        ):
            file.write_text(text)
            secrets[name] = file
    args = {"BASE_IMAGE": base} if base else {}
    indexed = [layer for layer in release.layers if layer.index]
    if host.wheels and indexed and all(has_wheels(host.wheels, release, layer) for layer in indexed):
        args["EXTRA_INDEX"] = ""
    return {
        "args": args,
        "secret": [f"id={name},src={path}" for name, path in secrets.items() if path],
        "contexts": {"wheels": str(host.wheels)} if host.wheels else {},
    }


def provenance(catalog: Catalog, host: Host, image: str) -> dict[str, str]:
    """OCI labels that only the machine that builds can know: the last commit that changed what images are made of, and the base.

    The base goes by its digest where it came from a registry, else by Docker's id. The commit is left out where there is none, and ends in
    `-modified` where files differ from it: pushed digests and measurements are no part of an image, so that committing them makes none anew.
    """
    release = catalog.release_of(image)
    base = (host.vendor_image if release.install == "vendor" else host.base_image) or release.base or resolve.BASE_IMAGE
    name, _, digest = base.partition("@")
    found = {
        "org.opencontainers.image.revision": _revision(catalog.root),
        "org.opencontainers.image.base.name": name,
        "org.opencontainers.image.base.digest": digest or image_id(base),
    }
    return {label: value for label, value in found.items() if value}


def _revision(root: Path) -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", *resolve.SOURCES]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("log", "-1", "--format=%H") if shutil.which("git") else ""
    return f"{commit}-modified" if commit and git("status", "--porcelain") else commit


def has_wheels(folder: Path, release: Release, layer: Layer) -> bool:
    """Whether the folder has the pinned wheels of a layer, so that its own index need not be asked."""
    pins = [pin.replace("-", "_").replace("==", "-") for pin in release.packages if pin.split("==")[0] in layer.packages]
    return all(any(folder.glob(f"{pin}-*.whl")) for pin in pins)


def ensure_base(host: Host, say: Say) -> Host:
    """A base that this machine can build on: the one that is set, the published one, or one made from Debian's packages.

    Raises ServiceUnavailable when there is no way to any.
    """
    lost = host.base_image == LOCAL_BASE and not have(LOCAL_BASE)
    if not lost and (host.base_image or have(resolve.BASE_IMAGE) or not pull_problem(resolve.BASE_IMAGE, say)):
        return host
    say("the published base image cannot be pulled here: making one from Debian's packages")
    result = subprocess.run([host.root / "scripts" / "debian-base"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ServiceUnavailable(
            f"No base image: the registry of {resolve.BASE_IMAGE.split('@')[0]} cannot be reached, and scripts/debian-base says:\n"
            f"{result.stderr.strip()}\nSet BASE_IMAGE to a Debian 12 image that this machine can pull."
        )
    if not lost:
        host.remember("BASE_IMAGE", LOCAL_BASE)
        say(f".env now says BASE_IMAGE={LOCAL_BASE}")
    return replace(host, base_image=LOCAL_BASE)  # not loaded anew: profiles may have been switched on by options


def require_docker() -> None:
    """Raises ServiceUnavailable when no Docker engine answers, with what to type."""
    if not shutil.which("docker"):
        raise ServiceUnavailable("There is no docker on PATH.\nType: scripts/docker-engine")
    result = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ServiceUnavailable(f"No Docker engine answers: {_last(result.stderr)}\nType: scripts/docker-engine")


def client(**options: Any) -> DockerClient:
    """The engine through Docker's Python library. Raises ServiceUnavailable where that reaches none, though the program `docker` may."""
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(use_ssh_client=True, **options)
    except DockerException as error:
        mend = "Correct DOCKER_HOST, or the context that `docker context show` names."
        if "ssh" in str(error):
            mend = (
                "Over ssh, forward the engine's socket, and type:\n"
                "ssh -fNL /tmp/engine.sock:/var/run/docker.sock USER@HOST && export DOCKER_HOST=unix:///tmp/engine.sock"
            )
        raise ServiceUnavailable(f"The engine cannot be reached by Docker's Python library: {error}\n{mend}") from None


def pull_problem(image: str, say: Say) -> str:
    """Try to pull an image. Returns why it did not come, and what to do if it must; nothing when it is here now."""
    short = image.split("@", maxsplit=1)[0]
    say(f"pulling {short}")
    try:
        result = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, timeout=PULL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{short} did not come within {PULL_SECONDS // 60} minutes. Run the same again: layers that are here already stay."
    return f"{short} cannot be pulled: {_last(result.stderr)}" if result.returncode else ""


def have(image: str) -> bool:
    """Whether the engine has this image."""
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def require_built(catalog: Catalog, image: str) -> str:
    """The full name of a built image. Raises ServiceUnavailable without Docker, EngineRoomError for one that is not here: Docker would ask Docker Hub for it."""
    require_docker()
    name = resolve.tag(image, catalog.release_of(image))
    if not have(name):
        raise EngineRoomError(f"{name} is not built here. Type: make image TARGET={image}")
    return name


def image_id(image: str) -> str:
    """The id of an image that the engine has; empty when it has not."""
    command = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _bake(root: Path, image: str, overlay: Path, say: Say) -> None:
    run(image, ["docker", "buildx", "bake", "--progress=plain", "--file", "images/bake.json", "--file", str(overlay), image], root, say)


def run(what: str, command: Sequence[str], root: Path, say: Say) -> None:
    """Run a build, giving each line of its output to `say`. Raises with the cause when it fails; an interrupt ends the build as well."""
    # buildx 0.20 and newer ask before they read files outside the folder: the certificates, wheels and secrets that we name.
    env = {**os.environ, "BUILDX_BAKE_ENTITLEMENTS_FS": "0"}
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    tail: collections.deque[str] = collections.deque(maxlen=400)
    try:
        for line in process.stdout or ():
            tail.append(line.rstrip())
            say(line.rstrip())
    finally:
        process.terminate()  # an interrupted build must not go on by itself; a finished one is not harmed
        status = process.wait()
    if status:
        raise diagnose(what, list(tail))


def diagnose(image: str, lines: Sequence[str]) -> EngineRoomError:
    """The cause of a failed build, from its output: what could not be reached or was wrong, and what to set."""
    text = "\n".join(lines)
    if found := re.search(r"failed to resolve source metadata for ([^\s:]+[^\s]*?): ", text):
        registry = found[1].split("/")[0]
        return ServiceUnavailable(
            f"{image}: the registry {registry} could not be reached for {found[1]}.\n"
            "Set VENDOR_IMAGE (TensorRT-LLM) or BASE_IMAGE (all others) to an image that this machine can pull, in the environment or in .env."
        )
    if "no space left on device" in text.lower():
        return BuildFailed(f"{image}: the disk is full. Free space with `docker system prune` (df -h shows it), then run the same again.")
    if file := _wrong_file(text):
        return BuildFailed(
            f"{image}: {file} is not the file that was locked. Remove it from WHEELS, or from the mirror; "
            f"a folder for offline builds is mended by: engineroom wheels {image}"
        )
    if found := re.search(r"Because (\S+) was not found in the provided package locations", text):
        return BuildFailed(f"{image}: the folder of wheels lacks {found[1]}. Type: engineroom wheels {image}")
    if findings := re.findall(r"^#\d+ \S+ audit: (.*)$", text, re.MULTILINE):
        return AuditFailed(f"{image} is not what its GPU needs", findings)
    if re.search(r"Failed to (fetch|download)|Could not (connect|resolve)|Temporary failure|dns error|Connection refused", text):
        evidence = next(line for line in lines if re.search(r"Failed to|Could not|Temporary failure|dns error|Connection refused", line))
        return ServiceUnavailable(
            f"{image}: a package could not be fetched: {_message(evidence)}\nCheck the network; "
            "mirrors are settings: PIP_INDEX_URL, APT_SOURCES, WHEELS (a folder of wheels), BUILD_CA (an extra certificate authority)."
        )
    if found := re.search(r"E: (Unable to (?:locate package|fetch some archives|correct problems)[^\n]*)", text):
        return BuildFailed(
            f"{image}: apt has not what this base needs: {found[1]}.\n"
            f"Offline, the folder's Debian packages must be for the same BASE_IMAGE. Type: engineroom wheels {image}"
        )
    errors = [_message(line) for line in lines if re.search(r"error|cause:", line, re.IGNORECASE)] or [
        _message(line) for line in lines[-5:]
    ]
    return BuildFailed(f"{image} could not be built:\n  " + "\n  ".join(errors[-5:]))


def _wrong_file(text: str) -> str:
    """The file that an installer refused for its sum, in the words of uv, pip and sha256sum; empty when none was."""
    patterns = (
        r"[Hh]ash mismatch for `?([^`\s]+)",
        r"Failed to extract archive: (\S+)",
        r"DO NOT MATCH THE HASHES[^\n]*\n(?:#\S+ \S+ +)?\s*(\S+)",
        r"(\S+): FAILED(?: open or read)?\n",
    )
    return next((found[1] for pattern in patterns if (found := re.search(pattern, f"{text}\n"))), "")


def _message(line: str) -> str:
    """A line of BuildKit's output without its step number and time."""
    return re.sub(r"^#\d+ (\d+\.\d+ )?", "", line).strip()


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1]
