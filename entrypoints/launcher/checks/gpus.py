"""GPUs, their driver, and the precisions that they can compute in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.checks.common import SILENT, Case, Check, gib, ok, refused, warning
from launcher.facts import ImageFacts
from launcher.hardware import Gpu

BFLOAT16 = FP8_WEIGHTS = FP4_WEIGHTS = 80  # compute capabilities from which on an engine has kernels
FP8_CACHE_OF_LATENTS = 89
FP4 = 100
DRIVERS = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"


def are_there(case: Case) -> Check:
    """An image for GPUs sees as many as the plan takes, and they are alike."""
    if not any(case.facts.gpus.values()):
        return ok(f"none needed: image {case.facts.image} computes on the CPU")
    gpus, wanted = case.hardware.gpus, case.processes
    if len(gpus) < wanted:
        seen = f"{len(gpus)} of {wanted} GPUs are" if gpus else "no GPU is"
        return refused(
            f"image {case.facts.image} computes on GPUs, and {seen} visible ({case.hardware.found_by})",
            f"docker run --gpus {wanted} … (compose: deploy.resources.reservations.devices; Kubernetes: resources.limits nvidia.com/gpu: {wanted})."
            + (" Or change CUDA_VISIBLE_DEVICES." if "CUDA_VISIBLE_DEVICES" in case.env else ""),
        )
    taken = gpus[:wanted]
    if len({(gpu.capability, gpu.memory >> 30) for gpu in taken}) > 1:
        return warning(
            f"GPUs that differ: {listed(taken)}; each gets an equal share, so the smallest and the slowest set the pace",
            "Choose equal ones with CUDA_VISIBLE_DEVICES, and CUDA_DEVICE_ORDER=PCI_BUS_ID so that the numbers are nvidia-smi's.",
        )
    return ok(f"{listed(taken)} ({case.hardware.found_by})")


def have_code(case: Case) -> Check:
    """The image has device code for these GPUs: of their compute capability, or of a lower one with the same first digit.

    Source: CUDA C++ programming guide, binary compatibility.
    """
    own = sorted({capability for capability in case.facts.gpus.values() if capability})
    taken = sorted({gpu.capability for gpu in case.hardware.gpus[: case.processes]} if own else ())
    for capability in taken:
        if not runs(own, capability):
            return refused(
                f"image {case.facts.image} has device code for compute capability {' and '.join(map(str, own))}, and this GPU has {capability}",
                fitting(case.facts, capability),
                hard=True,
            )
    foreign = [capability for capability in taken if capability not in own]
    if foreign:
        return warning(
            f"code for compute capability {own[0]} runs on {foreign[0]} by NVIDIA's rule, which nobody has tried with image {case.facts.image}"
        )
    return ok(f"compute capability {taken[0]}, which the image is made for") if taken else SILENT


def runs(own: Sequence[int], capability: int) -> bool:
    """Whether code for these capabilities runs on a GPU of this one."""
    return any(one // 10 == capability // 10 and one <= capability for one in own)


def images_for(facts: ImageFacts, capability: int) -> list[str]:
    """Our images for a compute capability, the nearest to this one first: same engine, then same precision."""

    def distance(name: str) -> tuple[bool, bool, str]:
        other = facts.siblings[name]
        return other["engine"] != facts.engine, bits(other["precision"]) != bits(facts.precision), name

    return sorted((name for name, other in facts.siblings.items() if capability in other["capabilities"]), key=distance)


def bits(precision: str) -> str:
    """What a precision keeps of a weight: `fp8` for fp8-weights as well, and one word for both kinds of 16 bits."""
    return "16" if precision in ("half", "bfloat16") else precision.split("-", maxsplit=1)[0]


def fitting(facts: ImageFacts, capability: int) -> str:
    """What to use instead on a GPU."""
    names = images_for(facts, capability)
    if not names:
        return f"No image of ours is made for compute capability {capability}; `engineroom list` shows them all."
    others = f" ({', '.join(names[1:])} would run as well)" if names[1:] else ""
    return f"Use image {names[0]}{others}: it is made for compute capability {capability}."


def driver(case: Case) -> Check:
    """The driver runs the image's CUDA: within a major version every driver does that runs its first minor version."""
    wanted, cuda, found = case.facts.min_driver, case.facts.cuda, case.hardware.driver
    if not case.hardware.gpus or not wanted:
        return SILENT
    if numbers(found) < numbers(wanted) or 0 < case.hardware.cuda // 1000 < numbers(cuda)[0]:
        newest = f" and runs CUDA up to {case.hardware.cuda // 1000}.{case.hardware.cuda % 1000 // 10}" if case.hardware.cuda else ""
        return refused(
            f"the driver is {found}{newest}; CUDA {cuda} of image {case.facts.image} wants {wanted} or newer"
            " (CUDA would call it error 35, 803 or 804: driver too old for the runtime, or not the one of the libraries)",
            f"Install a newer driver on the host ({DRIVERS}), or use an image with an older CUDA. What helps is not in the container.",
        )
    return ok(f"driver {found} runs CUDA {cuda}, which wants {wanted} or newer")


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, since as text "99" is more than "100"."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def precision(case: Case) -> Check:
    """The numbers that are asked for are numbers that these GPUs can compute with."""
    if not case.capability:
        return SILENT
    config = case.plan.config
    return _dtype(case, config) or _quantization(case, config) or _cache_dtype(case, config) or ok(_says(case, config))


