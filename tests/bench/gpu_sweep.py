"""One GPU, one configuration of the engine after another: start, load, stop. `make sweep-gpu` runs it where vLLM and a GPU are.

Each row of a TOML file is started by the launcher, without a container, on shapes of a model with made-up weights, and loaded
by vLLM's own `vllm bench serve`: 1000 tokens in, 500 out, distinct prompts, greedy. Every fact is a JSON line as soon as it is known;
`gpu_sweep_report.py` makes the table and the plot of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpus import MODELS, is_freed, without_weights
from launched import ROOT, Launched

CONFIGURATIONS = Path(__file__).with_suffix(".toml")
NAME = "shapes"  # what the API calls the model
REQUESTS = {1: 3, 32: 64, 128: 256}  # requests by how many at once
GREEDY = ("--temperature", "0")
SAMPLED = ("--temperature", "0.6", "--top-p", "0.95")  # as the model's authors recommend
READY_SECONDS = 330  # compiling for single sizes takes minutes
LOAD_SECONDS = 90
STOP_SECONDS = 20
LONG_OUT = 8000  # tokens: more than come while others are loaded
LONG_READ_SECONDS = 8  # until a long prompt is read

STARTED = r"\[launch\] started +[\d.]+ s: (.+)"
VALUES = {  # lines of vLLM's log
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "cache_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "cache_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "graphs_gib": r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB",
    "attention": r"Using (\S+) attention backend",
    "attention_version": r"Using FlashAttention version (\d)",
    "kernel": r"Selected (\S+) for",
    "experts": r"Using (\S+) Fp8 MoE backend",
}


class Row(NamedTuple):
    """A configuration: flags of `launch serve`, environment, and whether it is loaded with sampling as well.

    A yardstick is `vllm serve` without the launcher. With `starts` a row is started so often, each time with what the times before have left in caches, and not loaded.
    """

    name: str
    why: str
    args: str = ""
    env: dict[str, str] = {}  # noqa: RUF012 - never changed
    sampled: bool = False
    yardstick: bool = False
    starts: int = 0


def rows(file: Path) -> dict[str, Row]:
    """All configurations of a TOML file by name, in its order. Raises TypeError for a key that is none."""
    return {name: Row(name, **row) for name, row in tomllib.loads(file.read_text()).items()}


def said(server: Launched) -> dict[str, Any]:
    """What the log says of the start: the launcher's phases in seconds, and the engine's memory and kernels."""
    text = server.said()
    found: dict[str, Any] = {name: match[1] for name, words in VALUES.items() if (match := re.search(words, text))}
    found = {name: float(value.replace(",", "")) if re.fullmatch(r"[\d.,]+", value) else value for name, value in found.items()}
    if phases := re.search(STARTED, text):
        found["phases"] = {name: float(seconds) for name, _, seconds in (part.rpartition(" ") for part in phases[1].split(", "))}
    return found


def stop(server: Launched) -> None:
    """Ask the launcher, which knows all that it has started; then whatever is left. A second or two."""
    if server.process:
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(STOP_SECONDS)
    server.close()


class Load:
    """vLLM's load generator, imported once for all configurations."""

    def __init__(self, model: Path) -> None:
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.parser = FlexibleArgumentParser()
        serve.add_cli_args(self.parser)
        self.bench, self.model, self.seed = serve.main_async, model, 0

    def run(self, at_once: int, requests: int, out: int, *sampling: str, beside: int = 0) -> dict[str, Any]:
        """A closed loop of so many requests at once, and `beside` it a request of so many tokens that is answered all the while."""
        load = self.arguments(1000, at_once, requests, out, *(sampling or GREEDY))
        with contextlib.redirect_stdout(sys.stderr):
            found = asyncio.run(asyncio.wait_for(self.loaded(load, beside), LOAD_SECONDS))
        kept = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "output_throughput")
        kept += tuple(f"{kind}_{metric}_ms" for metric in ("ttft", "tpot", "e2el") for kind in ("mean", "p50", "p95", "p99"))
        told = {"concurrency": at_once, "sampled": bool(sampling), "beside": beside}
        return {**told, **{name: round(float(found[name]), 3) for name in kept}}

    async def loaded(self, load: argparse.Namespace, beside: int) -> dict[str, Any]:
        """What the load generator found. Raises AssertionError where the long request has ended before."""
        if not beside:
            return await self.bench(load)
        long = asyncio.create_task(self.bench(self.arguments(beside, 1, 1, LONG_OUT, *GREEDY, "--ready-check-timeout-sec", "0")))
        try:
            await asyncio.sleep(LONG_READ_SECONDS)
            found = await self.bench(load)
            assert not long.done(), "the request beside has ended before the load"
            return found
        finally:
            long.cancel()
            await asyncio.wait([long])

    def arguments(self, tokens: int, at_once: int, requests: int, out: int, *options: str) -> argparse.Namespace:
        """As `vllm bench serve` takes them; prompts differ from all before."""
        self.seed += 1
        arguments = ["--backend", "openai", "--endpoint", "/v1/completions", "--model", NAME, "--tokenizer", str(self.model)]
        arguments += ["--dataset-name", "random", "--random-input-len", str(tokens), "--random-output-len", str(out), "--ignore-eos"]
        arguments += ["--num-prompts", str(requests), "--max-concurrency", str(at_once), "--seed", str(self.seed), "--disable-tqdm"]
        arguments += ["--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,95,99", *options]
        return self.parser.parse_args(arguments)


