"""FlashInfer's attention as compiled into `h200-fp8`, against exact attention, and its time. Needs an H100 or H200, torch, and FlashInfer with these kernels (docs/presets.md)."""

from __future__ import annotations

import json

import pytest
from gpus import figure
from launched import ROOT

torch = pytest.importorskip("torch")
decode = pytest.importorskip("flashinfer.decode")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU here", allow_module_level=True)

SHAPES = json.loads((ROOT / "images/h200-fp8/image.json").read_text())["kernels"]
KV_HEADS, LENGTH, PAGE, LAYERS = 4, 1250, 64, 28
WORKSPACE = 394 << 20  # bytes, as vLLM gives it
SCALE = 0.5  # of keys and values


@pytest.mark.parametrize("sequences", [1, 32, 128])
@pytest.mark.parametrize(("head_dim", "group"), [(row["head_dim"], group) for row in SHAPES for group in row["groups"]])
def test_xqa_is_attention(head_dim: int, group: int, sequences: int) -> None:
    """Each answer is within 8 % of its sequence's largest; those of the built image came within 5. Figures: that, and microseconds a layer in a CUDA graph."""
    torch.manual_seed(0)
    pages = -(-LENGTH // PAGE)
    cache = torch.randn(sequences * pages, 2, KV_HEADS, PAGE, head_dim, device="cuda", dtype=torch.float16).to(torch.float8_e4m3fn)
    queries = torch.randn(sequences, KV_HEADS * group, head_dim, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(sequences * pages, device="cuda", dtype=torch.int32).view(sequences, pages)
    long = [LENGTH, 1, PAGE, PAGE + 1, *(LENGTH - number for number in range(4, sequences))][:sequences]
    lengths = torch.tensor(long, device="cuda", dtype=torch.int32)
    workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device="cuda")
    found = torch.empty_like(queries)

    def attend() -> None:
        decode.trtllm_batch_decode_with_kv_cache(
            queries, cache, workspace, table, lengths, LENGTH, SCALE * head_dim**-0.5, SCALE, out=found, kv_layout="HND", backend="xqa"
        )

    attend()
    worst = 0.0
    for sequence, length in enumerate(long):  # one by one: exact keys and values of all are large
        keys, values = SCALE * cache[table[sequence].long()].float().permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
        asked = queries[sequence].float().view(KV_HEADS, group, head_dim)
        exact = ((asked @ keys.transpose(1, 2)) * head_dim**-0.5).softmax(-1) @ values
        wrong = (exact.flatten(0, 1) - found[sequence].float()).abs().max().item()
        worst = max(worst, wrong / exact.abs().max().item())
    figure(
        f"xqa {head_dim}:{group}, {sequences} sequences: the largest difference to exact attention, of the largest answer", round(worst, 3)
    )
    assert worst < 0.08
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAYERS):
            attend()
    graph.replay()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(10):
        graph.replay()
    after.record()
    torch.cuda.synchronize()
    figure(f"xqa {head_dim}:{group}, {sequences} sequences: microseconds a layer", round(before.elapsed_time(after) * 100 / LAYERS, 1))
