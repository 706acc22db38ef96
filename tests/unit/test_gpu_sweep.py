"""The sweep's configurations: the launcher takes each; its table and its model's tokenizer."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import pytest
from click.testing import CliRunner

from launcher import cli

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/bench"))
import gpu_sweep  # noqa: E402
import gpu_sweep_report  # noqa: E402
import gpus  # noqa: E402

ROWS = {name: row for file in ("gpu_sweep", "gpu_starts") for name, row in gpu_sweep.rows(ROOT / f"tests/bench/{file}.toml").items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpus.without_weights(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_launcher_takes_every_configuration(row: gpu_sweep.Row, model: Path, tmp_path: Path, stub_gpus: Callable[[str], None]) -> None:
    """Its flags are those of the release, and no size is set that the row does not set."""
    facts = json.loads((ROOT / "images/h200-fp8/image.json").read_text())
    (tmp_path / "image.json").write_text(json.dumps({**facts, "args": {}}))
    (tmp_path / "flags.json").write_text((ROOT / f"images/flags/{facts['release']}.json").read_text())
    stub_gpus("NVIDIA H200:90:141")
    env = {"LAUNCH_IMAGE": str(tmp_path / "image.json"), "LAUNCH_MODEL": str(model), "LAUNCH_CHECKS": "warn", **row.env}
    printed = CliRunner().invoke(cli.serve, ["--dry-run", "--json", "--load-format", "dummy", *shlex.split(row.args)], env=env)
    assert printed.exit_code == 0, printed.output
    sizes = {"--max-model-len", "--max-num-seqs", "--gpu-memory-utilization"}
    assert sizes & set(json.loads(printed.output)["command"]) == sizes & set(shlex.split(row.args))


@pytest.mark.parametrize("compiled", [True, False])
def test_kernels_count_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Wheels alone have FlashInfer's sources: the profile then goes without."""
    library = tmp_path / "flashinfer/data/aot/xqa_page_size_64/xqa_page_size_64_head_dim_128_head_group_ratio_7_use_spec_dec_False.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "flashinfer/__init__.py").touch()
    if compiled:
        library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    image = ROOT / "images/h200-fp8/image.json"
    found = gpu_sweep.facts_here(image, tmp_path)

    assert [row["groups"] for row in json.loads(found.read_text())["kernels"]] == [[7] if compiled else []]


def test_each_word_is_one_token(model: Path) -> None:
    """A load generator sends text: whatever tokens it is made of, the server must read as many."""
    found = json.loads((model / "tokenizer.json").read_text())["model"]
    words = list(found["vocab"])
    assert len(words) == json.loads((model / "config.json").read_text())["vocab_size"]
    assert sorted(found["vocab"].values()) == list(range(len(words)))
    merged = {"".join(pair) for pair in found["merges"]}
    assert len(merged) == len(found["merges"]) == len(words) - 256 - 3
    assert all(stem == "Ġ" or stem in merged for stem, _ in found["merges"])
    assert all(letter in ascii_lowercase for _, letter in found["merges"])


def test_table(tmp_path: Path) -> None:
    """Ratios to each yardstick, a load that is missing, one beside a long request, and a configuration that never got ready."""
    facts = tmp_path / "facts.jsonl"
    load = {"sampled": False, "mean_ttft_ms": 30.4, "mean_tpot_ms": 4.666}
    lines = [
        {"row": "guide", "ready": 43.3, "cache_tokens": 2114896.0},
        {"row": "guide", "concurrency": 1, "output_throughput": 75.6, **load},
        {"row": "guide", "concurrency": 128, "output_throughput": 5471, **load},
        {"row": "ours", "ready": 92.1, "cache_tokens": 4416128.0},
        {"row": "ours", "concurrency": 1, "output_throughput": 282.4, **load},
        {"row": "ours", "concurrency": 128, "output_throughput": 1487, "beside": 60000, **load},
        {"row": "broken", "failed": "AssertionError: no 'ready after'"},
    ]
    facts.write_text("\n".join(map(json.dumps, lines)))
    assert gpu_sweep_report.table(gpu_sweep_report.read(facts), ["guide"]).splitlines() == [
        "| configuration | tok/s at 1 | tok/s at 128 | tok/s at 128 beside 60,000 | ÷ guide | TTFT, ms | TPOT, ms | ready, s | cache, tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `guide` | 76 | 5,471 |  | 1.00 / 1.00 | 30 / 30 | 4.67 / 4.67 | 43 | 2,114,896 |",
        "| `ours` | 282 |  | 1,487 | 3.74 / – | 30 / 30 | 4.67 / 4.67 | 92 | 4,416,128 |",
    ]
