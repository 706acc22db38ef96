"""`make bench`: speeds as ratios of two things measured in one run, in turn, and written into README.md.

Machines differ and are busy; a ratio within one run says something, a time alone does not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cluster_time
import gateway_time
from checkpoints import large_model

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IMAGES = ["cpu", "webui"]  # what can be built with a package index alone, in minutes


class Result(NamedTuple):
    """Medians in milliseconds of the thing and of its yardstick."""

    what: str
    yardstick: str
    goal: str
    ours: float
    theirs: float

    def row(self) -> str:
        """A line of README's table."""
        return (
            f"| {self.what} | {self.ours:.0f} ms | {self.yardstick} | {self.theirs:.0f} ms | {self.ours / self.theirs:.2f} | {self.goal} |"
        )


def paired(ours: Callable[[], None], theirs: Callable[[], None], runs: int) -> tuple[float, float]:
    """Run both in turn, once unmeasured, and give the medians in milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for work, found in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            work()
            found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def quiet(*command: str | Path, **settings: str) -> Callable[[], None]:
    """A command as something to time; its failure is an error."""

    def work() -> None:
        env = {**os.environ, "BUILDX_BAKE_ENTITLEMENTS_FS": "0", **settings}
        subprocess.run([str(part) for part in command], cwd=ROOT, env=env, check=True, capture_output=True)

    return work


def launcher(catalog: Catalog) -> Result:
    """From process start to the engine's first instruction, inside the image."""
    command = ["docker", "run", "--rm", "--network", "none", "--volume", f"{ROOT}/tests/bench:/bench:ro"]
    command += [resolve.tag("cpu", catalog.release_of("cpu")), "/usr/bin/python3", "/bench/launch_time.py", "21"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Result("`launch`, until the engine starts", "`python3 -c ''`", "60 ms more", found["launch"], found["python"])


def checks(catalog: Catalog) -> Result:
    """Every decision and check before weights load, on eight stubbed H200 and a folder with as many files and tensors as DeepSeek-R1."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy("images/h200-fp8/image.json", folder)
        shutil.copy(f"images/flags/{catalog.images['h200-fp8'].engine}.json", f"{folder}/flags.json")
        settings = {
            "LAUNCH_IMAGE": f"{folder}/image.json",
            "LAUNCH_MODEL": str(large_model(Path(folder, "model"), catalog.models["r1"].config)),
            "LAUNCH_TP": "8",
            "LAUNCH_CHECKS": "warn",  # shared memory is this machine's own
            "STUB_GPUS": "8*NVIDIA H200:90:141",
            "PYTHONPATH": "entrypoints:tests/stubs",
        }
        start = "from launcher.cli import main; main()"
        return Result(
            "`launch serve --dry-run`: all checks, 8 GPUs, 163 files of weights",
            "`python3 -c ''`",
            "300 ms more",
            *paired(quiet(sys.executable, "-c", start, "serve", "--dry-run", **settings), quiet(sys.executable, "-c", ""), 15),
        )


def render() -> Result:
    """The whole catalog, whole process, with nothing to change."""
    return Result(
        "`engineroom render`, whole catalog",
        "`python3 -c ''`",
        "150 ms",
        *paired(quiet(BIN / "engineroom", "render"), quiet(BIN / "python", "-c", ""), 15),
    )


def no_op_build(catalog: Catalog, host: Host) -> Result:
    """All images that are built here, unchanged, in one bake; against one plain `docker build`."""
    overlay = ROOT / "build" / "bench.json"
    settings = {name: build.target_settings(catalog.release_of(name), host, overlay.parent) for name in IMAGES}
    overlay.write_text(json.dumps({"target": settings}))
    one_image = settings["webui"]
    flags = [f"--build-arg={name}={value}" for name, value in one_image["args"].items()]
    flags += [f"--secret={secret}" for secret in one_image["secret"]]
    flags += [f"--build-context={name}={folder}" for name, folder in one_image["contexts"].items()]
    bake = quiet("docker", "buildx", "bake", "--file", "images/bake.json", "--file", overlay, *IMAGES)
    one = quiet("docker", "build", "--quiet", "--file", "images/webui/Dockerfile", "--target", "image", *flags, ".")
    return Result("rebuild of `cpu` and `webui`, nothing changed", "`docker build` of `webui`", "", *paired(bake, one, 5))


def launcher_change(catalog: Catalog, host: Host) -> Result:
    """Rebuild after a change of one launcher file; against the same with nothing changed."""
    file = ROOT / "entrypoints/launcher/__init__.py"
    before = file.read_text()
    one = lambda: build.build(catalog, host, ["cpu"], lambda _: None)  # noqa: E731

    def changed() -> None:
        file.write_text(f"{before}\n# {time.time_ns()}\n")
        one()

    def unchanged() -> None:
        one()

    try:
        ours, theirs = paired(changed, unchanged, 5)
    finally:
        file.write_text(before)
        one()
    return Result("rebuild of `cpu` after a launcher change", "nothing changed", "3 s", ours, theirs)


def cluster(nodes: int) -> Result:
    """From all containers started to the cluster complete; against Ray alone."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = cluster_time.measure(Path(folder), nodes, 3)
    return Result(
        f"{nodes} nodes, from started to complete",
        "`ray start` on the head, then on the workers",
        "2 s more",
        statistics.median(ours) * 1e3,
        statistics.median(theirs) * 1e3,
    )


def gateway() -> Result:
    """The first chunk of 500 streams at once for five minutes, through the gateway and past it at the same time. Ends where any is lost."""
    through, past = gateway_time.measure(500, 300)
    print(f"through the gateway: {through}\npast it: {past}")
    if through.errors or through.lost:
        sys.exit("the gateway lost something")
    return Result(
        "first chunk of a stream through the gateway, 500 at once",
        "past the gateway",
        "5 ms more",
        statistics.median(through.first),
        statistics.median(past.first),
    )


def main() -> None:
    """Measure, print and write README's table."""
    os.chdir(ROOT)
    (ROOT / "build").mkdir(exist_ok=True)
    catalog, host = Catalog(ROOT), Host.load(ROOT)
    build.build(catalog, host, IMAGES, lambda _: None)
    results = [launcher(catalog), checks(catalog), render(), no_op_build(catalog, host), launcher_change(catalog, host)]
    results += [cluster(nodes) for nodes in (2, 4, 8)]
    results.append(gateway())
    table = "\n".join(
        ["| What | Median | Against | Median | Ratio | Goal |", "| --- | --- | --- | --- | --- | --- |", *(r.row() for r in results)]
    )
    readme = ROOT / "README.md"
    text, found = re.subn(
        r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: f"{m[1]}{table}\n{m[2]}", readme.read_text(), flags=re.DOTALL
    )
    if not found:
        sys.exit("README.md has no place for the table: <!-- bench --> and <!-- /bench --> are missing.")
    readme.write_text(text)
    print(table)


main()
