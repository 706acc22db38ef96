"""Programs in containers: in one of their own that ends with them, or beside what runs."""

from __future__ import annotations

import subprocess
from typing import Any

import docker
from docker.errors import ContainerError
from docker.models.containers import Container


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


def execute(container: Container, *command: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Status and output, errors too, of a program in a container that runs; `options` are those of `docker exec`.

    As docker-py's `exec_run()`, which loses the output now and then: https://github.com/docker/docker-py/issues/3332.
    """
    result = subprocess.run(
        ["docker", "exec", *options, str(container.id), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return result.returncode, result.stdout.decode("utf-8", "replace")