def _says(case: Case, config: Mapping[str, Any]) -> str:
    return f"dtype {case.flag('dtype') or 'auto'}, checkpoint {_method(case, config) or config.get('torch_dtype') or config.get('dtype') or 'unknown'}"


def _dtype(case: Case, config: Mapping[str, Any]) -> Check | None:
    wanted, stored = case.flag("dtype"), config.get("torch_dtype") or config.get("dtype")
    if case.capability >= BFLOAT16:
        return None
    if wanted == "bfloat16":
        return refused(
            f"dtype is bfloat16, which needs compute capability {BFLOAT16}, and this GPU has {case.capability}",
            "Set LAUNCH_ARG_DTYPE=half (--dtype half): the same bytes, and float16 computes on this GPU.",
            hard=True,
        )
    if stored == "bfloat16" and wanted in ("half", "float16"):
        return ok(f"the checkpoint is bfloat16, which compute capability {case.capability} has not: served as float16 (--dtype half)")
    return None


def _method(case: Case, config: Mapping[str, Any]) -> str:
    """How the weights are quantized: by flag, else as the checkpoint says; empty when they are not."""
    stored = config.get("quantization_config")
    if isinstance(stored, dict):
        stored = f"{stored.get('quant_method', '')} {stored.get('quant_algo', '')} {_compressed(stored)}".strip()
    return (case.flag("quantization", "q") or (stored if isinstance(stored, str) else "")).lower()


def _compressed(stored: Mapping[str, Any]) -> str:
    """`fp8` for a checkpoint of compressed-tensors with 8-bit floats; its quant_method names the library alone."""
    groups = stored.get("config_groups")
    weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return "fp8" if any(isinstance(one, dict) and one.get("type") == "float" and one.get("num_bits") == 8 for one in weights) else ""  # noqa: PLR2004


def _quantization(case: Case, config: Mapping[str, Any]) -> Check | None:
    method = _method(case, config)
    four = "fp4" in method
    if not four and "fp8" not in method:
        return None
    what, capability = f"the weights are {'FP4' if four else 'FP8'} ({method})", case.capability
    if capability < (FP4_WEIGHTS if four else FP8_WEIGHTS) or (four and capability < FP4 and case.plan.engine != "vllm"):
        return refused(
            f"{what}, which need compute capability {FP4 if four else FP8_WEIGHTS}, and this GPU has {capability}",
            "Serve the 16-bit checkpoint of the model, or an AWQ or GPTQ one; without --quantization where the checkpoint itself has 16 bits.",
            hard=True,
        )
    if four and capability < FP4:
        return warning(f"{what}: a GPU of {capability} has no FP4 arithmetic, so they save memory and compute in 16 bits")
    return None


def _cache_dtype(case: Case, config: Mapping[str, Any]) -> Check | None:
    wanted = case.flag("kv-cache-dtype")
    if not wanted.startswith("fp8") or "kv_lora_rank" not in config or case.capability >= FP8_CACHE_OF_LATENTS:
        return None
    return refused(
        f"kv-cache-dtype is {wanted}; with latent attention it needs compute capability {FP8_CACHE_OF_LATENTS}, and this GPU has {case.capability}",
        "Set LAUNCH_ARG_KV_CACHE_DTYPE=auto: the cache stays at 16 bits.",
        hard=True,
    )


def listed(gpus: Sequence[Gpu]) -> str:
    """GPUs in words: `2 x NVIDIA A100 (79.2 GiB)`."""
    kinds = dict.fromkeys((gpu.name, gib(gpu.memory)) for gpu in gpus)
    count = [(sum((gpu.name, gib(gpu.memory)) == kind for gpu in gpus), kind) for kind in kinds]
    return ", ".join(f"{number} x {name} ({memory})" for number, (name, memory) in count)
