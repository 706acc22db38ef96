"""Which images and stacks suit the hardware of this machine, and why not."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engineroom import machine, plan_text, planner, resolve
from engineroom.catalog import Catalog
from engineroom.machine import Nvidia
from launcher.checks.gpus import runs
from launcher.hardware import Gpu


class Verdict(NamedTuple):
    """Whether an image or a stack can run here, and what decides it."""

    name: str
    runs: bool
    why: str


def images(catalog: Catalog, nvidia: Nvidia) -> Iterator[Verdict]:
    """A verdict for every image: its GPU's compute capability, the driver, or the CPU's instructions."""
    for name in catalog.images:
        wanted = resolve.capabilities(catalog, catalog.images[name])
        yield Verdict(name, *(_on_gpu(catalog, name, nvidia) if wanted else _on_cpu(catalog, name)))


def stack(catalog: Catalog, name: str, nvidia: Nvidia) -> Verdict:
    """A verdict for a stack: its image's, as many GPUs as it takes on one machine, and memory for its model and context."""
    row = catalog.any_stack(name)
    image = next(verdict for verdict in images(catalog, nvidia) if verdict.name == row.image)
    gpus = fitting(catalog, row.image, nvidia)
    if image.runs and len(gpus) < row.gpus:
        return Verdict(name, False, f"takes {row.gpus} such GPUs, found {image.why}")
    if image.runs and row.gpus:
        memory = min(gpu.memory for gpu in gpus)
        plan = planner.of_stack(catalog, name, memory)
        if not plan.works:
            return Verdict(name, False, f"does not fit GPUs of {memory / 2**30:.0f} GiB: {plan_text.shortage(plan)}")
    there = f" and {row.nodes - 1} more like this one" if row.nodes > 1 else ""
    return Verdict(name, image.runs, image.why + there if image.runs else f"image {row.image}: {image.why}")


def fitting(catalog: Catalog, image: str, nvidia: Nvidia) -> list[Gpu]:
    """The GPUs that run an image's code, which may be code for an older one of their generation."""
    wanted = resolve.capabilities(catalog, catalog.images[image])
    return [gpu for gpu in nvidia.gpus if runs(wanted, gpu.capability)]


def driver_is_old(catalog: Catalog, image: str, nvidia: Nvidia) -> bool:
    """Whether an image has code for a GPU that is here, and wants a newer driver than there is."""
    return bool(fitting(catalog, image, nvidia)) and machine.numbers(nvidia.driver) < machine.numbers(catalog.release_of(image).min_driver)


def describe(gpus: Sequence[Gpu]) -> str:
    """GPUs for people, equal ones counted, each with its compute capability."""
    rows = [f"{gpu.name} ({gpu.capability / 10})" for gpu in gpus]
    return ", ".join(f"{rows.count(row)} × {row}" for row in dict.fromkeys(rows))  # noqa: RUF001 - as in the README


def _on_gpu(catalog: Catalog, name: str, nvidia: Nvidia) -> tuple[bool, str]:
    image, release = catalog.images[name], catalog.release_of(name)
    wanted = ", ".join(f"{catalog.gpus[gpu].title} ({catalog.gpus[gpu].compute_capability / 10})" for gpu in image.gpus)
    found = fitting(catalog, name, nvidia)
    if not found:
        return False, f"wants {wanted}, found {describe(nvidia.gpus) or 'none'}"
    if driver_is_old(catalog, name, nvidia):
        return False, f"wants driver {release.min_driver} or newer, found {nvidia.driver}"
    tried = {gpu.capability for gpu in found} <= set(resolve.capabilities(catalog, image))
    return True, describe(found) + ("" if tried else f", by NVIDIA's rule for code of {wanted}; nobody has tried it")


def _on_cpu(catalog: Catalog, name: str) -> tuple[bool, str]:
    if platform.machine() != "x86_64":
        return False, f"wants an x86-64 CPU, found {platform.machine()}"
    if catalog.release_of(name).launched and not machine.has_avx2():
        return False, "wants a CPU with AVX2, which /proc/cpuinfo does not name"
    return True, "this CPU"
