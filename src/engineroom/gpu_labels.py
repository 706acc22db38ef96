"""Labels of nodes with GPUs: which a stack needs, and which contradict it."""

from __future__ import annotations

import re
from typing import Any

from engineroom.catalog import Catalog
from engineroom.rows import Gpu, Stack


def rules(catalog: Catalog, row: Stack) -> list[dict[str, Any]]:
    """Node labels of NVIDIA's GPU feature discovery that the stack's nodes must have: compute capability, memory in MiB, GPUs.

    Source: https://github.com/NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery.
    """
    if not row.gpus:
        return []
    gpu, memory = planned_gpu(catalog, row)
    major, minor = divmod(gpu.compute_capability, 10)
    return [
        {"key": "nvidia.com/gpu.compute.major", "operator": "In", "values": [str(major)]},
        {"key": "nvidia.com/gpu.compute.minor", "operator": "In", "values": [str(minor)]},
        {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(int(memory * 1024 * 0.95))]},
        {"key": "nvidia.com/gpu.count", "operator": "Gt", "values": [str(row.gpus - 1)]},
    ]


def planned_gpu(catalog: Catalog, row: Stack) -> tuple[Gpu, float]:
    """The kind of GPU that a stack is planned for, and the GiB of one."""
    kind, _, gib = row.gpu.rpartition("-")
    gpu = catalog.gpus[kind]
    return gpu, gpu.usable_gib[gpu.memory_gib.index(int(gib))]


def contradicts(catalog: Catalog, row: Stack, key: str, value: str) -> str:
    """Why no node with this label can run the stack; empty when the label does not say so."""
    if not row.gpus:
        return ""
    gpu, memory = planned_gpu(catalog, row)
    number = int(value) if value.isdigit() else None
    if key == "nvidia.com/gpu.count" and number is not None and number < row.gpus:
        return f"it takes {row.gpus} GPUs of a node, and those have {number}"
    if key == "nvidia.com/gpu.memory" and number is not None and number < memory * 1024 * 0.95:
        return f"it is planned for {memory:.0f} GiB a GPU, and those have {number / 1024:.0f}"
    if key == "nvidia.com/gpu.compute.major" and number is not None and number != gpu.compute_capability // 10:
        return f"its image has device code for compute capability {gpu.compute_capability / 10}, and those are {number}.x"
    words = re.split(r"[^a-z0-9]+", value.lower())
    named = [kind for kind in catalog.gpus if kind in words]
    kinds = catalog.images[row.image].gpus
    if named and not set(named) & set(kinds):
        return f"its image {row.image} is for {', '.join(catalog.gpus[kind].title for kind in kinds)}"
    if named and max(gib for kind in named for gib in catalog.gpus[kind].usable_gib) < memory:
        return f"it is planned for {memory:.0f} GiB a GPU, and a {catalog.gpus[named[0]].title} has less"
    return ""
