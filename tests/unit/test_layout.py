"""How a model is cut over GPUs and nodes, and by whose means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engineroom.catalog import Catalog
from launcher import hub, layout, sizing
from launcher.errors import Refused

LLAMA = {"num_attention_heads": 32, "num_hidden_layers": 64}
FOUR = {"num_attention_heads": 4, "num_hidden_layers": 2}
QWEN_7B = Catalog(Path(__file__).parents[2]).models["r1-7b"].config
R1 = Catalog(Path(__file__).parents[2]).models["r1"].config


@pytest.mark.parametrize(
    ("tp", "pp", "nodes", "gpus", "sizes"),
    [
        (None, None, 1, 0, (1, 1)),  # a CPU
        (None, None, 1, 1, (1, 1)),
        (None, None, 1, 8, (8, 1)),
        (2, None, 1, 8, (2, 1)),  # a node may keep GPUs for others
        (None, 2, 1, 8, (4, 2)),
        (None, None, 2, 4, (4, 2)),
        (None, None, 2, 8, (8, 2)),
        (None, None, 4, 1, (1, 4)),
        (2, None, 2, 4, (2, 4)),
        (None, 1, 2, 4, (8, 1)),
        (None, 4, 2, 4, (2, 4)),
        (None, None, 2, 0, (1, 2)),
        (2, None, 2, 0, (2, 1)),  # two nodes that each are one CPU
    ],
)
def test_default_sizes(tp: int | None, pp: int | None, nodes: int, gpus: int, sizes: tuple[int, int]) -> None:
    """Tensor parallel within a node and pipeline parallel across nodes, unless a size is given; then the other follows."""
    assert layout.decide(tp, pp, nodes, gpus, LLAMA)[:2] == sizes


@pytest.mark.parametrize(("tp", "gpus", "crosses"), [(8, 4, True), (4, 4, False), (2, 4, False), (2, 0, True)])
def test_tensor_parallel_across_nodes_is_warned_of(tp: int, gpus: int, crosses: bool) -> None:
    """A tensor parallel size beyond one node is allowed and called slow."""
    warnings = layout.decide(tp, None, 2, gpus, LLAMA).warnings

    assert len(warnings) == crosses
    assert all(f"tensor parallel {tp} crosses nodes" in warning for warning in warnings)


@pytest.mark.parametrize(("gpus", "tp", "idle"), [(8, 4, True), (4, 4, False), (3, 2, True), (1, 1, False)])
def test_as_many_gpus_as_can_share(gpus: int, tp: int, idle: bool) -> None:
    """On one node the default is the most GPUs that divide heads and MLP; the others are said to be idle."""
    found = layout.decide(None, None, 1, gpus, QWEN_7B)

    assert (found.tp, found.pp) == (tp, 1)
    assert [warning.startswith(f"{gpus - tp} of {gpus} GPUs have nothing to do") for warning in found.warnings] == [True] * idle


@pytest.mark.parametrize(
    ("asked", "config", "message"),
    [
        ((3, None, 1, 4), FOUR, "4 attention heads, which 3 GPUs cannot share evenly. Set LAUNCH_TP to one of 1, 2, 4."),
        ((7, None, 1, 8), QWEN_7B, "28 attention heads, 4 KV heads, 18944 as the width of its MLP, which 7 GPUs cannot share evenly"),
        ((None, None, 2, 3), FOUR, "2 layers, and pipeline parallel 3"),
        (
            (32, None, 1, 32),
            R1,
            "2048 as the width of its experts, which 32 GPUs cannot share evenly. Set LAUNCH_TP to one of 1, 2, 4, 8, 16.",
        ),
        (
            (4, 4, 2, 4),
            LLAMA,
            "parallel 4 (LAUNCH_TP) times pipeline parallel 4 (LAUNCH_PP) is 16, and the stack has 8 GPUs, 4 on each of 2",
        ),
        (
            (2, 2, 2, 4),
            LLAMA,
            "parallel 2 (LAUNCH_TP) times pipeline parallel 2 (LAUNCH_PP) is 4, and the stack has 8 GPUs, 4 on each of 2",
        ),
        ((3, None, 2, 4), {}, "(LAUNCH_TP) times pipeline parallel 2 (LAUNCH_PP) is 6, and the stack has 8 GPUs"),
        ((2, 2, 2, 0), LLAMA, "is 4, and the stack has 2 nodes"),
        ((8, None, 1, 4), LLAMA, "parallel 8 (LAUNCH_TP) times pipeline parallel 1 (LAUNCH_PP) needs 8 GPUs, and there are 4"),
        ((2, 4, 2, 4), FOUR, "2 layers, and pipeline parallel 4 (LAUNCH_PP) wants at least one each"),
    ],
)
def test_sizes_that_cannot_work_are_refused(asked: tuple[int | None, int | None, int, int], config: dict[str, Any], message: str) -> None:
    """Sizes that do not fit the GPUs, the heads or the layers are refused, with the settings to change."""
    with pytest.raises(Refused, match=re.escape(message)):
        layout.decide(*asked, config)


@pytest.mark.parametrize(
    ("wanted", "nodes", "offered", "name", "reason"),
    [
        ("auto", 1, ["ray", "native"], "", "one node: the engine's own processes"),
        ("mp", 1, [], "mp", "LAUNCH_EXECUTOR says so"),
        ("auto", 2, ["ray", "native"], "ray", "2 nodes: ray before native"),
        ("auto", 3, ["native"], "native", "3 nodes: native, the only way that this release has"),
        ("native", 2, ["ray", "native"], "native", "LAUNCH_EXECUTOR says so"),
        ("ray", 2, ["native", "ray"], "ray", "LAUNCH_EXECUTOR says so"),
    ],
)
def test_the_executor_and_its_reason(wanted: str, nodes: int, offered: list[str], name: str, reason: str) -> None:
    """Several nodes are joined by the release's preferred way or by the one that is asked for; one node needs none."""
    assert layout.choose_executor(wanted, nodes, offered, "a100-fp8") == (name, reason)


