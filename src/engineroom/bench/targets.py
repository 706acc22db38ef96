"""Whom `engineroom bench` measures: a stack that runs here, or any OpenAI-compatible API."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engineroom.api import Api
from engineroom.bench import conditions
from engineroom.bench.generator import Generator, Target
from engineroom.errors import BadRequest, ServiceUnavailable

if TYPE_CHECKING:  # an API is measured where there is neither Docker nor a checkout
    from engineroom.catalog import Catalog
    from engineroom.host import Host

INSIDE = "/tokenizer"


class Subject(NamedTuple):
    """What is measured, whom to ask, and the generator that can reach it."""

    conditions: dict[str, Any]
    target: Target
    generator: Generator


def of_stack(catalog: Catalog, host: Host, stack: str) -> Subject:
    """A stack that runs here: the generator gets its network and its volumes, so its port need not be reached from elsewhere.

    Raises UnknownName, CannotBuild, CannotRun, and ServiceUnavailable when it does not run or is not ready.
    """
    from engineroom import running, smoke

    api = smoke.of_stack(catalog, host, stack)
    container = running.engine(catalog, host, stack)
    told = conditions.of_api(api, "")
    known = conditions.of_stack(catalog, stack, container)
    beside = "" if container.attrs["HostConfig"]["NetworkMode"] == "host" else str(container.id)
    image, release = _image(catalog)
    inside = api._replace(url=f"http://127.0.0.1:{running.port(container)}/v1")
    return Subject(
        {**told, **known, "generator": f"vllm bench serve {release}"},
        Target(inside, told["model"], known["model"]),
        Generator(image=image, beside=beside, volumes_from=str(container.id)),
    )


def of_url(catalog: Catalog | None, api: Api, name: str, tokenizer: str, program: str) -> Subject:
    """Any API, by the generator's image, or by a `program` where the catalog is None. Raises BadRequest, ServiceUnavailable, EngineRoomError."""
    told = conditions.of_api(api, name)
    tokenizer = tokenizer or told["root"]
    if not Path(tokenizer).is_dir():
        raise BadRequest(
            f"Prompts of an exact length need the model's tokenizer, and {tokenizer or 'nothing'} is no folder here. "
            "Add --tokenizer FOLDER, one with its tokenizer.json and config.json."
        )
    folder = str(Path(tokenizer).resolve())
    if catalog is None:
        found = shutil.which(program)
        if not found:
            raise BadRequest(f"--generator {program}: there is no such program. It is a `vllm`, whose `bench serve` makes the load.")
        generator, where, release = Generator(program=found), folder, conditions.version_of(found)
    else:
        image, release = _image(catalog)
        generator, where = Generator(image=image, mounts=(f"{folder}:{INSIDE}:ro",)), INSIDE
    return Subject({**told, "generator": f"vllm bench serve {release}"}, Target(api, told["model"], where), generator)


def _image(catalog: Catalog) -> tuple[str, str]:
    """The generator's image, which is one for all engines, and its release. Raises ServiceUnavailable when it is not here."""
    from docker.errors import DockerException, ImageNotFound

    from engineroom import build, resolve

    release = catalog.release_of(resolve.GENERATOR_IMAGE)
    image = resolve.tag(resolve.GENERATOR_IMAGE, release)
    build.require_docker()
    try:
        build.client().images.get(image)
    except ImageNotFound:
        raise ServiceUnavailable(
            f"The load generator runs in {image}, which is not here. Type: make image TARGET={resolve.GENERATOR_IMAGE}"
        ) from None
    except DockerException as error:
        raise ServiceUnavailable(f"Docker: {error}") from None
    return image, release.version
