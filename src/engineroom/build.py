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
from pathlib import Path
from typing import Any

from engineroom import resolve
from engineroom.catalog import Catalog, Layer, Release
from engineroom.errors import BuildFailed, EngineRoomError, ServiceUnavailable
from engineroom.host import Host

LOCAL_BASE = "engineroom-base:bookworm"
PULL_SECONDS = 600
Say = Callable[[str], None]


def build(catalog: Catalog, host: Host, images: Sequence[str], say: Say) -> None:
    """Build images one after another, giving each line of progress to `say`.

    Raises ServiceUnavailable when Docker or a registry is not there, BuildFailed with the cause otherwise.
    """
    for image in images:
        catalog.image(image)
    require_docker()
    if any(catalog.release_of(image).install == "wheels" for image in images):
        host = ensure_base(host, say)
    for image in images:
        with tempfile.TemporaryDirectory() as folder:
            overlay = Path(folder, "host.json")
            overlay.write_text(json.dumps({"target": {image: target_settings(catalog.release_of(image), host, Path(folder))}}))
            _bake(catalog.root, image, overlay, say)


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
    if host.wheels and indexed and all(_has_wheels(host.wheels, release, layer) for layer in indexed):
        args["EXTRA_INDEX"] = ""
    return {
        "args": args,
        "secret": [f"id={name},src={path}" for name, path in secrets.items() if path],
        "contexts": {"wheels": str(host.wheels)} if host.wheels else {},
    }


def _has_wheels(folder: Path, release: Release, layer: Layer) -> bool:
    """Whether the folder has the pinned wheels of a layer, so that its own index need not be asked."""
    pins = [pin.replace("-", "_").replace("==", "-") for pin in release.packages if pin.split("==")[0] in layer.packages]
    return all(any(folder.glob(f"{pin}-*.whl")) for pin in pins)


def ensure_base(host: Host, say: Say) -> Host:
    """A base that this machine can build on: the one that is set, the published one, or one made from Debian's packages.

    Raises ServiceUnavailable when there is no way to any.
    """
    lost = host.base_image == LOCAL_BASE and not have(LOCAL_BASE)
    if not lost and (host.base_image or have(resolve.BASE_IMAGE) or pull(resolve.BASE_IMAGE, say)):
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
    return Host.load(host.root)


def require_docker() -> None:
    """Raises ServiceUnavailable when no Docker engine answers, with what to type."""
    if not shutil.which("docker"):
        raise ServiceUnavailable("There is no docker on PATH.\nType: scripts/docker-engine")
    result = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ServiceUnavailable(f"No Docker engine answers: {_last(result.stderr)}\nType: scripts/docker-engine")


def pull(image: str, say: Say) -> bool:
    """Try to pull an image; False when that cannot be done here."""
    say(f"pulling {image.split('@', maxsplit=1)[0]}")
    try:
        result = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, timeout=PULL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def have(image: str) -> bool:
    """Whether the engine has this image."""
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def _bake(root: Path, image: str, overlay: Path, say: Say) -> None:
    command = ["docker", "buildx", "bake", "--progress=plain", "--file", "images/bake.json", "--file", str(overlay), image]
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
        raise diagnose(image, list(tail))


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
    if found := re.search(r"[Hh]ash mismatch for `?([^`\s]+)", text):
        return BuildFailed(
            f"{image}: {found[1]} is not the file that was locked (hash mismatch). Remove it from WHEELS, or from the mirror."
        )
    if re.search(r"Failed to (fetch|download)|Could not (connect|resolve)|Temporary failure|dns error|Connection refused", text):
        evidence = next(line for line in lines if re.search(r"Failed to|Could not|Temporary failure|dns error|Connection refused", line))
        return ServiceUnavailable(
            f"{image}: a package could not be fetched: {_message(evidence)}\nCheck the network; "
            "mirrors are settings: PIP_INDEX_URL, APT_SOURCES, WHEELS (a folder of wheels), BUILD_CA (an extra certificate authority)."
        )
    errors = [_message(line) for line in lines if re.search(r"error|cause:", line, re.IGNORECASE)] or [
        _message(line) for line in lines[-5:]
    ]
    return BuildFailed(f"{image} could not be built:\n  " + "\n  ".join(errors[-5:]))


def _message(line: str) -> str:
    """A line of BuildKit's output without its step number and time."""
    return re.sub(r"^#\d+ (\d+\.\d+ )?", "", line).strip()


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1]