def measure(row: Row, generator: Load, beside: int) -> Iterator[dict[str, Any]]:
    """Load a ready server; the first load only warms up. With `beside`, many requests once more beside one of so many tokens."""
    generator.run(32, 32, 16)
    for at_once, requests in REQUESTS.items():
        yield generator.run(at_once, requests, 500)
    if row.sampled:
        generator.run(32, 32, 16, *SAMPLED)
        yield generator.run(128, 256, 500, *SAMPLED)
    for at_once in (32, 128) if beside else ():
        yield generator.run(at_once, REQUESTS[at_once], 500, beside=beside)


def sweep(chosen: list[Row], settings: dict[str, str], model: Path, out: Path, seconds: float, beside: int) -> None:
    """One row after another until the time is over; `out` is a folder for facts.jsonl and a folder with a log each."""
    began, generator, longest = time.monotonic(), None, 0.0
    left = lambda: seconds - (time.monotonic() - began)  # noqa: E731
    out.mkdir(parents=True, exist_ok=True)

    def fact(row: str, **values: Any) -> None:
        line = json.dumps({"row": row, "at": round(seconds - left(), 1), **values})
        print(line, flush=True)
        with (out / "facts.jsonl").open("a") as file:
            file.write(f"{line}\n")

    runs = [(row, number) for row in chosen for number in range(max(row.starts, 1))]
    for row, number in runs:
        before = left()
        if before < longest:
            fact(row.name, left_out=f"{before:.0f} s left, and one has taken {longest:.0f} s")
            continue
        server = Launched(row.name, out / (f"{row.name}-{number + 1}" if row.starts else row.name))
        try:
            flags = ("--load-format", "dummy", *shlex.split(row.args))
            if row.yardstick:
                server.start("vllm", "serve", str(model), "--served-model-name", NAME, *flags, **row.env)
            else:
                server.launch("serve", *flags, **settings, **row.env)
            generator = generator or (None if row.starts else Load(model))  # while the first engine starts
            ready = server.wait_for("Application startup complete" if row.yardstick else "ready after", min(READY_SECONDS, left()))
            fact(row.name, args=row.args, env=row.env, ready=round(ready, 1), **said(server))
            for found in measure(row, generator, beside) if generator and not row.starts else ():
                fact(row.name, **found)
        except Exception as error:  # noqa: BLE001 - the next configuration has its turn
            fact(row.name, failed=f"{type(error).__name__}: {error}"[-3000:])
        finally:
            stop(server)
            with contextlib.suppress(AssertionError):  # the next start says what it lacks
                is_freed()
            longest = max(longest, before - left())


def facts_here(image: Path, folder: Path) -> Path:
    """The image's facts, with those of its compiled kernels that this Python's FlashInfer has in `data/aot`."""
    facts, found = json.loads(image.read_text()), importlib.util.find_spec("flashinfer")
    compiled = list(Path(found.origin).parent.glob("data/aot/xqa_*/*.so")) if found and found.origin else []
    names = " ".join(file.name for file in compiled)
    for row in facts["kernels"]:
        row["groups"] = [group for group in row["groups"] if f"_head_dim_{row['head_dim']}_head_group_ratio_{group}_" in names]
    target = folder / "image.json"
    target.write_text(json.dumps(facts))
    return target


def main() -> None:
    """Read the command line and sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names of configurations, in the order to run; all unless given")
    parser.add_argument("--config", type=Path, default=CONFIGURATIONS, help="the TOML file")
    parser.add_argument("--image", type=Path, default=ROOT / "images/h200-fp8/image.json", help="the image whose launcher settings count")
    parser.add_argument("--model", default="r1-7b", choices=MODELS, help="the model of images/models.toml whose shapes count")
    parser.add_argument("--beside", type=int, default=0, metavar="TOKENS", help="load once more beside one request with so many tokens")
    parser.add_argument("--out", type=Path, default=ROOT / "build/sweep", help="folder for facts.jsonl and the logs")
    parser.add_argument("--seconds", type=float, default=3600, help="no configuration is begun that may not end within these")
    options = parser.parse_args()
    known = rows(options.config)
    if unknown := [name for name in options.rows if name not in known]:
        parser.error(f"no configuration is called {', '.join(unknown)}; there are {', '.join(known)}")
    if used := [name for name in options.rows or known if any(options.out.glob(f"{name}*"))]:
        parser.error(f"{options.out} has {', '.join(used)} already: remove it, or name another folder with --out")
    with tempfile.TemporaryDirectory() as folder:
        model = without_weights(Path(folder), options.model)
        settings = {"LAUNCH_IMAGE": str(facts_here(options.image, Path(folder))), "LAUNCH_MODEL": str(model), "LAUNCH_MODEL_NAME": NAME}
        sweep([known[name] for name in options.rows or known], settings, model, options.out, options.seconds, options.beside)


if __name__ == "__main__":  # the engine's processes import this file again
    main()
