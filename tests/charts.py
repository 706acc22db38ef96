"""Charts through Helm's own library: rendered without a cluster, read back as objects."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import helm_python as helm
import yaml

Object = dict[str, Any]
SHARED = {"storage": {"accessMode": "ReadWriteMany"}}  # what several servers need


def archive(files: Mapping[str, str]) -> bytes:
    """A chart's files as `helm package` packs them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"chart/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def template(files: Mapping[str, str], values: Object | None = None, name: str = "", namespace: str = "default") -> dict[str, str]:
    """What `helm template` gives, and the notes: file -> text; the release is called as the chart unless it has a name.

    Raises HelmValuesError for values that the schema refuses, HelmRenderError for those that the templates refuse.
    """
    with helm.Chart.load_archive(archive(files)) as chart:
        rendered = chart.render(values or {}, name=name or chart.name, namespace=namespace)
    return {file.partition("/templates/")[2]: text for file, text in rendered.items()}


def objects(
    files: Mapping[str, str], values: Object | None = None, name: str = "", namespace: str = "default"
) -> dict[tuple[str, str], Object]:
    """All objects by kind and name."""
    texts = template(files, values, name, namespace)
    found = [item for file, text in texts.items() if file != "NOTES.txt" for item in yaml.load_all(text, yaml.CSafeLoader) if item]
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in found}
    assert len(by_name) == len(found), "two objects of one name"
    return by_name


def autoscaled(kind: str, metric: str, **more: Any) -> Object:
    """Values that switch autoscaling on."""
    return {**SHARED, "autoscaling": {"kind": kind, "metric": metric, "target": 0.8 if metric == "cache" else 4, **more}}


def scalers(found: Mapping[tuple[str, str], Object]) -> list[Object]:
    """What decides on the number of servers."""
    return [item for (kind, _), item in found.items() if kind in ("HorizontalPodAutoscaler", "ScaledObject")]
