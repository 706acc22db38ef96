"""How weights are read, by where they lie: over a network they are read ahead, all at once, since an engine alone waits for each page.

vLLM reads ahead by itself on NFS, from 0.25.1 on Lustre too, where the weights fit into memory (its weight_utils.py); SGLang only when asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from launcher.engines.common import has_flag
from launcher.facts import ImageFacts
from launcher.flags import Snapshot

NETWORK = re.compile(r"nfs4?|lustre|ceph|cifs|smb3|gpfs|beegfs|wekafs|fuse\.(?!fuse-overlayfs|lxcfs).+")
AHEAD: Mapping[str, tuple[str, str | bool]] = {  # the flag of each engine that asks for it
    "vllm": ("safetensors-load-strategy", "prefetch"),
    "sglang": ("weight-loader-prefetch-checkpoints", True),
}
SHARE = 0.9  # of the memory that is free, vLLM's own limit
CHOSEN = ("load-format", "safetensors-load-strategy", "weight-loader-prefetch-checkpoints", "model-loader-extra-config")


def choose(
    facts: ImageFacts, folder: str, words: Sequence[str], known: Snapshot | None, free: Callable[[], int]
) -> tuple[ImageFacts, tuple[str, ...]]:
    """The image's flags for weights in `folder`, with a note where that is on a network. `words` are the user's flags, `free` gives bytes of memory."""
    kind = filesystem(folder) if folder else ""
    if not NETWORK.fullmatch(kind) or any(has_flag(words, flag) for flag in CHOSEN):
        return facts, ()
    flag, value = AHEAD.get(facts.engine, ("", ""))
    where = f"the weights lie on a network ({kind})"
    if not known or not known.find(f"--{flag}"):
        return facts, (f"{where}, and this release does not read ahead: a copy on a local disk loads faster",)
    size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".safetensors"))
    if not 0 < size < SHARE * free():
        return facts, (f"{where}, and do not fit into free memory, to be read ahead: a copy on a local disk loads faster",)
    return facts._replace(args={**facts.args, flag: value}), (f"{where}: they are read ahead (--{flag})",)


def filesystem(folder: str, mounts: str = "/proc/self/mounts") -> str:
    """The type of the file system that a folder is on, as the kernel names it; "" where that cannot be told. Format: proc_pid_mounts(5)."""
    path = os.path.join(os.path.realpath(folder), "")
    found = ("", "")
    try:
        with open(mounts, encoding="utf-8", errors="replace") as file:
            for line in file:
                _, point, kind, *_ = line.split(" ")
                point = os.path.join(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point), "")
                if path.startswith(point) and len(point) >= len(found[0]):  # of two in one place the later one is on top
                    found = (point, kind)
    except (OSError, ValueError):
        return ""
    return found[1]
