"""Shared libraries: what each needs, and whether the loader would find it. Standard library only: this also runs inside builds.

The layout of ELF files is that of the System V ABI (elf.h); only 64-bit little-endian files are read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import NamedTuple

from engineroom.device_code import Data

HEADER = struct.Struct("<32xQ14xHH")  # offset of the program headers, bytes of one, how many
SEGMENT = struct.Struct("<IIQQQQ")  # type, flags, offset in the file, address, physical address, bytes in the file
PAIR = struct.Struct("<QQ")
LOAD, DYNAMIC = 1, 2
NEEDED, STRINGS, SONAME = 1, 5, 14
# The GPU's driver is the host's: the container runtime mounts it. WSL and vGPU names are the same libraries.
DRIVER = ("libcuda.so.1", "libnvidia-*.so.1", "libnvcuvid.so.1", "libnvoptix.so.1", "libcudadebugger.so.1")


class SharedObject(NamedTuple):
    """The dynamic section of a file: its own name, and the names that it needs."""

    soname: str
    needed: tuple[str, ...]


def read(data: Data) -> SharedObject | None:
    """The dynamic section, or None for a file that has none or is broken."""
    try:
        return _read(data)
    except (struct.error, ValueError, StopIteration):
        return None


def _read(data: Data) -> SharedObject | None:
    offset, size, count = HEADER.unpack_from(data)
    segments = [SEGMENT.unpack_from(data, offset + index * size) for index in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == DYNAMIC), None)
    if dynamic is None:
        return None
    tags = list(PAIR.iter_unpack(data[dynamic[2] : dynamic[2] + dynamic[5] // PAIR.size * PAIR.size]))
    address = dict(tags).get(STRINGS, 0)
    strings = next(at + address - start for kind, _, at, start, _, length in segments if kind == LOAD and start <= address < start + length)

    def texts(wanted: int) -> Iterator[str]:
        for tag, value in tags:
            if tag == wanted:
                yield data[strings + value : data.find(b"\0", strings + value)].decode()

    return SharedObject(next(texts(SONAME), ""), tuple(texts(NEEDED)))


def unresolved(objects: Mapping[str, SharedObject], system: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each file that needs what nothing in the image provides, with the names; names of the driver do not count.

    A Python package may load a library before the one that needs it, and then the loader takes that: so a name is also
    found when any file of `objects` (by path or by its own name) bears it. `system` holds folders that the loader searches.
    """
    names = {os.path.basename(path) for path in objects} | {found.soname for found in objects.values()}
    names |= {name for folder in system if os.path.isdir(folder) for name in os.listdir(folder)}
    for path, found in objects.items():
        missing = [name for name in found.needed if name not in names and not any(fnmatch(name, pattern) for pattern in DRIVER)]
        if missing:
            yield path, missing
