"""Where the engine keeps what it compiles: a folder for each release, GPU and model, so that none takes another's and old ones can be removed.

What the libraries find there they check themselves; the folder keeps apart what they do not tell apart, and says what may go.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launcher.hardware import Gpu

# Of Triton, torch (vLLM puts its own place over it), FlashInfer, TileLang and the driver. vLLM keeps DeepGEMM's below its own, SGLang too.
COMMON = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}
MARK = "started.json"  # what the last start here took, and with which command
LONGEST = 80  # characters of a name: 255 bytes at most, where each takes three


class Cache(NamedTuple):
    """A folder, what is known of it, and the variables that lead there; those that the user has set are left alone, and listed in `own`.

    `line` is the engine's command without its address.
    """

    folder: str
    line: Sequence[str]
    state: str
    variables: Mapping[str, str]
    own: tuple[str, ...]

    @property
    def shown(self) -> str:
        """For people."""
        own = f"; not for {', '.join(self.own)}, which you have set" if self.own else ""
        return f"{self.folder} ({self.state}{own})"


def plan(variable: str, release: str, gpus: Sequence[Gpu], model: str, *, line: Sequence[str], env: Mapping[str, str]) -> Cache:
    """The place for this release, GPU and model. `variable` is the engine's own, if it has one."""
    gpu = f"{gpus[0].name}-{gpus[0].capability}" if gpus else "cpu"
    root = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(root, "engineroom", *map(_name, (release, gpu, model)))
    wanted = {**({variable: "engine"} if variable else {}), **COMMON}
    return Cache(
        folder=folder,
        line=line,
        state=_state(folder, line),
        variables={name: os.path.join(folder, part) for name, part in wanted.items() if name not in env},
        own=tuple(name for name in wanted if name in env),
    )


def started(cache: Cache, seconds: float) -> None:
    """Note that a start has come to its first token. A folder that cannot be written is no reason to end."""
    with contextlib.suppress(OSError):
        os.makedirs(cache.folder, exist_ok=True)
        part = os.path.join(cache.folder, f"{MARK}.{os.getpid()}")
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"seconds": seconds, "command": list(cache.line)}, file)
        os.replace(part, os.path.join(cache.folder, MARK))


def _state(folder: str, line: Sequence[str]) -> str:
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as file:
            last = json.load(file)
        took = f"the last start took {float(last['seconds']):g} s"
        return f"warm: {took}" if last["command"] == list(line) else f"warm in part: {took}, with other flags"
    except (OSError, ValueError, LookupError, TypeError):
        return "cold: no start has come to an end here"


def _name(text: str) -> str:
    """A text as one folder's name, a hub id as the hub's own cache spells it. The end of a long one tells it from others."""
    return re.sub(r"[^\w.-]", "-", text.replace("/", "--"))[-LONGEST:].strip("-.") or "none"
