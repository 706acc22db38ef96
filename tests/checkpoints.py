"""Model folders made by hand: real files of the real format, as small as can be, or as large as they claim without taking room."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTHS = {"BF16": 2, "F8_E4M3": 1, "F32": 4, "I32": 4, "U8": 1}


def write_shard(path: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> int:
    """A safetensors file of these names, dtypes and shapes, whose values are a hole in the file; its tensors' bytes."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + WIDTHS[dtype]
        for size in shape:
            end = begin + (end - begin) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def small_model(folder: Path, config: Mapping[str, Any] | None = None, shards: int = 1) -> Path:
    """The smallest folder that an engine would load: a configuration, a tokenizer and a tensor in each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        write_shard(folder / "model.safetensors", {"a": ("BF16", [4, 4])})
        return folder
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    total = sum(write_shard(folder / name, {f"a.{name}": ("BF16", [4, 4])}) for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": {f"a.{name}": name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def large_model(folder: Path, config: Mapping[str, Any], shards: int = 163, tensors: int = 564) -> Path:
    """As many files and tensors as DeepSeek-R1 has, 4 GB each by their sizes."""
    small_model(folder, config)
    (folder / "model.safetensors").unlink()
    index, total = {}, 0
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
        rows: dict[str, tuple[str, list[int]]] = {}
        for number in range(tensors // 2):
            rows[f"model.layers.{shard % 61}.mlp.experts.{shard}{number}.gate_proj.weight"] = ("F8_E4M3", [2048, 7168])
            rows[f"model.layers.{shard % 61}.mlp.experts.{shard}{number}.gate_proj.weight_scale_inv"] = ("F32", [16, 56])
        total += write_shard(folder / name, rows)
        index |= dict.fromkeys(rows, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2))
    return folder


def cached_model(home: Path, model: str, commit: str = "0" * 40, **options: Any) -> Path:
    """A complete model in the hub's cache under HF_HOME: files in blobs, links in the snapshot, the commit in refs/main. Gives the snapshot."""
    repository = home / "hub" / f"models--{model.replace('/', '--')}"
    snapshot, blobs = small_model(repository / "snapshots" / commit, **options), repository / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return snapshot