@pytest.mark.parametrize(
    ("wanted", "nodes", "offered", "message"),
    [
        ("ray", 1, ["ray"], "LAUNCH_EXECUTOR is ray, which joins several nodes, and this stack has one"),
        ("native", 1, ["native"], "LAUNCH_EXECUTOR is native, which joins several nodes"),
        ("auto", 2, [], "engine of image b200-fp4 is not started over several nodes by this release"),
        ("native", 2, ["ray"], "LAUNCH_EXECUTOR is native, and over several nodes image b200-fp4 has ray. Set one of these, or auto."),
        ("mp", 2, ["ray", "native"], "LAUNCH_EXECUTOR is mp, and over several nodes image b200-fp4 has ray and native"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(wanted: str, nodes: int, offered: list[str], message: str) -> None:
    """An executor that the release has not, or that this many nodes cannot use, is refused with those that there are."""
    with pytest.raises(Refused, match=re.escape(message)):
        layout.choose_executor(wanted, nodes, offered, "b200-fp4")


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_config_of_a_folder(tmp_path: Path) -> None:
    """A model folder's own config.json is read; what a model of several modalities has in `text_config` counts."""
    write(tmp_path / "config.json", json.dumps({"model_type": "gemma3", "text_config": FOUR}))

    assert sizing.config_of(str(tmp_path), str(tmp_path))["num_attention_heads"] == FOUR["num_attention_heads"]


def test_config_of_a_model_that_is_not_here() -> None:
    """The catalog's models are known by their hub id, others not at all."""
    assert sizing.config_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "")["num_hidden_layers"] == 28
    assert sizing.config_of("owner/never-downloaded", "") == {}


@pytest.mark.parametrize("text", ["{", "[1, 2]", "[" * 100_000, "\udcff", None])
def test_a_config_that_cannot_be_read_is_unknown(tmp_path: Path, text: str | None) -> None:
    """Broken, foreign or missing files leave the decision without the model's sizes, not with an error."""
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))

    assert hub.config(str(tmp_path)) == {}
