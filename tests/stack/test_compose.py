"""Every stack under real Compose, without starting anything."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from engineroom.catalog import Catalog

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
COMPOSE = ROOT / ".venv/bin/docker-compose"


def compose(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The Compose that is locked in requirements.txt, with no engine to talk to and no .env."""
    settings = {"PATH": os.environ["PATH"], "DOCKER_HOST": "tcp://127.0.0.1:1", **env}
    return subprocess.run(
        [COMPOSE, "--env-file", "/dev/null", *arguments], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_each_file_is_complete(stack: str) -> None:
    """A stack's own file is enough, and Compose finds nothing wrong in it."""
    result = compose("--file", f"compose/{stack}.yaml", "config", "--quiet")

    assert (result.returncode, result.stderr) == (0, "")


def test_all_stacks_together() -> None:
    """The root file includes every stack."""
    result = compose("--profile", "*", "config", "--services")

    assert result.stderr == ""
    assert set(CATALOG.stacks) <= set(result.stdout.split())


def test_a_bare_up_starts_nothing() -> None:
    """Without a stack's name nothing is selected."""
    assert compose("config", "--services").stdout == ""
    result = compose("up")
    assert result.returncode != 0
    assert "no service selected" in result.stderr


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_a_stack_is_server_and_page(stack: str) -> None:
    """Naming the stack selects the page and the server that it waits for, closed to the outside and with a deadline."""
    config = json.loads(compose("--profile", stack, "config", "--format", "json").stdout)
    page, engine = config["services"][stack], config["services"][f"{stack}-engine"]
    row = CATALOG.stacks[stack]

    assert set(config["services"]) == {stack, f"{stack}-engine"}
    assert page["depends_on"][f"{stack}-engine"]["condition"] == "service_healthy"
    assert page["environment"]["DEFAULT_MODELS"] == engine["environment"]["LAUNCH_MODEL_NAME"] == row.model
    assert [port["host_ip"] for port in page["ports"]] == ["127.0.0.1"]
    if row.nodes == 1:  # several nodes: the host's own network, and the launcher refuses them so far
        assert [port["host_ip"] for port in engine["ports"]] == ["127.0.0.1"]
    assert engine["healthcheck"]["test"] == ["CMD", "launch", "health", "--ready"]
    assert engine["read_only"]
    assert engine["cap_drop"] == ["ALL"]
    assert engine["image"].startswith(f"engineroom:{row.image}-")
    if row.gpus:
        (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"]) == ("nvidia", row.gpus)


def test_the_page_is_either_image() -> None:
    """The page's image is Open WebUI's own unless WEBUI_IMAGE names another."""
    published = CATALOG.release_of("webui").published
    page = ("--file", "compose/demo-cpu.yaml", "--profile", "demo-cpu", "config", "--format", "json")

    assert json.loads(compose(*page).stdout)["services"]["demo-cpu"]["image"] == published
    assert json.loads(compose(*page, WEBUI_IMAGE="mine:1").stdout)["services"]["demo-cpu"]["image"] == "mine:1"


def test_the_guides_v100_setting() -> None:
    """`r1-7b-v100` has the guide's effect: half precision, no chunked prefill, 8192 tokens."""
    env = json.loads(compose("--profile", "r1-7b-v100", "config", "--format", "json").stdout)["services"]["r1-7b-v100-engine"][
        "environment"
    ]
    args = json.loads((ROOT / "images/v100-half/image.json").read_text())["args"]

    assert env["LAUNCH_MAX_MODEL_LEN"] == "8192"
    assert (args["dtype"], args["enable-chunked-prefill"]) == ("half", False)
