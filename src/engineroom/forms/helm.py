"""A Helm chart: values from the stack's row, and templates that read them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from engineroom.catalog import Catalog
from engineroom.render import template

Job = Mapping[str, Any]
TEMPLATES = "cluster/helm"  # below compose/templates; files that end in .j2 are filled in, the others are Helm's own and copied
MOST_SECONDS = (
    3600  # of a stabilisation window: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/horizontal-pod-autoscaler-v2
)
LEAST_SECONDS = 300  # Kubernetes' own default
BY_SECRETS = {"HF_TOKEN_FILE", "LAUNCH_CLUSTER_TOKEN_FILE"}  # the templates set them beside the volume


def files(catalog: Catalog, job: Job) -> dict[str, str]:
    """A chart's folder: file name -> text. `helm install` takes it."""
    folder, values = catalog.root / "compose" / "templates" / TEMPLATES, values_of(catalog, job)
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".j2":
            found[name.removesuffix(".j2")] = template(catalog.root, "compose", f"{TEMPLATES}/{name}", values)
        else:
            found[name] = file.read_text()
    return found


def values_of(catalog: Catalog, job: Job) -> dict[str, Any]:
    """What Chart.yaml and values.yaml need beside the stack."""
    image = catalog.stacks[job["name"]].image
    start = int(job["engine_environment"]["LAUNCH_START_SECONDS"].value)
    return {
        **job,
        "chart_version": version("engineroom"),
        "app_version": catalog.images[image].engine,
        "environment": [variable for variable in job["environment"] if variable.name not in BY_SECRETS],
        "hf_token": job["secrets"].get("hf_token", ""),
        "cluster_token": job["secrets"].get("cluster_token", ""),
        "access_mode": "ReadWriteMany" if job["clustered"] else "ReadWriteOnce",
        "gauges": catalog.release_of(image).metrics,
        "scale_down_seconds": min(max(start, LEAST_SECONDS), MOST_SECONDS),
    }
