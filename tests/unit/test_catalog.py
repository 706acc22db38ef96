from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from engineroom.catalog import Catalog
from engineroom.errors import CannotBuild, CannotRun, CatalogError, UnknownName
from engineroom.rows import Executor
from launcher.engines import ENGINES
from launcher.settings import SETTINGS

ROOT = Path(__file__).parents[2]

IMAGES = {"cpu", "webui", "gateway", "prometheus", "router", "v100-half", "a100-half", "a100-fp8", "a100-sglang", "h200-fp8", "b200-fp4"}
STACKS = {
    "r1-7b-v100", "r1-32b-v100", "r1-0528-8b-a100", "r1-0528-8b-a100-sglang", "v3-a100", "r1-h200", "r1-7b-h200", "r1-b200", "demo-cpu",
    "demo-cpu-two-nodes",
}  # fmt: skip


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_every_promised_row_is_there(catalog: Catalog) -> None:
    """The images and stacks that the project promises are rows."""
    assert set(catalog.images) == IMAGES
    assert set(catalog.stacks) >= STACKS
    assert set(catalog.upstream_stacks) == {"api"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("v100-sglang", "compute capability 80"), ("v100-trtllm", "compute capability 80"), ("v100-fp8", "FP8"), ("a100-fp4", "FP4")],
)
def test_an_impossible_image_gives_its_reason(catalog: Catalog, name: str, reason: str) -> None:
    """Asking for what cannot be built prints why, and what to use instead."""
    with pytest.raises(CannotBuild, match=reason) as error:
        catalog.image(name)

    assert "instead" in str(error.value)


def test_671b_on_two_a100_gives_its_reason(catalog: Catalog) -> None:
    """671 B on 2 × A100 is refused with the arithmetic."""
    with pytest.raises(CannotBuild, match="313 GiB"):
        catalog.stack("v3-a100x2")


def test_a_page_without_an_engine_is_no_stack_to_plan_or_submit(catalog: Catalog) -> None:
    """`api` has neither GPUs nor a model of ours: what asks for them is told how to start it."""
    with pytest.raises(CannotRun, match="docker compose up api"):
        catalog.stack("api")


def test_an_unknown_name_gets_the_nearest(catalog: Catalog) -> None:
    """A misspelt name is answered with the nearest real one."""
    with pytest.raises(UnknownName, match="Did you mean 'v100-half'"):
        catalog.image("v100-haf")
    with pytest.raises(UnknownName, match="Did you mean 'r1-7b-v100'"):
        catalog.stack("r1-7b-v10")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "images/gpus.toml",
            "compute_capability = 70",
            'compute_capability = "7.0"',
            r"images/gpus.toml: \[v100\].compute_capability: .*integer",
        ),
        ("images/gpus.toml", "[a100]", "[a100", "images/gpus.toml is no valid TOML"),
        ("images/images.toml", 'precision = "half"', 'precison = "half"', r"images/images.toml: \[v100-half\].precison: .*not permitted"),
        ("images/images.toml", 'engine = "vllm-0.9.2"', 'engine = "vllm-0.9.3"', r"\[v100-half\].engine: .*Did you mean 'vllm-0.9.2'"),
        ("images/images.toml", 'engine = "vllm-0.9.2"', 'engine = "sglang-0.5.23"', "SGLang's kernels"),
        ("images/images.toml", 'precision = "half"', 'precision = "fp8"', "FP8 needs compute capability 80"),
        ("images/images.toml", 'engine = "vllm-0.9.2"', 'engine = "vllm-0.25.1"', "no device code for compute capability 70"),
        ("images/images.toml", "[[h200-fp8.kernels]]", "[[a100-half.kernels]]", "compiles for compute capability 90, and a100 has 80"),
        ("images/images.toml", 'precision = "half"', 'precision = "bfloat16"', "a NVIDIA V100 has no bfloat16"),
        ("images/images.toml", 'why = "A V100 has no bfloat16."', 'why = ""', r"\[v100-half\].args\[0\].why"),
        ("compose/stacks.toml", "gpus = 4", "gpus = 3", "40 attention heads do not divide by 3"),
        ("compose/stacks.toml", "tp = 2", "tp = 3", r"\[demo-cpu-two-nodes\]: .*tp = 3 does not divide the stack's 2 nodes"),
        ("compose/stacks.toml", "nodes = 2\ngpus = 4", "nodes = 2\ngpus = 3\ntp = 6", r"\.tp: 40 attention heads do not divide by 6"),
        ("compose/stacks.toml", "max_model_len = 8192", "max_model_len = 200000", "more than the 131072 tokens"),
        ("compose/stacks.toml", 'model = "v3"\nnodes = 2', 'model = "v3"\nnodes = 1', "78 GiB on each of eight"),
    ],
)
def test_a_bad_row_is_named(copy: Path, file: str, old: str, new: str, message: str) -> None:
    """An error in a TOML file names file, row and field."""
    edit(copy / file, old, new)

    with pytest.raises(CatalogError, match=message):
        Catalog(copy)


