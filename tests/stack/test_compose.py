"""Every stack under real Compose, without starting anything."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engineroom import stacks
from engineroom.catalog import Catalog

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
COMPOSE = ROOT / ".venv/bin/docker-compose"
CLUSTERED = [name for name, row in CATALOG.stacks.items() if row.nodes > 1]
CLUSTER_PORTS = {6370, 6379, 8265, 10001}  # the launcher's own, Ray's, Ray's dashboard's, Ray's clients'


def compose(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The Compose that is locked in requirements.txt, with no engine to talk to and no .env."""
    settings = {"PATH": os.environ["PATH"], "DOCKER_HOST": "tcp://127.0.0.1:1", **env}
    return subprocess.run(
        [COMPOSE, "--env-file", "/dev/null", *arguments], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )


@functools.cache
def whole(stack: str, **env: str) -> dict[str, Any]:
    """All of a stack's own file, what runs on other machines too."""
    return dict(json.loads(compose("--file", f"compose/{stack}.yaml", "--profile", "*", "config", "--format", "json", **env).stdout))


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
    assert page["environment"]["DEFAULT_MODELS"] == engine["environment"]["LAUNCH_MODEL_NAME"] == stacks.api_name(CATALOG, row)
    if row.nodes == 1:  # several nodes publish nothing
        assert [port["host_ip"] for port in page["ports"]] == ["127.0.0.1"]
        assert [port["host_ip"] for port in engine["ports"]] == ["127.0.0.1"]
    assert engine["healthcheck"]["test"] == ["CMD", "launch", "health", "--ready"]
    assert engine["read_only"]
    assert engine["cap_drop"] == ["ALL"]
    assert engine["image"].startswith(f"engineroom:{row.image}-")
    if row.gpus:
        (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"]) == ("nvidia", row.gpus)


@pytest.mark.parametrize("stack", ["demo-cpu", "r1-32b-v100", "r1-b200"])
def test_a_stacks_sizes_are_its_users(stack: str) -> None:
    """Longest context, requests at once and the form of the log come from the shell, on every node; else they are the row's."""
    wanted = {"LAUNCH_MAX_MODEL_LEN": "512", "LAUNCH_MAX_SEQS": "3", "LAUNCH_LOG": "json"}
    row, engines = CATALOG.stacks[stack], [f"{stack}-engine", *([f"{stack}-worker"] if CATALOG.stacks[stack].nodes > 1 else [])]
    for engine in engines:
        own, theirs = whole(stack)["services"][engine]["environment"], whole(stack, **wanted)["services"][engine]["environment"]
        assert (own["LAUNCH_MAX_MODEL_LEN"], own["LAUNCH_MAX_SEQS"]) == (str(row.max_model_len), row.max_seqs and str(row.max_seqs))
        assert theirs.items() >= wanted.items()


def test_tensorrt_llm_shows_the_models_own_name() -> None:
    """It has no flag for another; the page and every request ask for what it lists."""
    assert {stacks.api_name(CATALOG, CATALOG.stacks[name]) for name in ("r1-b200", "r1-7b-v100")} == {
        "nvidia/DeepSeek-R1-0528-FP4",
        "r1-7b",
    }


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_nothing_publishes_the_ports_between_nodes(stack: str) -> None:
    """No service publishes a port of Ray's or of the launcher's own channel, inside or outside."""
    published = [port for service in whole(stack)["services"].values() for port in service.get("ports", [])]

    assert [port for port in published if {int(port["published"]), port["target"]} & CLUSTER_PORTS] == []


@pytest.mark.parametrize("stack", CLUSTERED)
def test_a_stack_of_several_nodes_is_closed(stack: str) -> None:
    """It publishes nothing: page and API listen on the loopback of the head's machine, and who joins needs the token's file."""
    config = whole(stack, WEBUI_PORT="3300", API_PORT="8300", CLUSTER_TOKEN_FILE="/etc/secrets/token", LAUNCH_HEAD="10.0.0.1")
    found = config["services"]
    page, head, worker = found[stack], found[f"{stack}-engine"], found[f"{stack}-worker"]
    gateway = found[f"{stack}-gateway"]["environment"]

    assert (gateway["GATEWAY_ENGINES"], gateway["GATEWAY_PAGE"]) == ("127.0.0.1:8300", "127.0.0.1:3300")
    assert gateway["GATEWAY_LISTEN"] == "0.0.0.0:8443"
    assert [name for name, service in found.items() if service.get("ports") or service["network_mode"] != "host"] == []
    assert (page["environment"]["HOST"], page["environment"]["PORT"]) == ("127.0.0.1", "3300")
    assert page["environment"]["OPENAI_API_BASE_URLS"] == "http://127.0.0.1:8300/v1"
    assert "'http://127.0.0.1:3300/health'" in page["healthcheck"]["test"][-1]
    for node, role in ((head, "head"), (worker, "worker")):
        settings = node["environment"]
        assert (settings["LAUNCH_HOST"], settings["LAUNCH_PORT"], settings["LAUNCH_ROLE"]) == ("127.0.0.1", "8300", role)
        assert settings["LAUNCH_HEAD"] == "10.0.0.1"
        assert settings["LAUNCH_CLUSTER_TOKEN_FILE"] == "/run/secrets/cluster_token"
        assert "cluster_token" in {secret["source"] for secret in node["secrets"]}
    assert config["secrets"]["cluster_token"]["file"] == "/etc/secrets/token"


@pytest.mark.parametrize("stack", CLUSTERED)
def test_head_and_worker_agree(stack: str) -> None:
    """Both roles differ in nothing but the role and the profile, and the layout takes every device of the stack."""
    found, row = whole(stack)["services"], CATALOG.stacks[stack]
    head, worker = found[f"{stack}-engine"], found[f"{stack}-worker"]
    settings = head["environment"]

    assert {**head, "environment": None, "profiles": None} == {**worker, "environment": None, "profiles": None}
    assert {**settings, "LAUNCH_ROLE": "worker"} == worker["environment"]
    assert (head["profiles"], worker["profiles"]) == ([stack], [f"{stack}-worker"])
    assert int(settings["LAUNCH_TP"]) * int(settings["LAUNCH_PP"]) == row.nodes * max(row.gpus, 1)
    assert int(settings["LAUNCH_NODES"]) == row.nodes


@pytest.mark.parametrize("stack", [name for name in CATALOG.stacks if name not in CLUSTERED])
def test_one_node_needs_no_token(stack: str) -> None:
    """A stack of one node has no worker, no token and no settings of a cluster."""
    found = whole(stack)["services"]

    assert f"{stack}-worker" not in found
    for service in found.values():
        assert "cluster_token" not in {secret["source"] for secret in service.get("secrets", [])}
        assert "network_mode" not in service
    cluster = {"LAUNCH_HEAD", "LAUNCH_INTERFACE", "LAUNCH_NODES", "LAUNCH_JOIN_SECONDS", "LAUNCH_CLUSTER_TOKEN_FILE"}
    assert cluster & set(found[f"{stack}-engine"]["environment"]) == set()


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_the_gateway_is_asked_for(stack: str) -> None:
    """Without its profile it is not there and nothing is published beyond this machine; with it, it alone is, hardened and with its secrets as files."""
    row = CATALOG.stacks[stack]
    settings = {"GATEWAY_PORT": "443", "GATEWAY_KEYS_FILE": "/etc/secrets/keys"}
    own = ("--file", f"compose/{stack}.yaml", "--profile", stack)
    config = json.loads(compose(*own, "--profile", "gateway", "config", "--format", "json", **settings).stdout)
    gateway = config["services"][f"{stack}-gateway"]
    published = {
        port["host_ip"] for name, service in config["services"].items() if name.startswith(stack) for port in service.get("ports", [])
    }

    assert f"{stack}-gateway" not in json.loads(compose(*own, "config", "--format", "json").stdout)["services"]
    assert config["services"][stack]["depends_on"][f"{stack}-gateway"]["required"] is False
    assert published == ({"127.0.0.1", "0.0.0.0"} if row.nodes == 1 else set())
    assert row.nodes > 1 or [(port["published"], port["target"]) for port in gateway["ports"]] == [("443", 8443)]
    assert (gateway["read_only"], gateway["cap_drop"], gateway["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert config["secrets"]["gateway_keys"]["file"] == "/etc/secrets/keys"
    assert [name for name in gateway["environment"] if name.endswith("FILE") and not gateway["environment"][name].startswith("/run/")] == []


def test_the_engines_port_can_be_closed(tmp_path: Path) -> None:
    """With the file of docs/gateway.md nothing of the engine is published; page and gateway are as before."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/gateway.md").read_text(), re.DOTALL)
    (tmp_path / "closed.yaml").write_text(text)
    asked = ("--profile", "demo-cpu", "--profile", "gateway", "config", "--format", "json")

    found = json.loads(compose(*asked, COMPOSE_FILE=f"compose.yaml:{tmp_path}/closed.yaml").stdout)["services"]
    usual = json.loads(compose(*asked).stdout)["services"]

    assert "ports" not in found["demo-cpu-engine"]
    assert {**usual, "demo-cpu-engine": {name: value for name, value in usual["demo-cpu-engine"].items() if name != "ports"}} == found


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
