"""What the built images weigh, and where their bytes are: sizes as Docker reports them, unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from docker.errors import ImageNotFound
from rich.filesize import decimal

from engineroom import resolve
from engineroom.build import client, require_docker
from engineroom.catalog import Catalog

MOST_LAYER_BYTES = 2 * 2**30


class LayerSize(NamedTuple):
    """One layer of an image: what it holds and its bytes."""

    holds: str
    bytes: int


def layer_sizes(name: str) -> list[LayerSize]:
    """The layers of a built image from the base up, without the empty ones. Raises ImageNotFound."""
    history = client().images.get(name).history()
    return [LayerSize(_holds(step["CreatedBy"]), step["Size"]) for step in reversed(history) if step["Size"]]


def _holds(step: str) -> str:
    """What a build step put there, in a few words."""
    rules = (
        (r"/run/install-layer ([\w-]+)", r"wheels: \1"),
        (r"/run/install-debs (.*?) #", r"Debian packages: \1"),
        (r"uv venv", "virtual environment"),
        (r"useradd", "user and cache folder"),
        (r"COPY (?:--\S+ )*(\S+) (\S+)", r"\2"),
        (r"dist-info", "record of the package's name"),
    )
    step = re.sub(r"\s+", " ", step)
    for pattern, text in rules:
        if found := re.search(pattern, step):
            return re.sub(r"\s+", " ", found.expand(text))
    return "base" if not step or step.startswith(("#(nop)", "/bin/sh -c #(nop)", "scripts/")) else step[:60]


def report(catalog: Catalog) -> Iterator[str]:
    """A table by image and layer, for people. Raises ServiceUnavailable without Docker."""
    require_docker()
    for image in catalog.images:
        release = catalog.release_of(image)
        name = resolve.tag(image, release)
        try:
            layers = layer_sizes(name)
        except ImageNotFound:
            yield f"{image:<14} not built here      {resolve.image_title(catalog, catalog.images[image], release)}"
            continue
        yield f"{image:<14} {decimal(sum(layer.bytes for layer in layers)):>9}  {name}"
        if release.upstream:
            yield f"{'':<14} {'upstream':>9}    {release.upstream.image}: {release.upstream.weighs} ({release.upstream.source})"
        for layer in layers:
            yield f"{'':<14} {decimal(layer.bytes):>9}    {layer.holds}"
