"""What a cluster's API server would say to objects: fields that no schema knows, wrong types, missing ones. Nothing is contacted."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

VERSIONS = ("1.35.0", "1.36.0", "1.37.0")  # of Kubernetes
CRDS = Path(__file__).parent / "data" / "crds"
CUSTOM = {
    ("batch.volcano.sh/v1alpha1", "Job"): "Job.json",
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "LeaderWorkerSet.json",
    ("ray.io/v1", "RayCluster"): "RayCluster.json",
}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {  # of a whole object: the server has this schema itself
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": TEXTS, "annotations": TEXTS},
    "additionalProperties": False,
}

Schema = dict[str, Any]

# Read anew for each object otherwise, all of a version's definitions with it: most of the time that a check takes.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def problems(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the objects, a line each; empty when a server would take them all."""
    return [f"{item['kind']} {item['metadata'].get('name')}: {line}" for item in objects for line in wrong_with(json.dumps(item))]


@functools.cache  # forms of a stack share most of their objects
def wrong_with(text: str) -> tuple[str, ...]:
    """What is wrong with one object, as JSON."""
    item = json.loads(text)
    if (item["apiVersion"], item["kind"]) in CUSTOM:
        validator = jsonschema.Draft202012Validator(schema(item["apiVersion"], item["kind"]))
        return tuple(f"{error.json_path}: {error.message}" for error in validator.iter_errors(item))
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{error.json_path}: {error.message} (Kubernetes {version})")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(error.message)
    return tuple(found)


@functools.cache
def schema(api_version: str, kind: str) -> Schema:
    """The JSON schema of a custom resource, in which every field has to be known."""
    found = strict(json.loads((CRDS / CUSTOM[api_version, kind]).read_text()))
    found["properties"]["metadata"] = METADATA
    found["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return found


def strict(structural: Schema) -> Schema:
    """JSON schema from Kubernetes' structural schema, with the server's `fieldValidation: Strict`.

    Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions.
    """
    found = {key: value for key, value in structural.items() if not key.startswith("x-kubernetes-") and key != "nullable"}
    if structural.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if "properties" in structural:
        found["properties"] = {name: strict(part) for name, part in structural["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(structural.get(key), dict):
            found[key] = strict(structural[key])
    if structural.get("type") == "object" and not structural.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return {"anyOf": [found, {"type": "null"}]} if structural.get("nullable") else found
