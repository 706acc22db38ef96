"""Every form on Kubernetes against the schemas of its objects; and that those schemas do find what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import forms
import kinds
import pytest

from engineroom.catalog import Catalog

CATALOG = Catalog(forms.ROOT)
ON_KUBERNETES = ("k8s", "lws", "kuberay", "volcano")
EVERY_OPTION = {
    "namespace": "llm",
    "node_selector": {"pool": "big"},
    "models": "weights",
    "model": "/models/mine",
    "hf_token": "hub",
    "cluster_token": "ring",
    "storage_class": "fast",
    "gateway": True,
    "gateway_replicas": 2,
    "gateway_keys": "people",
    "gateway_certificate": "chat.example",
}


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_every_form_of_every_stack(stack: str) -> None:
    """A server takes the objects as they are."""
    for form in ON_KUBERNETES:
        if (stack, form) == ("demo-cpu-two-nodes", "kuberay"):
            continue  # refused
        found = forms.objects(forms.render(CATALOG, stack, form, gateway=True))

        assert len(found) >= 13
        assert kinds.problems(found) == [], form


@pytest.mark.parametrize("stack", ["r1-7b-v100", "r1-32b-v100"])
def test_every_option(stack: str) -> None:
    """A server takes them with every option as well."""
    for form in ON_KUBERNETES:
        assert kinds.problems(forms.objects(forms.render(CATALOG, stack, form, **EVERY_OPTION))) == [], form


CONTROLS: list[tuple[str, str, tuple[str | int, ...], Any, str]] = [
    ("k8s", "StatefulSet", ("spec", "replica"), 1, "'replica' was unexpected"),
    ("k8s", "StatefulSet", ("spec", "replicas"), "1", "'1' is not of type 'integer'"),
    ("k8s", "StatefulSet", ("spec", "selector"), None, "'selector' is a required property"),
    ("lws", "LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "sizes"), 2, "'sizes' was unexpected"),
    ("lws", "LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "size"), "2", "'2' is not of type 'integer'"),
    ("lws", "LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "workerTemplate"), None, "'workerTemplate' is a required property"),
    ("lws", "LeaderWorkerSet", ("spec", "startupPolicy"), "LeaderFirst", "'LeaderFirst' is not one of"),
    ("lws", "LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "workerTemplate", "spec", "container"), [], "'container' was unexpected"),
    ("kuberay", "RayCluster", ("spec", "workerGroupSpecs", 0, "replica"), 1, "'replica' was unexpected"),
    ("kuberay", "RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), None, "'maxReplicas' is a required property"),
    ("kuberay", "RayCluster", ("spec", "headGroupSpec", "rayStartParams"), {"port": 6379}, "6379 is not of type 'string'"),
    ("kuberay", "RayCluster", ("metadata", "annotation"), {}, "'annotation' was unexpected"),
    ("kuberay", "RayCluster", ("metadata", "annotations", "ray.io/overwrite-container-cmd"), True, "True is not of type 'string'"),
    ("volcano", "Job", ("spec", "policy"), [], "'policy' was unexpected"),
    ("volcano", "Job", ("spec", "policies", 0, "exitCode"), "69", "'69' is not of type 'integer'"),
    ("volcano", "Job", ("spec", "policies", 2, "event"), "PodGone", "'PodGone' is not one of"),
    ("volcano", "Job", ("spec", "plugins", "svc"), True, "True is not of type 'array'"),
    ("volcano", "Job", ("spec", "tasks", 0, "template", "spec", "containers", 0, "name"), None, "'name' is a required property"),
    ("volcano", "Job", ("spec",), None, "'spec' is a required property"),
]


@pytest.mark.parametrize(("form", "kind", "path", "value", "said"), CONTROLS)
def test_what_is_wrong_is_found(form: str, kind: str, path: tuple[str | int, ...], value: Any, said: str) -> None:
    """A misspelt field, a wrong type, a word that is none of the known, a missing field (None)."""
    found = copy.deepcopy(next(item for item in forms.objects(forms.render(CATALOG, "r1-32b-v100", form)) if item["kind"] == kind))
    part: Any = found
    for step in path[:-1]:
        part = part[step]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value

    lines = kinds.problems([found])

    assert lines
    assert all(said in line for line in lines), lines


def test_numbers_and_texts_where_both_are_allowed() -> None:
    """Quantities and ports are numbers or texts."""
    schema = kinds.strict({"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+%?$"})

    assert [not list(kinds.jsonschema.Draft202012Validator(schema).iter_errors(value)) for value in (1, "50%", "half", 1.5)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_an_unknown_kind_is_said() -> None:
    """A kind that no schema is there for is no kind that passes."""
    assert kinds.problems([{"apiVersion": "ray.io/v1alpha1", "kind": "RayCluster", "metadata": {"name": "x"}}])
