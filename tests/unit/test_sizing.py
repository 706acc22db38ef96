"""Settings that nobody gave: values, sources, and what the check of memory says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import small_model
from click.testing import CliRunner

from engineroom.catalog import Catalog
from launcher import cli

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
V100, A100, H200 = "NVIDIA V100:70:32", "NVIDIA A100:80:80", "NVIDIA H200:90:141"


@pytest.fixture
def dry_run(stub_gpus: Callable[[str], None], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The decisions for a model of the catalog, in a folder with made-up weights, on GPUs, as `serve --dry-run --json` prints them."""

    def run(image: str, gpus: str, model: str, *arguments: str, **env: str) -> dict[str, Any]:
        stub_gpus(gpus)
        shutil.copy(ROOT / "images" / image / "image.json", tmp_path)
        shutil.copy(ROOT / "images/flags" / f"{CATALOG.images[image].engine}.json", tmp_path / "flags.json")
        folder = small_model(tmp_path / "model", {"torch_dtype": "bfloat16", **CATALOG.models[model].config})
        settings = {"LAUNCH_IMAGE": str(tmp_path / "image.json"), "LAUNCH_MODEL": str(folder), **env}
        result = CliRunner().invoke(cli.cli, ["serve", "--dry-run", "--json", *arguments], env=settings)
        found: dict[str, Any] = json.loads(result.output)
        found["refusals"] = str(result.exception) if result.exception else ""
        return found

    return run


