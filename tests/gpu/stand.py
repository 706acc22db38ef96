"""A GPU with one engine on it at a time. Tests share engines, since one takes a minute to start: who asks for the one that runs gets it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

from gpus import READY, REHEARSAL, figure, is_freed, keep, without_weights
from launched import ROOT, Launched

GIB = 2**30
SEVEN = {"model": "7b", "LAUNCH_ARG_LOAD_FORMAT": "dummy"}
DEMO = {"model": "demo", "LAUNCH_ARG_REASONING_PARSER": "deepseek_r1", "LAUNCH_ARG_ENFORCE_EAGER": "true", "LAUNCH_PROBE_SECONDS": "3"}
SETTINGS = {  # fractions of the GPU, tokens a step and requests differ as well: the plan counts with all of them
    "7b bf16": SEVEN,
    "7b fp8": {
        **SEVEN, "LAUNCH_ARG_QUANTIZATION": "fp8", "LAUNCH_ARG_ENFORCE_EAGER": "true", "LAUNCH_ARG_MAX_NUM_BATCHED_TOKENS": "4096",
        "LAUNCH_MAX_SEQS": "256",
    },
    "7b fp8, fp8 cache": {
        **SEVEN, "LAUNCH_ARG_QUANTIZATION": "fp8", "LAUNCH_ARG_KV_CACHE_DTYPE": "fp8", "LAUNCH_ARG_ENFORCE_EAGER": "true",
        "LAUNCH_ARG_MAX_NUM_BATCHED_TOKENS": "16384", "LAUNCH_ARG_GPU_MEMORY_UTILIZATION": "0.5", "LAUNCH_MAX_MODEL_LEN": "32768",
    },
    "demo bf16": DEMO,
    "demo fp16": {**DEMO, "LAUNCH_ARG_DTYPE": "half"},
    "demo fp8": {**DEMO, "LAUNCH_ARG_QUANTIZATION": "fp8"},
    "demo fp8, fp8 cache": {**DEMO, "LAUNCH_ARG_QUANTIZATION": "fp8", "LAUNCH_ARG_KV_CACHE_DTYPE": "fp8"},
}  # fmt: skip
VLLM = f"""#!{sys.executable}
import sys

