"""An empty stack of nodes for each test, and the image that they all run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.nodes import Stack, build_image, empty_stack


@pytest.fixture(scope="session")
def ray_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image with Ray, the stub engine and the tools that cut networks."""
    return build_image(tmp_path_factory.mktemp("ray"))


@pytest.fixture
def stack(ray_image: str, tmp_path: Path) -> Iterator[Stack]:
    """An empty stack on a network of its own."""
    with empty_stack(ray_image, tmp_path) as made:
        yield made
