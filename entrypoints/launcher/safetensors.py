"""Safetensors files, read by their headers alone: what is in them, and whether they are whole.

A file is eight bytes with the header's length (little-endian), the header as JSON, and the tensors' bytes up to the largest end that
the header names; nothing follows. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import re
from typing import NamedTuple

from launcher.errors import Refused

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_HEADER = 100_000_000  # bytes: the format's own limit
LFS_POINTER = b"version https://git-lfs."
AGAIN = "Delete it if it is there, and download it again: `hf download MODEL FILE --local-dir FOLDER`."
PART = re.compile(r"-of-0*(\d{1,9})\.safetensors$")
ENDS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)')


class Tensor(NamedTuple):
    """A tensor without its values; `dtype` as the format spells it: BF16, F16, F32, F8_E4M3, U8, I32 …"""

    name: str
    shape: tuple[int, ...]
    dtype: str


def shards(folder: str) -> list[str]:
    """Paths of the files that make up the model: those of its index, else the single file, else every one that is there.

    Empty when the folder holds none. Raises Refused for an index that cannot be used.
    """
    path = os.path.join(folder, INDEX)
    if os.path.lexists(path):
        return [os.path.join(folder, name) for name in sorted(set(weight_map(path).values()))]
    if os.path.lexists(os.path.join(folder, SINGLE)):
        return [os.path.join(folder, SINGLE)]
    found = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    for name in found:
        if (parts := PART.search(name)) and int(parts[1]) != len(found):
            raise Refused(f"{folder} has {len(found)} of {int(parts[1])} files of weights, and no index of them.\n{AGAIN}")
    return [os.path.join(folder, name) for name in found]


def weight_map(path: str) -> dict[str, str]:
    """Tensor name to file name, as an index file has it. Raises Refused when the file is no such index."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["weight_map"]
    except OSError as error:
        raise Refused(unreadable(path, error)) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Refused(f"{path} is no index of a model ({error or type(error).__name__}).\n{AGAIN}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) and "\0" not in name for name in found.values()):
        raise Refused(f"{path} is no index of a model: its weight_map does not name files.\n{AGAIN}")
    return found


def checked_header(path: str) -> bytes:
    """The header as JSON, of a file whose size is the one that its header gives. Raises Refused that names file and fault."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            header = file.read(length) if length <= min(LARGEST_HEADER, size) else b""
            if start == LFS_POINTER[:8]:
                raise Refused(
                    f"{path} is a git-lfs pointer of {size} bytes and not the weights.\nFetch them in the model's folder: `git lfs pull`."
                )
    except FileNotFoundError:
        raise Refused(f"{path} is missing.\n{AGAIN}") from None
    except OSError as error:
        raise Refused(unreadable(path, error)) from None
    if size < 8 + min(length, LARGEST_HEADER):
        raise Refused(f"{path} is truncated: it has {size} bytes, and its header alone is longer.\n{AGAIN}")
    if not header.startswith(b"{"):
        raise Refused(f"{path} is no safetensors file.\n{AGAIN}")
    # Writers keep the order of the bytes, so that the last end is the largest; to look at all takes ten times as long.
    last = ENDS.search(header, max(header.rfind(b'"data_offsets"'), 0))
    if last and size == 8 + length + int(last[1]):
        return header
    wanted = 8 + length + max(map(int, ENDS.findall(header)), default=0)
    if size < wanted:
        raise Refused(f"{path} is truncated: it has {size} of {wanted} bytes.\n{AGAIN}")
    if size > wanted:
        raise Refused(f"{path} is damaged: it has {size} bytes, and its header accounts for {wanted}.\n{AGAIN}")
    return header


def header(path: str) -> list[Tensor]:
    """What a file holds. Raises Refused that names the file and what is wrong with it."""
    try:
        found = json.loads(checked_header(path))
        tensors = [Tensor(name, tuple(one["shape"]), one["dtype"]) for name, one in found.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Refused(f"{path} is damaged: its header cannot be read.\n{AGAIN}") from None
    for tensor in tensors:
        if type(tensor.dtype) is not str or any(type(size) is not int or size < 0 for size in tensor.shape):
            raise Refused(f"{path} is damaged: its header gives {tensor.name!r} no shape of numbers, or no dtype.\n{AGAIN}")
    return tensors


def in_folder(folder: str) -> list[Tensor]:
    """Every tensor of a model's safetensors files. Raises Refused as `shards` and `header` do."""
    return [tensor for path in shards(folder) for tensor in header(path)]


def unreadable(path: str, error: OSError) -> str:
    """The sentence for a file that is there and cannot be read."""
    return f"{path} cannot be read by user {os.geteuid()}: {error.strerror}.\nOn the host, `chmod -R a+rX` on the model's folder helps."
