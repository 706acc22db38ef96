"""Device code in files: which GPUs the CUDA code inside a library or a cubin was compiled for.

A CUDA library carries fat binaries, about one for each source file: a 16-byte header, then pieces of code, each with a header
that names its kind (PTX or SASS), its architecture and its size. Those headers are readable even where the code is
compressed, so nothing is unpacked. The layout is that of `fatBinaryHeader` in CUDA's `fatbinary_section.h` and of what
`cuobjdump` prints; a test compares the two. Standard library only: this also runs inside builds.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

FATBIN = struct.pack("<I", 0xBA55ED50)
FATBIN_HEADER = struct.Struct("<IHHQ")  # magic, version, size of this header, bytes that follow
CODE_HEADER = struct.Struct("<HHIQ12xI")  # kind, version, size of this header, bytes of code, …, architecture
KINDS = {1: "ptx", 2: "sass"}
LEAST_CODE_HEADER = 64
EMPTY_PTX = 512  # bytes; nvcc's device link leaves a PTX module without kernels for its oldest architecture in many libraries
KERNEL = b"entry"  # the directive that begins one. LZ4 leaves it readable; zstd does not, and then a doubt counts as empty
ELF = b"\x7fELF\x02\x01"
ELF_CUDA = struct.pack("<H", 190)
ELF_HEADER = 64
NEW_CUDA_ABI = 8  # from this ABI version on the architecture stands in the second byte of the ELF flags

Data = mmap.mmap | bytes | bytearray


class Code(NamedTuple):
    """One piece of device code: `kind` is sass or ptx, `arch` a compute capability, then its range of bytes in the file."""

    kind: str
    arch: int
    start: int
    size: int

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of this compute capability can load it: SASS upwards within a major version, PTX upwards."""
        return self.arch <= capability and (self.kind == "ptx" or self.arch // 10 == capability // 10)


class Survey(NamedTuple):
    """The device code of a file: pieces by kind and architecture, fat binaries, and how many of these each capability can use."""

    pieces: dict[str, dict[int, int]]
    fat_binaries: int
    usable: dict[int, int]

    def __str__(self) -> str:
        """SASS for 75 80 90, PTX for 90."""
        return ", ".join(f"{kind.upper()} for {' '.join(map(str, archs))}" for kind, archs in self.pieces.items())


def fat_binaries(data: Data) -> Iterator[list[Code]]:
    """The code of each fat binary in a file, in order; a bare cubin, as some libraries embed them, counts as one."""
    done = 0
    for start, end in _containers(data):
        yield from _cubins(data, done, start)
        codes, at = [], start + FATBIN_HEADER.size
        while at + LEAST_CODE_HEADER <= end:
            kind, _, header, size, arch = CODE_HEADER.unpack_from(data, at)
            if kind not in KINDS or header < LEAST_CODE_HEADER or at + header + size > end:
                break
            codes.append(Code(KINDS[kind], arch, at + header, size))
            at += header + size
        yield codes
        done = end
    yield from _cubins(data, done, len(data))


def _containers(data: Data) -> Iterator[tuple[int, int]]:
    """Where fat binaries begin and end. The magic number alone may be chance: version and sizes must fit as well."""
    at = data.find(FATBIN)
    while at >= 0:
        end = at + len(FATBIN)
        if at + FATBIN_HEADER.size <= len(data):
            _, version, header, size = FATBIN_HEADER.unpack_from(data, at)
            if version == 1 and header == FATBIN_HEADER.size and at + header + size <= len(data):
                end = at + header + size
                yield at, end
        at = data.find(FATBIN, end)


def _cubins(data: Data, start: int, end: int) -> Iterator[list[Code]]:
    """ELF files for GPUs between two offsets. Their true sizes are not needed: each reaches to the next one."""
    at = data.find(ELF, start, end)
    while at >= 0:
        after = data.find(ELF, at + len(ELF), end)
        if data[at + 18 : at + 20] == ELF_CUDA and at + ELF_HEADER <= end:
            flags = int.from_bytes(data[at + 48 : at + 52], "little")
            arch = flags >> 8 & 0xFF if data[at + 8] >= NEW_CUDA_ABI else flags & 0xFF
            yield [Code("sass", arch, at, (after if after >= 0 else end) - at)]
        at = after


def survey(data: Data, capabilities: Collection[int]) -> Survey | None:
    """What a file's device code is and which of these compute capabilities can use it; None where there is none."""
    pieces: dict[str, Counter[int]] = {"sass": Counter(), "ptx": Counter(), "blanked": Counter()}
    total, usable = 0, dict.fromkeys(sorted(capabilities), 0)
    for codes in fat_binaries(data):
        there = [code for code in codes if _is_there(data, code)]
        for code in codes:
            pieces[code.kind if code in there else "blanked"][code.arch] += 1
        real = [code for code in there if not _is_empty(data, code)]
        total += 1
        for capability in usable:
            usable[capability] += any(code.runs_on(capability) for code in real)
    if not total:
        return None
    return Survey({kind: dict(sorted(archs.items())) for kind, archs in pieces.items() if archs}, total, usable)


def _is_there(data: Data, code: Code) -> bool:
    """Whether a piece was not blanked: code, compressed or not, never begins with 64 zero bytes."""
    return any(data[code.start : code.start + min(code.size, 64)])


def _is_empty(data: Data, code: Code) -> bool:
    """Whether a piece is a PTX module without kernels, which would make a library look as if it ran on every GPU."""
    return code.kind == "ptx" and code.size <= EMPTY_PTX and KERNEL not in data[code.start : code.start + code.size]


def blank(file: Path, capabilities: Collection[int]) -> int:
    """Blank a file in place, as `blanked` does. Returns bytes."""
    with opened(file, write=True) as data:
        return blanked(data, capabilities)


def blanked(data: mmap.mmap | bytearray, capabilities: Collection[int]) -> int:
    """Overwrite with zeros what GPUs of these compute capabilities would never load from fat binaries. Returns bytes.

    Offsets, headers and the length stay, so loading is unchanged and the zeros compress to nothing. The driver takes
    the newest SASS that runs on the GPU, or else the newest PTX: those stay, for each capability.
    """
    zeroed = 0
    for start, end in list(_containers(data)):
        for codes in fat_binaries(bytes(data[start:end])):
            kept = [_loaded(codes, capability) for capability in capabilities]
            for code in (code for code in codes if code not in kept):
                at = start + code.start
                data[at : at + code.size] = bytes(code.size)
                zeroed += code.size
    return zeroed


def _loaded(codes: list[Code], capability: int) -> Code | None:
    """The piece that the driver would take from a fat binary for a GPU."""
    return max((code for code in codes if code.runs_on(capability)), key=lambda code: (code.kind == "sass", code.arch), default=None)


@contextmanager
def opened(file: Path, *, write: bool = False) -> Iterator[mmap.mmap]:
    """A file that is not empty, mapped into memory. Raises OSError."""
    with (
        file.open("r+b" if write else "rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ) as data,
    ):
        yield data
