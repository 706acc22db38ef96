"""Weights and cache against counts and logs that others have published, and rules that hold for every plan."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from engineroom import planner
from engineroom.catalog import Catalog
from launcher import fit, safetensors, tensors
from launcher.fit import GIB

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
LOGGED = tomllib.loads((ROOT / "tests/data/memory.toml").read_text())


def weights(model: str, tp: int, pp: int = 1, held: str = "stored") -> list[int]:
    """Bytes of the weights on one GPU of each stage."""
    row = CATALOG.models[model]
    return fit.weights(tensors.of_config(row.config), row.shape, fit.Layout(tp, pp, held))


@pytest.mark.parametrize("name", [name for name, row in CATALOG.models.items() if row.precision != "fp4"])
def test_weights_are_counted_exactly(name: str) -> None:
    """The shapes that a config gives have the checkpoint's parameters, and its bytes with the draft layer that it ships."""
    row = CATALOG.models[name]
    found = tensors.of_config(row.config)
    drafts = f"model.layers.{row.shape.layers}."
    counted = sum(math.prod(tensor.shape) for tensor in found if "scale" not in tensor.name and not tensor.name.startswith(drafts))

    assert counted == row.parameters
    assert sum(map(tensors.size, found)) == pytest.approx(row.bytes, rel=0.0015)  # the file's header is in the row's bytes


def test_a_config_gives_the_tensors_of_the_file() -> None:
    """The demo model's tensors, from its config.json and from its file, are the same."""
    folder = ROOT / "models/demo-r1"

    from_config = tensors.of_config(json.loads((folder / "config.json").read_text()))

    assert sorted(from_config) == sorted(safetensors.in_folder(str(folder)))


@pytest.mark.parametrize(
    ("name", "kib", "kib_on_each"),
    [
        ("r1-7b", 56.0, {1: 56.0, 2: 28.0, 4: 14.0}),
        ("r1-32b", 256.0, {8: 32.0}),
        ("r1-0528-8b", 144.0, {1: 144.0, 8: 18.0}),
        ("r1-70b", 320.0, {8: 40.0, 16: 40.0}),  # eight key and value heads: sixteen GPUs hold them twice
        ("r1", 68.625, {1: 68.625, 16: 68.625}),  # latent attention: the same on every GPU
    ],
)
def test_cache_bytes_of_a_token(name: str, kib: float, kib_on_each: dict[int, float]) -> None:
    """KV cache of a token, exact: 2 x layers x KV heads x head size x 2 bytes, or layers x (512 + 64) x 2 with latent attention."""
    shape = CATALOG.models[name].shape

    assert fit.cache(shape, fit.Layout(1, 1)) == [(kib * 1024, 0)]
    for tp, wanted in kib_on_each.items():
        assert fit.cache(shape, fit.Layout(tp, 1)) == [(wanted * 1024, 0)]
    assert sum(token for token, _ in fit.cache(shape, fit.Layout(1, 3))) == kib * 1024


@pytest.mark.parametrize("seen", LOGGED["weights"], ids=lambda seen: f"{seen['model']}-tp{seen['tp']}-pp{seen.get('pp', 1)}")
def test_weights_against_logs(seen: dict[str, Any]) -> None:
    """Weights on one GPU, within 1.5 % of what engines have logged: they add padding, rotary tables and what their allocator rounds up."""
    found = weights(seen["model"], seen["tp"], seen.get("pp", 1), seen.get("held", "stored"))

    assert max(found) / GIB == pytest.approx(seen["gib"], rel=0.015)


@pytest.mark.parametrize("seen", LOGGED["cache"], ids=lambda seen: f"{seen['model']}: {seen['of']}")
def test_cache_against_logs(seen: dict[str, Any]) -> None:
    """What is left for the cache, within 2 % of what an H200 gave with our release, and within 10 % of what others have published."""
    memory = CATALOG.releases[seen["release"]].memory
    assert memory
    args = {"gpu-memory-utilization": seen["fraction"], "max-num-batched-tokens": seen["tokens"], "enforce-eager": not seen["graphs"]}
    engine = fit.engine(memory.model_dump(), args)
    row = CATALOG.models[seen["model"]]
    layout = fit.Layout(seen["tp"], 1, seen.get("held", "stored"), seen.get("cache", 2))
    limits = fit.Limits(seen.get("context", 0), seen["seqs"])

    found = fit.fit(tensors.of_config(row.config), row.shape, layout, engine, int(seen["gpu_gib"] * GIB), limits)

    assert found.stages[0].free / GIB == pytest.approx(seen["gib"], rel=seen["within"])
    if "cached_tokens" in seen:
        assert found.tokens == pytest.approx(seen["cached_tokens"], rel=seen["within"])