def test_a_file_in_another_encoding_is_named(copy: Path) -> None:
    """TOML is UTF-8; an editor that writes Latin-1 is no reason for a traceback."""
    (copy / "images/models.toml").write_bytes("# Größe\n".encode("latin-1"))

    with pytest.raises(CatalogError, match="images/models.toml is no valid TOML: .*utf-8"):
        Catalog(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    """A catalog file that is not there is named."""
    (copy / "images/models.toml").unlink()

    with pytest.raises(CatalogError, match="images/models.toml is missing"):
        Catalog(copy)


def test_a_release_that_uses_ray_has_one_with_tokens(catalog: Catalog) -> None:
    """Where Ray joins the nodes it is locked at 2.52 or newer: token authentication began there."""
    releases = [name for name, release in catalog.releases.items() if "ray" in (way.name for way in release.executors)]
    found = {name: re.search(r"^ray==(\d+)\.(\d+)", (ROOT / f"images/locks/{name}.txt").read_text(), re.MULTILINE) for name in releases}

    assert releases
    assert [name for name, ray in found.items() if not ray or (int(ray[1]), int(ray[2])) < (2, 52)] == []


def test_locks_are_of_releases_and_tools(catalog: Catalog) -> None:
    """No lock is left over, and each tool is locked as its row says."""
    releases = {row.engine for name, row in catalog.images.items() if catalog.release_of(name).install == "wheels"}
    assert {file.stem for file in (ROOT / "images/locks").glob("*.txt")} == releases | set(catalog.tools)
    for name, tool in catalog.tools.items():
        assert set(tool.packages) <= set(re.findall(r"^(\S+==\S+)", (ROOT / f"images/locks/{name}.txt").read_text(), re.MULTILINE))


def test_kernels_are_compiled_by_their_engines_cuda(catalog: Catalog) -> None:
    """The compiler is of the CUDA release that the engine was made with, and what it links with is what the engine brings."""
    compiler = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / "images/locks/nvcc.txt").read_text(), re.MULTILINE))
    engines = {image.engine for image in catalog.images.values() if image.kernels}

    assert engines
    for name in engines:
        brought = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / f"images/locks/{name}.txt").read_text(), re.MULTILINE))
        assert {package: compiler[package] for package in ("nvidia-cuda-runtime", "nvidia-curand")}.items() <= brought.items()
        assert compiler["nvidia-cuda-nvcc"].startswith(f"{catalog.releases[name].cuda}.")
        assert compiler["nvidia-cuda-nvcc"] == compiler["nvidia-cuda-crt"] == compiler["nvidia-nvvm"]
        assert "flashinfer-python" in brought


def test_a_release_that_joins_nodes_itself_has_the_flags(catalog: Catalog) -> None:
    """Where the engine joins the nodes by itself its snapshot knows how many there are and which this one is."""
    releases = [name for name, release in catalog.releases.items() if "native" in (way.name for way in release.executors)]
    snapshots = {name: json.loads((ROOT / f"images/flags/{name}.json").read_text()) for name in releases}
    flags = {name: {flag for row in snapshot["flags"] for flag in row["names"]} for name, snapshot in snapshots.items()}

    assert releases
    assert [name for name in releases if not {"--nnodes", "--node-rank"} <= flags[name]] == []


def test_gauges_are_the_launchers(catalog: Catalog) -> None:
    """What autoscaling asks a release for is what the launcher waits for before it stops; every engine's row says what it has."""
    engines = {name: release for name, release in catalog.releases.items() if release.engine in ENGINES}

    assert engines
    for name, release in engines.items():
        gauges, running = release.metrics, ENGINES[release.engine].RUNNING
        assert "metrics" in release.model_fields_set, name
        assert bool(gauges.waiting) == bool(gauges.cache) == bool(running), name
        assert not gauges.waiting or gauges.waiting in running, name


def test_executors_are_the_launchers() -> None:
    """What a release may offer is what LAUNCH_EXECUTOR takes, beside its own choice and one node's processes."""
    (choices,) = (setting.choices for setting in SETTINGS if setting.name == "executor")

    assert set(choices) == {"auto", "mp", *get_args(Executor.model_fields["name"].annotation)}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("compose/stacks.toml", 'profile = "latency"', 'profile = "fast"', "b200-fp4 has no fast; it has latency, throughput"),
        (
            "images/images.toml",
            'flag = "performance-mode"',
            'flag = "max-num-seqs"',
            "--max-num-seqs is the launcher's own setting LAUNCH_MAX_SEQS",
        ),
    ],
)
def test_profiles_that_cannot_be_are_refused(copy: Path, file: str, old: str, new: str, message: str) -> None:
    """A stack names a profile that its image has, and a profile leaves the launcher's settings alone."""
    edit(copy / file, old, new)

    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog(copy)