def sources(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Value and source of every setting."""
    return {choice["name"]: (choice["value"], choice["source"]) for choice in found["sizing"]["choices"]}


def test_the_context_is_the_most_that_fits(dry_run: Callable[..., dict[str, Any]]) -> None:
    """R1-32B on one A100-80GB: weights leave room for some 37,000 tokens, so the context is cut, and the requests that may run at once."""
    found = dry_run("a100-half", A100, "r1-32b")

    length, source = sources(found)["LAUNCH_MAX_MODEL_LEN"]
    assert 30_000 < int(length) < 40_000
    assert source == "the most that fits; the model has 131072"
    assert found["command"][found["command"].index("--max-model-len") + 1] == length
    assert int(sources(found)["LAUNCH_MAX_SEQS"][0]) == found["sizing"]["fit"]["tokens"] // 1024
    assert found["refusals"] == ""


def test_what_fits_whole_is_left_to_the_engine(dry_run: Callable[..., dict[str, Any]]) -> None:
    """R1-7B on an H200: the model's context and the engine's requests, and no flag for either."""
    found = dry_run("h200-fp8", H200, "r1-7b")

    assert sources(found)["LAUNCH_MAX_MODEL_LEN"] == ("131072", "the model's own")
    assert sources(found)["LAUNCH_MAX_SEQS"] == ("1024", "the engine's own")
    assert sources(found)["memory fraction"] == ("0.92", "the engine's own")
    assert not {"--max-model-len", "--max-num-seqs", "--gpu-memory-utilization"} & set(found["command"])


def test_what_is_set_stays_and_is_said(dry_run: Callable[..., dict[str, Any]]) -> None:
    """Given values are used as they are."""
    found = dry_run(
        "h200-fp8", H200, "r1-7b", "--gpu-memory-utilization", "0.5", LAUNCH_MAX_MODEL_LEN="4096", LAUNCH_MAX_SEQS="7", LAUNCH_TP="1"
    )

    assert {name: value for name, value in sources(found).items() if value[1] == "as set"} == {
        "LAUNCH_TP": ("1", "as set"),
        "LAUNCH_MAX_MODEL_LEN": ("4096", "as set"),
        "LAUNCH_MAX_SEQS": ("7", "as set"),
        "memory fraction": ("0.5", "as set"),
    }
    assert found["sizing"]["fit"]["budget"] == 141 * 2**30 // 2


def test_a_gpu_that_something_else_uses(dry_run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part of the GPU is taken, the engine gets a smaller share, since it would refuse to start with its own."""
    monkeypatch.setenv("STUB_USED_GIB", "40")

    found = dry_run("h200-fp8", H200, "r1-7b")

    value, source = sources(found)["memory fraction"]
    assert 0.69 < float(value) < 0.72
    assert "something else runs there" in source
    assert found["command"][found["command"].index("--gpu-memory-utilization") + 1] == value


def test_flashinfer_has_room_beside_the_share(dry_run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two workspaces of 394 MiB are taken after the cache is sized: a share that was cut to what is free leaves them that."""
    monkeypatch.setenv("STUB_USED_GIB", "40")
    left = []
    for profile in ("throughput", "batch"):
        found = dry_run("h200-fp8", "NVIDIA H100:90:80", "r1-7b", LAUNCH_PROFILE=profile)
        left.append(found["sizing"]["free"] - float(sources(found)["memory fraction"][0]) * 80 * 2**30)

    assert left[0] < 2 * 394 * 2**20 <= left[1]


@pytest.mark.parametrize(
    ("image", "gpus", "model", "env", "message"),
    [
        ("a100-half", A100, "r1-70b", {}, "each GPU would have to hold 131.4 GiB of weights"),
        ("a100-fp8", f"8*{A100}", "r1", {}, "are missing"),
        ("a100-half", A100, "r1-32b", {"LAUNCH_MAX_MODEL_LEN": "131072"}, "Set LAUNCH_MAX_MODEL_LEN="),
        ("v100-half", "NVIDIA V100:70:16", "r1-7b", {"LAUNCH_MAX_MODEL_LEN": "8192"}, "are missing"),
    ],
)
def test_what_does_not_fit_is_refused_before_load(
    dry_run: Callable[..., dict[str, Any]], image: str, gpus: str, model: str, env: dict[str, str], message: str
) -> None:
    """R7: with the figures and what to type; LAUNCH_CHECKS=warn starts what an estimate refuses, not what weights alone rule out."""
    found = dry_run(image, gpus, model, **env)
    assert message in found["refusals"]

    warned = dry_run(image, gpus, model, LAUNCH_CHECKS="warn", **env)
    assert (message in warned["refusals"]) is (model == "r1-70b")


def test_fp8_weights_and_cache_are_counted(dry_run: Callable[..., dict[str, Any]]) -> None:
    """`--quantization fp8 --kv-cache-dtype fp8`: 8.1 GiB of weights, and twice the tokens."""
    plain = dry_run("h200-fp8", H200, "r1-7b")["sizing"]["fit"]
    small = dry_run("h200-fp8", H200, "r1-7b", "--quantization", "fp8", "--kv-cache-dtype", "fp8")["sizing"]["fit"]

    assert small["stages"][0]["weights"] / 2**30 == pytest.approx(8.1, abs=0.1)
    assert small["tokens"] > 2 * plain["tokens"]


def test_a_model_of_the_hub_is_planned_before_it_is_fetched(dry_run: Callable[..., dict[str, Any]]) -> None:
    """The catalog's models are known by their hub id; of others it is said that nothing is known yet."""
    known = dry_run("h200-fp8", H200, "r1-7b", LAUNCH_MODEL="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")
    other = dry_run("h200-fp8", H200, "r1-7b", LAUNCH_MODEL="someone/else")

    assert known["sizing"]["fit"]["stages"][0]["weights"] == 65_527_752_704
    assert other["sizing"]["fit"] is None
    assert "config.json says too little" in other["sizing"]["unknown"]


def test_an_unknown_architecture_is_counted_by_its_files(dry_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The headers of the files count where config.json's model_type is not one whose tensors are known."""
    folder = small_model(tmp_path / "other", {**CATALOG.models["r1-7b"].config, "model_type": "other"})

    found = dry_run("h200-fp8", H200, "r1-7b", LAUNCH_MODEL=str(folder))

    assert found["sizing"]["fit"]["stages"][0]["weights"] == 4 * 4 * 2


def test_only_the_gpus_that_are_taken_count(dry_run: Callable[..., dict[str, Any]]) -> None:
    """A smaller GPU beside the one that is used changes nothing; two copies side by side take two GPUs, and not four."""
    one = dry_run("h200-fp8", f"{H200},NVIDIA H100:90:80", "r1-7b", LAUNCH_TP="1")
    two = dry_run("h200-fp8", f"4*{H200}", "r1-7b", "--data-parallel-size", "2")

    assert one["sizing"]["fit"]["budget"] == int(141 * 2**30 * 0.92)
    assert (two["tp"], two["copies"]) == (2, 2)
    assert any("4 x NVIDIA H200" in check["text"] for check in two["checks"])


@pytest.mark.parametrize(
    ("used", "words", "message"),
    [
        ("140", [], "are missing"),
        ("60", ["--gpu-memory-utilization", "0.9"], "of one can be had: something else runs there"),
    ],
)
def test_a_gpu_that_is_taken(
    dry_run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, used: str, words: list[str], message: str
) -> None:
    """Too little of a GPU is free, for the model or for the share that was asked for."""
    monkeypatch.setenv("STUB_USED_GIB", used)

    assert message in dry_run("h200-fp8", H200, "r1-7b", *words)["refusals"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantization", "bitsandbytes"], "changes what the weights take"),
        (["--cpu-offload-gb", "40"], "keeps a part of the weights elsewhere"),
        (["--kv-cache-memory-bytes", "4G"], "--kv-cache-memory-bytes sets the cache's size by itself"),
        (["--num-gpu-blocks-override", "512"], "--num-gpu-blocks-override sets the cache's size by itself"),
        (["--gpu-memory-utilization", "nan"], "is no share of a GPU's memory"),
    ],
)
def test_what_cannot_be_counted_is_left_to_the_engine(dry_run: Callable[..., dict[str, Any]], words: list[str], message: str) -> None:
    """Flags that change what a GPU holds in ways that are not counted: no refusal for memory, and it is said why."""
    found = dry_run("a100-half", "NVIDIA A100:80:40", "r1-32b", *words)

    assert message in found["sizing"]["unknown"]
    assert found["refusals"] == ""


def test_the_context_is_left_to_vllm_in_its_own_word(dry_run: Callable[..., dict[str, Any]]) -> None:
    """`auto` is what fits, as it is when nothing is given."""
    assert dry_run("h200-fp8", H200, "r1-7b", "--max-model-len", "auto")["command"] == dry_run("h200-fp8", H200, "r1-7b")["command"]


@pytest.mark.parametrize(
    ("image", "gpus", "settings", "method"),
    [
        ("h200-fp8", H200, {}, "fork"),
        ("h200-fp8", f"2*{H200}", {}, None),
        ("h200-fp8", f"2*{H200}", {"LAUNCH_TP": "1"}, "fork"),
        ("h200-fp8", H200, {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, None),
        ("a100-half", "NVIDIA A100:80:80", {}, None),
    ],
)
def test_the_core_is_a_fork_where_that_was_seen_to_work(
    dry_run: Callable[..., dict[str, Any]], image: str, gpus: str, settings: dict[str, str], method: str | None
) -> None:
    """On one GPU, by a release whose row says so, unless the user has chosen."""
    assert dry_run(image, gpus, "r1-7b", **settings)["environment"].get("VLLM_WORKER_MULTIPROC_METHOD") == method


def test_r1_with_data_parallel_attention_on_vllm(dry_run: Callable[..., dict[str, Any]]) -> None:
    """Eight copies share the experts: each GPU holds 95.8 GiB, and they fit eight H200."""
    found = dry_run("h200-fp8", f"8*{H200}", "r1", "--data-parallel-size", "8", "--enable-expert-parallel")

    assert (found["tp"], found["copies"], found["refusals"]) == (1, 8, "")
    assert found["sizing"]["fit"]["stages"][0]["weights"] / 2**30 == pytest.approx(95.8, abs=0.1)


def test_steps_are_read_as_the_engine_writes_them(dry_run: Callable[..., dict[str, Any]]) -> None:
    """`8k` tokens a step are 8,000."""
    plain = dry_run("h200-fp8", H200, "r1-7b", "--max-num-batched-tokens", "16000")["sizing"]["fit"]

    assert dry_run("h200-fp8", H200, "r1-7b", "--max-num-batched-tokens", "16k")["sizing"]["fit"] == plain


@pytest.mark.parametrize(("words", "refused"), [([], True), (["--hf-overrides", '{"rope_scaling":{"factor":4}}'], False)])
def test_a_context_longer_than_the_models(dry_run: Callable[..., dict[str, Any]], words: list[str], refused: bool) -> None:
    """It is refused by the model's own, unless the model is stretched on purpose."""
    found = dry_run("h200-fp8", H200, "r1-7b", *words, LAUNCH_MAX_MODEL_LEN="200000")

    assert ("and the model has 131,072" in found["refusals"]) is refused
    assert "--max-model-len" in found["command"]


def test_a_cache_for_next_to_nothing_is_refused(dry_run: Callable[..., dict[str, Any]]) -> None:
    """Weights that just fit leave a cache of some hundred tokens: the start is refused, with what it holds."""
    found = dry_run("a100-half", A100, "r1-32b", "--gpu-memory-utilization", "0.781875")

    assert 0 < found["sizing"]["fit"]["tokens"] < 1024
    assert "a context of 131,072 tokens is wanted" in found["refusals"]


def test_nodes_of_native_clusters_do_not_choose_for_themselves(dry_run: Callable[..., dict[str, Any]]) -> None:
    """Each node has the whole command line, and a little more memory on one would make another: nothing is chosen there."""
    cluster = {"LAUNCH_ROLE": "head", "LAUNCH_NODES": "2", "LAUNCH_CLUSTER_TOKEN": "t", "LAUNCH_EXECUTOR": "native", "LAUNCH_TP": "1"}

    found = dry_run("a100-half", "NVIDIA A100:80:40", "r1-32b", **cluster)

    assert not {"--max-model-len", "--max-num-seqs", "--gpu-memory-utilization"} & set(found["command"])
