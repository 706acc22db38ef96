"""The demo model's files agree with its row of the catalog."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from engineroom.catalog import Catalog
from engineroom.rows import Model

FOLDER = Path(__file__).parents[2] / "models/demo-r1"


@pytest.fixture
def row(catalog: Catalog) -> Model:
    return catalog.models["demo-r1"]


def shapes() -> dict[str, list[int]]:
    """Tensor shapes from the header of the safetensors file."""
    with (FOLDER / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def test_row_is_the_checkpoint(row: Model) -> None:
    """Layers, heads, sizes and parameters of the row are those of the files."""
    config = json.loads((FOLDER / "config.json").read_text())

    assert row.config.items() <= config.items()
    assert row.parameters == sum(math.prod(shape) for shape in shapes().values())
    assert row.bytes == (FOLDER / "model.safetensors").stat().st_size < 16_000_000


def test_it_can_be_sharded_and_quantised(row: Model) -> None:
    """Head dimension 64, and every matrix in multiples of 128: two ranks and block quantisation divide it."""
    config = json.loads((FOLDER / "config.json").read_text())

    assert config["hidden_size"] // config["num_attention_heads"] == row.shape.head_dim == 64
    assert all(size % 128 == 0 for shape in shapes().values() if len(shape) > 1 for size in shape)
    assert config["vocab_size"] % 128 == 0
    assert config["num_key_value_heads"] % 2 == 0


def test_sampling_is_what_r1s_authors_recommend(row: Model) -> None:
    """Temperature 0.6 and top-p 0.95, in the files and in the row."""
    generation = json.loads((FOLDER / "generation_config.json").read_text())

    assert (generation["temperature"], generation["top_p"]) == (row.sampling.temperature, row.sampling.top_p) == (0.6, 0.95)


def test_it_has_r1s_tokens() -> None:
    """DeepSeek-R1's special tokens and the thinking marks are single tokens."""
    tokens = {token["content"] for token in json.loads((FOLDER / "tokenizer.json").read_text())["added_tokens"]}

    assert {"<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"} <= tokens
