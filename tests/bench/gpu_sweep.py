"""One GPU, one configuration of the engine after another: start, load, stop. `make sweep-gpu` runs it where vLLM and a GPU are.

Each row of a TOML file is started by the launcher, without a container, on shapes of R1-Distill-Qwen-7B with made-up weights, and loaded
by vLLM's own `vllm bench serve`: 1000 tokens in, 500 out, distinct prompts, greedy. Every fact is a JSON line as soon as it is known;
`gpu_sweep_report.py` makes the table and the plot of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import shapes

ROOT = Path(__file__).parents[2]
NAME = "shapes"  # what the API calls the model
LAUNCH = "from launcher.cli import main; main()"
REQUESTS = {1: 3, 32: 64, 128: 256}  # requests by how many at once
SAMPLED = ("--temperature", "0.6", "--top-p", "0.95")  # as the model's authors recommend
READY_SECONDS = 240
LOAD_SECONDS = 90
STOP_SECONDS = 20
FEWEST_SECONDS = 60  # with less left no configuration is begun

# What vLLM's log says, and when: moments since the start, and values.
PHASES = {
    "engine": r"Initializing a V1 LLM engine",
    "weights": r"Model loading took",
    "compiled": r"torch\.compile took",
    "cache": r"GPU KV cache size",
    "graphs": r"Graph capturing finished",
    "warm": r"init engine \(",
    "ready": r"\[launch\] ready after",
}
VALUES = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "cache_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "cache_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "graphs_gib": r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB",
    "compile_s": r"torch\.compile took ([\d.]+) s",
    "attention": r"Using (\S+) attention backend",
    "attention_version": r"Using FlashAttention version (\d)",
    "kernel": r"Selected (\S+) for",
    "experts": r"Using (.+) (?:MoE|Fp8 MoE) backend",
}


class Row(NamedTuple):
    """A configuration: flags of `launch serve`, environment, and whether it is loaded with sampling as well."""

    name: str
    why: str
    args: str = ""
    env: dict[str, str] = {}  # noqa: RUF012 - never changed
    sampled: bool = False
    yardstick: bool = False


def rows(file: Path) -> dict[str, Row]:
    """All configurations of a TOML file by name, in its order. Raises TypeError for a key that is none."""
    return {name: Row(name, **row) for name, row in tomllib.loads(file.read_text()).items()}


class Server:
    """The launcher and its engine; `said` is the log so far, each line with its moment in seconds."""

    def __init__(self, row: Row, image: Path, model: Path, log: Path) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT / "entrypoints"), os.environ.get("PYTHONPATH"))))
        settings = {"LAUNCH_IMAGE": str(image.resolve()), "LAUNCH_MODEL": str(model), "LAUNCH_MODEL_NAME": NAME, "PYTHONPATH": path}
        self.command = ["serve", "--load-format", "dummy", *shlex.split(row.args)]
        self.said: list[tuple[float, str]] = []
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *self.command],
            env={**os.environ, **settings, **row.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self.reader.start()

    def _read(self, log: Path) -> None:
        assert self.process.stdout
        with log.open("w") as file:
            for line in self.process.stdout:
                moment = round(time.monotonic() - self.began, 2)
                self.said.append((moment, line.rstrip()))
                file.write(f"{moment:8.2f} {line}")
                file.flush()

    def phases(self) -> dict[str, float]:
        """Seconds from the launcher's start to the first line of each phase."""
        found = {name: next((moment for moment, line in self.said if re.search(words, line)), None) for name, words in PHASES.items()}
        return {name: moment for name, moment in found.items() if moment is not None}

    def values(self) -> dict[str, float | str]:
        """What the engine says of its memory and its kernels."""
        text = "\n".join(line for _, line in self.said)
        found = {name: match[1] for name, words in VALUES.items() if (match := re.search(words, text))}
        return {name: float(value.replace(",", "")) if re.fullmatch(r"[\d.,]+", value) else value for name, value in found.items()}

    def is_ready(self, seconds: float) -> bool:
        """Wait for the launcher's word, which means that a token came out."""
        deadline = time.monotonic() + seconds
        while "ready" not in self.phases():
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def stop(self) -> int:
        """Ask once, then insist; gives the exit status when the GPU is free again."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS / 2)
                break
        deadline = time.monotonic() + STOP_SECONDS
        while int(gpu("memory.used") or 0) > 1000 and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.process.wait()


def gpu(what: str) -> str:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Load:
    """vLLM's load generator, imported once for all configurations."""

    def __init__(self, model: Path) -> None:
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.parser = FlexibleArgumentParser()
        serve.add_cli_args(self.parser)
        self.bench, self.model, self.seed = serve.main_async, model, 0

    def run(self, at_once: int, requests: int, out: int, *sampling: str) -> dict[str, Any]:
        """A closed loop of so many requests at once; prompts differ from all before."""
        self.seed += 1
        arguments = ["--backend", "openai", "--endpoint", "/v1/completions", "--model", NAME, "--tokenizer", str(self.model)]
        arguments += ["--dataset-name", "random", "--random-input-len", "1000", "--random-output-len", str(out), "--ignore-eos"]
        arguments += ["--num-prompts", str(requests), "--max-concurrency", str(at_once), "--seed", str(self.seed), "--disable-tqdm"]
        arguments += ["--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,95,99", *(sampling or ("--temperature", "0"))]
        with contextlib.redirect_stdout(sys.stderr):
            found = asyncio.run(asyncio.wait_for(self.bench(self.parser.parse_args(arguments)), LOAD_SECONDS))
        kept = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "output_throughput")
        kept += tuple(f"{kind}_{metric}_ms" for metric in ("ttft", "tpot", "e2el") for kind in ("mean", "p50", "p95", "p99"))
        return {
            "concurrency": at_once,
            "sampled": bool(sampling),
            **{name: round(float(found[name]), 3) for name in kept},
        }


