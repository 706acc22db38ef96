"""The load generator, `vllm bench serve`: in a container of the `cpu` image, whatever engine is measured, or a program that is here.

It asks /v1/completions, and takes its counts of tokens from the server's `usage`, since servers put several tokens into one event.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engineroom.api import Api
from engineroom.bench.results import PERCENTILES, Step
from engineroom.bench.scenarios import Scenario
from engineroom.errors import EngineRoomError, TryAgain

END_SECONDS = 15  # for it to end after an interrupt
INSIDE = "/out"
SPREADS = {"ttft": "ttft", "tpot": "tpot", "latency": "e2el"}  # our name, and theirs


class Target(NamedTuple):
    """Whom to ask, for which model, and where its tokenizer is: a folder or a hub's name, as the generator sees it."""

    api: Api
    model: str
    tokenizer: str


class Generator(NamedTuple):
    """How it is started: as `program`, or in a container of `image`, in the network and with the volumes of other containers."""

    program: str = ""
    image: str = ""
    beside: str = ""
    volumes_from: str = ""
    mounts: tuple[str, ...] = ()

    def command(self, arguments: list[str], folder: Path, name: str, *, ca: Path | None = None) -> list[str]:
        """The command line; results come into `folder`."""
        if self.program:
            return [self.program, *arguments, "--result-dir", str(folder)]
        mounts = [f"{folder}:{INSIDE}", *self.mounts, *([f"{ca}:{ca}:ro"] if ca else [])]
        variables = ["HOME=/tmp", "HF_HUB_OFFLINE=1", "OPENAI_API_KEY", *(["SSL_CERT_FILE"] if ca else [])]
        return [
            *("docker", "run", "--rm", "--init", "--name", name, "--user", f"{os.getuid()}:{os.getgid()}"),
            *("--network", f"container:{self.beside}" if self.beside else "host"),
            *(("--volumes-from", f"{self.volumes_from}:ro") if self.volumes_from else ()),
            *(f"--volume={mount}" for mount in mounts),
            *(f"--env={variable}" for variable in variables),
            *("--entrypoint", "vllm", self.image, *arguments, "--result-dir", INSIDE),
        ]

    def run(self, target: Target, scenario: Scenario, log: Path, concurrency: int) -> Step:
        """Measure once. What it prints goes to the end of `log`, beside which it works.

        Raises TryAgain past the scenario's deadline, EngineRoomError when it fails. An interrupt ends it first.
        """
        result, name = log.with_suffix(".step"), f"engineroom-bench-{os.getpid()}"
        line = self.command(arguments(target, scenario, concurrency, result.name), log.parent, name, ca=target.api.ca)
        env = {**os.environ, "OPENAI_API_KEY": target.api.key, "HF_HUB_OFFLINE": "1"}
        env |= {"SSL_CERT_FILE": str(target.api.ca)} if target.api.ca else {}
        env |= {"NO_PROXY": "*", "no_proxy": "*"} if target.api.local else {}
        with log.open("a") as out:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
            try:
                status = process.wait(scenario.minutes * 60)
            except subprocess.TimeoutExpired:
                self._end(process, name)
                raise TryAgain(f"Not measured within {scenario.minutes:g} minutes. Its output: {log}") from None
            except KeyboardInterrupt:
                self._end(process, name)
                raise
        if status:
            last = [said for said in log.read_text(errors="replace").splitlines() if said.strip()][-3:]
            raise EngineRoomError("\n".join((f"The load generator ended with {status}; all that it said: {log}", *last)))
        found = json.loads(result.read_text())
        result.unlink()
        return step(found)

    def _end(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Have it end, if need be by force."""
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            if not self.program:
                subprocess.run(["docker", "kill", name], capture_output=True, check=False)
            process.kill()
            process.wait()


def arguments(target: Target, scenario: Scenario, concurrency: int, file: str) -> list[str]:
    """What `vllm bench serve` is told. A seed of its own each time, so that no prompt is one that the server still remembers."""
    where = urlsplit(target.api.url)
    options = {
        "backend": "openai",
        "base-url": f"{where.scheme}://{where.netloc}",
        "endpoint": f"{where.path}/completions",
        "model": target.model,
        "tokenizer": target.tokenizer,
        "dataset-name": "random",
        "random-input-len": scenario.input_tokens,
        "random-output-len": scenario.output_tokens,
        "num-prompts": scenario.rounds * concurrency,
        "max-concurrency": concurrency,
        "temperature": scenario.temperature,
        "seed": time.time_ns() // 1_000_000 % 2**31,
        "percentile-metrics": "ttft,tpot,e2el",
        "metric-percentiles": ",".join(map(str, PERCENTILES)),
        "result-filename": file,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["bench", "serve", *words, "--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]


def step(found: dict[str, Any]) -> Step:
    """The generator's result as ours."""
    spreads = {name: {f"p{p}": found[f"p{p}_{theirs}_ms"] for p in PERCENTILES} for name, theirs in SPREADS.items()}
    return Step(
        concurrency=found["max_concurrency"],
        requests=found["num_prompts"],
        completed=found["completed"],
        failed=found["failed"],
        errors=dict(Counter(error.strip().splitlines()[-1] for error in found["errors"] if error.strip())),
        seconds=found["duration"],
        input_tokens=found["total_input_tokens"],
        output_tokens=found["total_output_tokens"],
        output_tokens_per_second=found["output_throughput"],
        requests_per_second=found["request_throughput"],
        **spreads,
    )
