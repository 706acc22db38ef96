"""Containers that run once."""

from __future__ import annotations

from typing import Any

import docker
from docker.errors import ContainerError


def run(image: str, command: list[str], **options: Any) -> str:
    """What a command prints. As docker-py's `run(…, remove=True)`, which leaves the image's own volumes behind. Raises ContainerError where it fails."""
    container = docker.from_env().containers.create(image, command, **options)
    try:
        container.start()
        status = container.wait()["StatusCode"]
        if status:
            raise ContainerError(container, status, command, image, container.logs(stdout=False))
        return str(container.logs(stderr=False).decode())
    finally:
        container.remove(force=True, v=True)