def measure(row: Row, server: Server, generator: Load) -> Iterator[dict[str, Any]]:
    """Load a ready server; the first load only warms up."""
    generator.run(32, 32, 16)
    for at_once, requests in REQUESTS.items():
        yield generator.run(at_once, requests, 500)
    if row.sampled:
        generator.run(32, 32, 16, *SAMPLED)
        yield generator.run(128, 256, 500, *SAMPLED)


def sweep(chosen: list[Row], image: Path, model: Path, out: Path, seconds: float) -> None:
    """One row after another until the time is over; `out` is a folder for facts.jsonl and a log each."""
    end, generator = time.monotonic() + seconds, None
    out.mkdir(parents=True, exist_ok=True)

    def fact(row: str, **values: Any) -> None:
        line = json.dumps({"row": row, "at": round(seconds - (end - time.monotonic()), 1), **values})
        print(line, flush=True)
        with (out / "facts.jsonl").open("a") as file:
            file.write(f"{line}\n")

    fact("", gpu=gpu("name,driver_version"), rows=[row.name for row in chosen])
    for row in chosen:
        left = end - time.monotonic()
        if left < FEWEST_SECONDS:
            fact(row.name, left_out=f"{left:.0f} s left")
            continue
        server = Server(row, image, model, out / f"{row.name}.log")
        try:
            generator = generator or Load(model)  # while the first engine starts
            ready = server.is_ready(min(READY_SECONDS, end - time.monotonic()))
            fact(row.name, command=shlex.join(server.command), env=row.env, ready=ready, phases=server.phases(), **server.values())
            if ready:
                for found in measure(row, server, generator):
                    fact(row.name, **found)
            else:
                print("\n".join(line for _, line in server.said[-40:]), file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - the next configuration has its turn
            fact(row.name, failed=f"{type(error).__name__}: {error}")
        finally:
            fact(row.name, exit=server.stop())


def main() -> None:
    """Read the command line and sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names of configurations, in the order to run; all unless given")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"), help="the TOML file")
    parser.add_argument("--image", type=Path, default=ROOT / "images/h200-fp8/image.json", help="the image whose launcher settings count")
    parser.add_argument("--model", type=Path, help="a folder with another model's configuration and tokenizer")
    parser.add_argument("--out", type=Path, default=ROOT / "build/sweep", help="folder for facts.jsonl and the logs")
    parser.add_argument("--seconds", type=float, default=3600, help="after these no configuration is begun")
    options = parser.parse_args()
    known = rows(options.config)
    if unknown := [name for name in options.rows if name not in known]:
        parser.error(f"no configuration is called {', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        seven = tomllib.loads((ROOT / "images/models.toml").read_text())["r1-7b"]["config"]
        model = options.model or shapes.write(Path(folder), "Qwen2ForCausalLM", seven)
        sweep([known[name] for name in options.rows or known], options.image, model, options.out, options.seconds)


if __name__ == "__main__":  # the engine's processes import this file again
    main()
