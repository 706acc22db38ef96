"""The `cpu` image as it is: what is in it, and the launcher inside."""

from __future__ import annotations

import json

import docker
import pytest
from image.conftest import ROOT, run

from engineroom.catalog import Catalog
from engineroom.images import layer_sizes, report

pytestmark = pytest.mark.containers


def test_launcher_answers(image: str) -> None:
    """The launcher is there, and says its version."""
    result = run(image, "--version")

    assert (result.returncode, result.stdout.strip()) == (0, "launch, version 0.1.0")


def test_dry_run_needs_no_setting(image: str) -> None:
    """`docker run IMAGE serve --dry-run --json` says what plain `docker run IMAGE` would do."""
    result = run(image, "serve", "--dry-run", "--json")

    plan = json.loads(result.stdout)
    assert plan["role"] == "single"
    assert plan["command"][:3] == ["vllm", "serve", "/opt/models/demo-r1"]
    assert plan["model_name"] == "demo-r1"


def test_other_words_are_programs(image: str) -> None:
    """`docker run IMAGE bash` gives a shell."""
    assert run(image, "bash", "-c", "id -u").stdout.strip() == "1000"


@pytest.mark.parametrize(
    ("arguments", "env", "code", "message"),
    [
        (["srve"], "A=b", 2, "Did you mean serve?"),
        ([], "LAUNCH_MODLE=x", 78, "Did you mean LAUNCH_MODEL?"),
        ([], "LAUNCH_MODEL=/tmp", 78, "has no config.json"),
        ([], "LAUNCH_MODEL=/models/none", 78, "neither a folder in this container nor a hub id"),
        (["--port", "x"], "A=b", 2, "not a valid integer"),
    ],
)
def test_bad_input_is_named(image: str, arguments: list[str], env: str, code: int, message: str) -> None:
    """Bad input ends with its code and a message, never with a traceback."""
    result = run(image, *arguments, env=env)

    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_is_in_it_that_serving_does_not_need(image: str) -> None:
    """No compiler, no package manager's caches, no uv, nothing that anyone may write but the cache and /tmp."""
    result = run(
        image, "bash", "-c",
        "command -v gcc cc g++ uv pip nvcc; ls -A /root/.cache /var/lib/apt/lists /var/cache/apt 2>/dev/null | grep -v ':$';"
        "find / -xdev -perm -0002 -not -type l -not -path '/proc/*' -not -path '/tmp*' -not -path '/var/tmp' -not -path '/run/lock' 2>/dev/null;"
        "find /opt -name '*.pyc' | head -1 | wc -l",
    )  # fmt: skip

    assert result.stdout.split() == ["1"]


def test_image_says_what_it_is(image: str) -> None:
    """Labels, user, health check and entrypoint are set."""
    config = docker.from_env().images.get(image).attrs["Config"]

    assert config["User"] == "1000:0"
    assert config["Entrypoint"] == ["tini", "--", "launch"]
    assert config["Labels"]["io.engineroom.engine"] == "vllm"
    assert config["Labels"]["org.opencontainers.image.version"] == Catalog(ROOT).release_of("cpu").version
    assert config["Healthcheck"]["Test"] == ["CMD", "launch", "health", "--ready"]


def test_images_shows_where_the_bytes_are(image: str) -> None:
    """`engineroom images` names every layer of size, none over 2 GiB."""
    layers = layer_sizes(image)

    assert [layer.holds for layer in layers if layer.bytes > 100_000_000] == ["wheels: torch", "wheels: dependencies", "wheels: engine"]
    assert max(layer.bytes for layer in layers) <= 2 * 1024**3
    assert layers[-1].holds == "/opt/launcher"
    assert layers[-1].bytes < 3_000_000
    assert any("wheels: torch" in line for line in report(Catalog(ROOT)))