if __name__ == "__main__":  # its processes import this file once more
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
"""


class Stand:
    """The GPU and what tests on it share: the engine that runs, seconds of every start, shares of right answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "7b").mkdir()
        self.models = {"7b": without_weights(folder / "7b"), "demo": ROOT / "models/demo-r1"}
        self.site = _site(folder)
        self.here = Launched("stand", folder / "stand")
        self.engine: Launched | None = None
        self.running: tuple[str, Path | None] | None = None
        self.starts: list[tuple[str, float]] = []
        self.broken: set[tuple[str, Path | None]] = set()
        self.right: dict[str, float] = {}
        _programs(folder)

    def settings(self, name: str, site: Path | None = None) -> dict[str, str]:
        """The environment of a launcher: the image's facts without its own flags, so that each setting is what its name says."""
        chosen, cache = dict(SETTINGS[name]), self.folder / "cache"
        programs = ROOT / "tests/stubs" if REHEARSAL else self.folder / "bin"
        path = [str(part) for part in (ROOT / "tests/stubs" if REHEARSAL else site or self.site, os.environ.get("PYTHONPATH")) if part]
        return {
            "LAUNCH_MODEL": str(self.models[chosen.pop("model")]), "LAUNCH_MODEL_NAME": "m", "LAUNCH_IMAGE": str(self.folder / "image.json"),
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(path), "TMPDIR": str(self.folder), "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
            "XDG_CACHE_HOME": str(cache), "VLLM_CACHE_ROOT": str(cache / "vllm"), "TRITON_CACHE_DIR": str(cache / "triton"), **chosen,
            **({"STUB_GPUS": "NVIDIA H200:90:140", "STUB_CORE": "1", "STUB_LINES": "60"} if REHEARSAL else {}),
        }  # fmt: skip

    def serve(self, name: str, site: Path | None = None) -> Launched:
        """The engine with these settings, ready: the one that runs, or a new one in its place. `site` is another folder with vLLM."""
        if self.engine and self.running == (name, site) and self.engine.process and self.engine.process.poll() is None:
            return self.engine
        self.end()
        assert (name, site) not in self.broken, "this engine did not start before, and is not tried again"
        self.broken.add((name, site))
        number = len(self.starts) + len(self.broken)
        self.running, self.engine = (name, site), Launched(f"gpu-{number}", self.folder / f"{number}", _free_port())
        log = self.folder / "stub.log"
        self.engine.launch(
            **self.settings(name, site), LAUNCH_PORT=str(self.engine.port), **({"STUB_LOG": str(log)} if log.exists() else {})
        )
        self.starts.append((name, self.engine.wait_for("ready after", READY)))
        self.broken.remove(self.running)
        figure(f"{name}: ready, s", round(self.starts[-1][1], 1))
        for phases in re.findall(r"\[launch\] started +(.+)", self.engine.said()):
            figure(f"{name}: phases", phases)
        return self.engine

    def end(self) -> None:
        """No engine any more, and an empty GPU."""
        if self.engine and self.running:
            self.engine.close()
            keep(self.engine.log, f"{self.engine.name} {self.running[0]}".replace(",", "").replace(" ", "-"))
            self.engine = None
        is_freed()

    def ended(self, seconds: float) -> tuple[int, str]:
        """The status and the output of an engine that ends within so many seconds; then the GPU is empty."""
        assert self.engine
        code, said = self.engine.exit_code(seconds), self.engine.said()
        self.end()
        return code, said

    def plan(self, name: str) -> dict[str, Any]:
        """What `launch serve --dry-run --json` says of the memory before this engine starts."""
        self.end()
        printed = self.here.ask("serve", "--dry-run", "--json", **self.settings(name))
        assert printed.returncode == 0, printed.stdout + printed.stderr
        fit = json.loads(printed.stdout)["sizing"]["fit"]
        found = {"weights": fit["stages"][0]["weights"] / GIB, "cache": fit["stages"][0]["free"] / GIB, "tokens": fit["tokens"]}
        if REHEARSAL:
            lines = ("Model loading took {weights:.2f} GiB and 1.2 seconds", "Available KV cache memory: {cache:.2f} GiB")
            (self.folder / "stub.log").write_text("\n".join((*lines, "GPU KV cache size: {tokens:,} tokens")).format(**found))
        return found


def _site(folder: Path) -> Path | None:
    """The folder with vLLM that ENGINEROOM_ENGINE names, unpacked where it has wheels; None for what is installed."""
    given = os.environ.get("ENGINEROOM_ENGINE")
    wheels = sorted(Path(given).glob("*.whl")) if given else []
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site" if wheels else Path(given).resolve() if given else None


def _programs(folder: Path) -> None:
    """What an image has and a folder of packages lacks: the program `vllm`, and what the image and its engine's flags are."""
    (folder / "bin").mkdir()
    (folder / "bin/vllm").write_text(VLLM)
    (folder / "bin/vllm").chmod(0o755)
    facts = json.loads((ROOT / "images/h200-fp8/image.json").read_text())
    (folder / "image.json").write_text(json.dumps({**facts, "args": {}}))
    (folder / "flags.json").write_text((ROOT / f"images/flags/{facts['release']}.json").read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def below(pid: int) -> dict[int, str]:
    """Living processes below this one with their command lines. Not by their environments: vLLM writes its titles over them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    family = {pid}
    while grown := {child for child, (parent, _) in parents.items() if parent in family} - family:
        family |= grown
    return {child: parents[child][1] for child in family - {pid}}


def server_of(engine: Launched) -> int:
    """The engine as the launcher started it."""
    assert engine.process
    return next(pid for pid, line in below(engine.process.pid).items() if "vllm serve" in line)


def core_of(engine: Launched) -> int:
    """The process in which vLLM keeps the GPU, by the title that it gives itself."""
    return next(pid for pid, line in below(server_of(engine)).items() if "VLLM::EngineCore" in line)
