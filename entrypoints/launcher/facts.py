"""What this image is: image.json, written when the image was rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from launcher.engines import ENGINES
from launcher.errors import Refused


class ImageFacts(NamedTuple):
    """The image's row of the catalog, resolved. `args` and `env` are defaults; `executors` are its ways over several nodes, best first.

    `memory` is how the release deals a GPU's memory out (launcher.fit.Engine), None where it has none.
    `fork`: the release was seen to work with its core as a fork of its server, on one GPU. `told` is what files say that flags of the chosen profile name, as flags.
    `profiles` are flags for a load, by the profile's name; `siblings` are all images of the catalog: engine, precision and compute capabilities of each.
    `kernels` are the shapes of models, numbers a head and query heads to a head of the cache, for which attention was compiled into the image, and flags with which it was not tried.
    """

    image: str
    engine: str
    release: str
    version: str
    precision: str
    gpus: Mapping[str, int]
    cuda: str
    min_driver: str
    executors: Sequence[str]
    model: str
    model_name: str
    args: Mapping[str, bool | int | float | str]
    env: Mapping[str, str]
    memory: Mapping[str, Any] | None = None
    profiles: Mapping[str, Sequence[Mapping[str, Any]]] = MappingProxyType({})
    siblings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    fork: bool = False
    told: Mapping[str, Any] = MappingProxyType({})
    kernels: Sequence[Mapping[str, Any]] = ()


def load(path: str) -> ImageFacts:
    """Read image.json. Raises Refused when it is missing or is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            found = ImageFacts(**json.load(file))
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}): is this an Engine Room image? LAUNCH_IMAGE may name the file.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no image.json of this launcher: {error}.") from None
    if found.engine not in ENGINES or not isinstance(found.args, dict) or not isinstance(found.env, dict):
        raise Refused(f"{path} is no image.json of this launcher: engine {found.engine!r}, args {found.args!r}, env {found.env!r}.")
    return found
