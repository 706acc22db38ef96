"""Weights and cache against counts and logs that others have published, and rules that hold for every plan."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
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
    """What is left for the cache, within 1 % of what an H200 gave with our release, and within 5 % of what others have published."""
    memory = CATALOG.releases[seen["release"]].memory
    assert memory
    args = {"gpu-memory-utilization": seen["fraction"], "max-num-batched-tokens": seen["tokens"], "enforce-eager": not seen["graphs"]}
    engine = fit.engine(memory.model_dump(), planner.Wanted(args=args).flag)
    row = CATALOG.models[seen["model"]]
    layout = fit.Layout(seen["tp"], 1, seen.get("held", "stored"), seen.get("cache", 2))
    limits = fit.Limits(seen.get("context", 0), seen["seqs"])

    found = fit.fit(tensors.of_config(row.config), row.shape, layout, engine, int(seen["gpu_gib"] * GIB), limits)

    assert found.stages[0].free / GIB == pytest.approx(seen["gib"], rel=seen["within"])
    beside = seen["gpu_gib"] * seen["fraction"] - seen["gib"] if memory.share == "all" else 0
    assert found.budget / GIB - found.stages[0].free / GIB == pytest.approx(beside, rel=0.05) or not beside
    if "cached_tokens" in seen:
        assert found.tokens == pytest.approx(seen["cached_tokens"], rel=seen["within"])


SHAPES = some.builds(
    lambda kind, layers, heads, groups, wide: {
        "model_type": kind,
        "hidden_size": 64 * heads,
        "intermediate_size": 128 * wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // groups,
        "vocab_size": 32_000,
        "max_position_embeddings": 65_536,
    },
    some.sampled_from(["llama", "qwen2", "qwen3"]),
    some.integers(1, 96),
    some.sampled_from([8, 16, 32, 64]),
    some.sampled_from([1, 2, 4, 8]),
    some.integers(8, 256),
)
ENGINES = some.builds(
    fit.Engine,
    some.sampled_from(["all", "held", "left"]),
    some.sampled_from([0.3, 0.8, 0.9, 0.95]),
    some.sampled_from([0, 2048, 8192]),
    some.sampled_from([1, 64, 1024]),
    some.sampled_from([6.4, 38.4]),
    some.integers(0, 4 * GIB),
    some.integers(0, GIB),
)
CUTS = some.tuples(some.sampled_from([1, 2, 4, 8]), some.sampled_from([1, 2, 3]))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(SHAPES, ENGINES, CUTS, some.integers(4, 200), some.integers(1, 64), some.sampled_from([0, 4096, 65_536]))
def test_more_memory_never_holds_less_and_a_plan_stays_within_the_gpu(
    config: dict[str, Any], engine: fit.Engine, cut: tuple[int, int], gib: int, more: int, context: int
) -> None:
    """For any model, engine and layout: more memory holds as many tokens at least, and what is planned is no more than there is."""
    shape, held = fit.shape(config), tensors.of_config(config)
    assert shape
    layout = fit.Layout(*cut)
    small, large = (fit.fit(held, shape, layout, engine, size * GIB, fit.Limits(context)) for size in (gib, gib + more))

    assert large.tokens >= small.tokens
    assert large.context >= small.context
    assert large.missing <= small.missing
    assert sum(fit.weights(held, shape, layout)) >= sum(map(tensors.size, held)) / cut[0]  # nothing gets lost by cutting
    if small.context:
        for stage in small.stages:
            assert stage.weights + stage.activations + stage.request + small.tokens * stage.token <= gib * GIB
            assert small.requests(small.context) >= 1


def test_layers_of_pipeline_stages() -> None:
    """What is over goes to the stages before the last, as vLLM does it."""
    assert fit.split(61, 2) == [31, 30]
    assert fit.split(61, 4) == [15, 15, 16, 15]
    assert fit.split(80, 3) == [27, 27, 26]


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, [0, 0, 0, 0]),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 3}, [0, 0, 0, 4096]),
        ({"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 2}, [1024, 0, 1024, 0]),
        ({"sliding_window": 4096, "model_type": "mistral"}, [4096] * 4),
        ({"sliding_window": None, "model_type": "mistral"}, [0] * 4),
    ],
)
def test_attention_windows(config: dict[str, Any], windows: list[int]) -> None:
    """Layers with a window keep no more than it, whatever the context."""
    whole = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1000, "intermediate_size": 512}
    shape = fit.shape({**whole, "max_position_embeddings": 32_768, **config})
    assert shape

    assert list(shape.windows) == windows
    assert fit.cache(shape, fit.Layout(1, 1)) == [(2 * 512 * 2 * windows.count(0), 2 * 512 * 2 * sum(windows))]


ODD = some.sampled_from([None, 0, -1, 1, 28, 28.5, 10**12, True, "28", "", [], [1], {}, {"quant_method": 7}, float("inf")])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(some.sampled_from(["r1-7b", "r1", "r1-0528-8b", "r1-0528-fp4"]), some.data())
def test_a_config_may_hold_anything(name: str, data: some.DataObject) -> None:
    """Whatever stands in a config.json, a shape is either whole or unknown, and nothing but a count or no count comes of it."""
    config = dict(CATALOG.models[name].config)
    for key in data.draw(
        some.lists(some.sampled_from([*config, "sliding_window", "layer_types", "rope_scaling", "head_dim"]), min_size=1, max_size=3)
    ):
        config[key] = data.draw(ODD)

    shape = fit.shape(config)

    if shape:
        assert (
            min(shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary, shape.inner, shape.context) > 0
        )
        engine = fit.Engine("all", 0.9, 2048, 256, 6.4, 0)
        tp = fit.tensor_parallel(shape, 8, 1)
        found = fit.fit(tensors.of_config(config), shape, fit.Layout(tp, 1), engine, 80 * GIB)
        assert found.tokens >= 0
        assert found.requests(1024) >= 0


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (8, 1), (1, 2)])
def test_a_draft_layer_that_is_loaded(tp: int, pp: int) -> None:
    """R1's draft layer: as much as any of its layers with experts, and its projection in 16 bits on every GPU; tables are the model's own."""
    row = CATALOG.models["r1"]
    found, layer, hidden = tensors.of_config(row.config), "model.layers.60.", row.shape.hidden
    without, with_it = (fit.weights(found, row.shape, fit.Layout(tp, pp, drafts=drafts)) for drafts in (False, True))
    one = sum(fit.weights([tensor for tensor in found if tensor.name.startswith(layer)], row.shape, fit.Layout(tp, pp)))
    table = row.shape.vocabulary * hidden * 2 // tp if pp > 1 else 0  # stages do not share the table of words

    assert without[:-1] == with_it[:-1]
    assert with_it[-1] - without[-1] == one + 2 * hidden * hidden * 2 + 3 * hidden * 2 + table
    assert fit.cache(row.shape, fit.Layout(tp, pp, drafts=True))[-1][0] == fit.cache(row.shape, fit.Layout(tp, pp))[-1][0] + 576 * 2


def by_flags(kind: str, tp: int, **flags: str) -> fit.Layout:
    """The layout that these flags of an engine give."""
    said = {name.replace("_", "-").replace("--", "."): value for name, value in flags.items()}
    return fit.layout(kind, lambda *names: next((said[name] for name in names if name in said), ""), tp, 1, "stored")


def test_drafts_by_flag() -> None:
    """The method decides: a draft model of its own is counted by nobody."""
    assert by_flags("vllm", 8, speculative_config='{"method": "deepseek_mtp", "num_speculative_tokens": 1}').drafts
    assert by_flags("vllm", 8, speculative_config__method="mtp").drafts
    assert not by_flags("vllm", 8, speculative_config='{"method":"ngram","num_speculative_tokens":3}').drafts
    assert not by_flags("vllm", 8).drafts


@pytest.mark.parametrize(
    ("layout", "whole", "ranks"),
    [
        (by_flags("vllm", 8), (), 1),
        (by_flags("vllm", 1, data_parallel_size="8"), ("",), 1),
        (by_flags("sglang", 8, dp_size="2"), (), 1),
        (by_flags("sglang", 8, dp_size="8", enable_dp_attention="true"), ("attn", "embed"), 8),
        (by_flags("trtllm", 8, enable_attention_dp="true"), ("",), 8),
    ],
)
def test_data_parallel_attention(layout: fit.Layout, whole: tuple[str, ...], ranks: int) -> None:
    """What holds one of these words is on each of eight GPUs, but for the routed experts: an eighth of those is, and of all else."""
    row = CATALOG.models["r1"]
    for tensor in tensors.of_config(row.config):
        if fit.layer_of(tensor.name) in (None, 0, 3):
            kept = ".experts." not in tensor.name and any(word in tensor.name for word in whole)
            here, eighth, all_of_it = (fit.weights([tensor], row.shape, how) for how in (layout, fit.Layout(8, 1), fit.Layout(1, 1)))
            assert here == (all_of_it if kept else eighth), tensor.name
    assert layout.ranks == ranks
    assert fit.cache(row.shape, layout) == fit.cache(row.shape, fit.Layout(8, 1))  # a latent cache is on each GPU either way


def test_r1_with_data_parallel_attention_fits_eight_h200() -> None:
    """By hand: 654.1 GB of routed experts ÷ 8, and 21.1 GB of everything else on each GPU (vLLM), or of that 15.3 GB of attention and words (SGLang)."""
    row = CATALOG.models["r1"]
    found = tensors.of_config(row.config)

    gib = {
        name: sum(fit.weights(found, row.shape, layout)) / GIB
        for name, layout in (
            ("vllm", by_flags("vllm", 1, data_parallel_size="8")),
            ("sglang", by_flags("sglang", 8, dp_size="8", enable_dp_attention="true")),
        )
    }

    assert gib == {"vllm": pytest.approx(95.8, abs=0.1), "sglang": pytest.approx(91.3, abs=0.1)}


def test_what_a_profiles_file_says_is_what_stands_in_it() -> None:
    """The plan knows a file of TensorRT-LLM's by its row: both say the same."""
    for profile in CATALOG.images["b200-fp4"].profiles.values():
        (preset,) = profile
        read = yaml.safe_load((ROOT / "images/trtllm" / Path(str(preset.value)).name).read_text())
        cache = read["kv_cache_config"]
        assert preset.says == {
            "kv-cache-dtype": cache["dtype"],
            "free-gpu-memory-fraction": cache["free_gpu_memory_fraction"],
            "max-num-tokens": read["max_num_tokens"],
            "enable-attention-dp": read["enable_attention_dp"],
            "speculative-config.method": read["speculative_config"]["decoding_type"].lower(),
        }


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"type": "linear", "factor": 4.0}, 64_000),
        ({"rope_type": "dynamic", "factor": 2}, 32_000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8_000}, 32_000),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8_000}, 16_000),
        ({"rope_type": "longrope", "factor": 8.0}, 16_000),
        ({"rope_type": "default"}, 16_000),
        (None, 16_000),
    ],
)
def test_stretched_contexts(rope: dict[str, Any] | None, context: int) -> None:
    """The longest context is what vLLM takes for each kind of stretching."""
    found = fit.shape({**CATALOG.models["r1-7b"].config, "max_position_embeddings": 16_000, "rope_scaling": rope})

    assert found
    assert found.context == context


def test_a_context_that_is_no_multiple_of_a_step() -> None:
    """Where an engine takes a prompt in one step, the model's whole context is tried, not the 1,024 below it."""
    row = CATALOG.models["r1-7b"]
    engine = fit.engine(CATALOG.release_of("v100-half").memory.model_dump(), lambda *_: "")  # type: ignore[union-attr]
    found = fit.fit(tensors.of_config(row.config), row.shape._replace(context=1_500), fit.Layout(1, 1), engine, 32 * GIB)

    assert engine.tokens == 0
    assert found.context == 1_500


@pytest.mark.parametrize(("name", "layer"), [("model.layers.7.mlp.up_proj.weight", 7), ("layers.³.x", None), ("lm_head.weight", None)])
def test_the_layer_of_a_tensor(name: str, layer: int | None) -> None:
    """A file may name its tensors anything."""
    assert fit.layer_of(name) == layer
