"""Checks and explanations in real containers: what a container has or lacks, and how the kernel ends one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from image.conftest import Server, run

pytestmark = pytest.mark.containers
Serve = Callable[..., Server]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILL_CACHE = f"""
place=/cache/huggingface/hub/models--someone--demo
mkdir -p $place/refs $place/snapshots/{COMMIT}
cp /opt/models/demo-r1/* $place/snapshots/{COMMIT}
printf {COMMIT} >$place/refs/main
"""


@pytest.mark.fault(30)
def test_fault_30_little_shared_memory(image: str) -> None:
    """Docker's own 64 MiB of /dev/shm and two processes that share a model: refused, with the flag to type; with that flag it passes."""
    plain = run(image, "serve", "--dry-run", "--tp", "2")
    enough = run(image, "serve", "--dry-run", "--tp", "2", shm_size="1g")

    assert plain.returncode == 78
    assert "/dev/shm has 64 MiB, and 2 processes that share a model here want 1.0 GiB" in plain.stderr
    assert "--shm-size=1g" in plain.stderr
    assert enough.returncode == 0, enough.stderr


@pytest.mark.fault(31)
def test_fault_31_a_full_cache_volume(image: str) -> None:
    """A cache with less room than the model has bytes: both figures are said before anything is fetched."""
    result = run(image, "serve", "--dry-run", tmpfs="/cache:size=64m,mode=1777", env="LAUNCH_MODEL=deepseek-ai/DeepSeek-R1-0528")

    assert result.returncode == 78
    assert "needs 641.3 GiB more (688600000000 bytes of 688600000000), and /cache/huggingface/hub has 64 MiB free" in result.stderr


@pytest.mark.fault(33)
def test_fault_33_the_hub_is_out_of_reach(image: str) -> None:
    """No network and nothing in the cache: an end within seconds that says so, and no retries of an engine."""
    began = time.monotonic()

    result = run(image, network="none", env="LAUNCH_MODEL=someone/demo")

    assert result.returncode == 69
    assert "cannot be reached" in result.stderr
    assert "someone/demo is not in /cache/huggingface/hub" in result.stderr
    assert time.monotonic() - began < 20


@pytest.mark.fault(33)
def test_fault_33_a_full_cache_serves_without_a_network(image: str, serve: Serve) -> None:
    """A model that is complete in the hub's cache is served by its hub id, with no network at all, by the real engine."""
    server = serve("bash", "-ec", f"{FILL_CACHE} exec launch", network_mode="none", ports={}, environment={"LAUNCH_MODEL": "someone/demo"})
    server.wait_for("ready after")

    assert "someone/demo is complete in /cache/huggingface/hub; the hub is not asked (HF_HUB_OFFLINE=1)" in server.logs


@pytest.mark.fault(34)
def test_fault_34_the_kernel_kills_for_memory(serve: Serve) -> None:
    """A container that is too small for the engine: nonzero, and explained as memory."""
    server = serve(mem_limit="700m", memswap_limit="700m")

    assert server.exit_code(120) == 70
    assert "Cause: " in server.logs
    assert "memory" in server.logs.partition("Cause: ")[2].partition("\n")[0]


def test_doctor_inside(image: str) -> None:
    """`launch doctor` says what the container has, without a model, in words and for programs."""
    result = run(image, "doctor", "--json", network="none", shm_size="1g")

    found = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.returncode == 0, result.stdout
    assert "computes on the CPU" in found["gpus"]["text"]
    assert found["shared memory"]["text"].startswith("/dev/shm has 1.0 GiB")
    assert found["hub"]["status"] == "warning"
