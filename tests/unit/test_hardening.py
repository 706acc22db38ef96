"""What every stack closes by default, in every form that it is rendered in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forms
import pytest
import yaml

from engineroom.catalog import Catalog
from engineroom.errors import CannotRun

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
SERVICES = [
    pytest.param(name, service, id=f"{file.stem}-{name}")
    for file in sorted(ROOT.glob("compose/*.yaml"))
    for name, service in yaml.load(file.read_text(), yaml.CSafeLoader)["services"].items()
]
SECRET = re.compile(r"(?i)(token|password|passwd|secret|api_?keys?)(_FILE)?$")
# What lets callers do more than ask a model, in the engines' and Ray's own spellings.
DEVELOPMENT = ("DEV_MODE", "PROFILER", "TRUST_REMOTE_CODE", "ALLOW_INSECURE", "INSECURE", "DASHBOARD", "PICKLE", "DEBUG", "RELOAD")


@pytest.fixture(scope="module", params=["k8s", "helm", "lws", "kuberay", "volcano"])
def pods(request: pytest.FixtureRequest) -> list[tuple[str, dict[str, Any]]]:
    """Every pod of every stack in a form on Kubernetes. Crater's are left out: its portal sets rights itself, and its jobs run as root."""
    found = []
    for stack in CATALOG.stacks:
        try:
            objects = forms.objects(forms.render(CATALOG, stack, request.param, gateway=True))
        except CannotRun:
            continue
        found += [(stack, spec) for spec in pod_specs(objects)]
    assert found
    return found


def pod_specs(item: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in an object, however deep."""
    if isinstance(item, dict):
        if "containers" in item:
            yield item
        else:
            for value in item.values():
                yield from pod_specs(value)
    elif isinstance(item, list):
        for value in item:
            yield from pod_specs(value)


SERVICE = pytest.mark.parametrize(("name", "service"), SERVICES)


@SERVICE
def test_a_service_has_no_rights_to_spare(name: str, service: dict[str, Any]) -> None:
    """Read-only root, no capabilities, no new privileges; the image's own ordinary user; nothing of the host's but its GPUs."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "user", "pid", "ipc", "userns_mode", "devices"} & set(service) == set()
    mounts = [mount if isinstance(mount, str) else str(mount.get("source")) for mount in service.get("volumes", [])]
    assert [mount for mount in mounts if "docker.sock" in mount or mount.startswith(("/", "${HOME", "~"))] == []


@SERVICE
def test_a_service_is_reached_from_this_machine_alone(name: str, service: dict[str, Any]) -> None:
    """What listens is published on 127.0.0.1, or on the host's network listens there; the gateway alone is for others, with its one port."""
    if name.endswith("-gateway"):
        door = "${GATEWAY_ADDRESS:-0.0.0.0}:${GATEWAY_PORT:-8443}"
        host = service.get("network_mode") == "host"
        assert service["profiles"] == ["gateway"]
        assert service["environment"]["GATEWAY_LISTEN"] == (door if host else "0.0.0.0:8443")
        assert service.get("ports") == (None if host else [f"{door}:8443"])
        return
    assert [port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")] == []
    if service.get("network_mode") == "host":
        variables, command = service["environment"], str(service.get("command"))
        listens = variables.get("LAUNCH_HOST") or variables.get("HOST") or re.findall(r"listen-address=([\d.]+):", command)
        assert listens in ("127.0.0.1", ["127.0.0.1"])


@pytest.mark.fault(26)
@SERVICE
def test_fault_26_a_service_gets_secrets_as_files(name: str, service: dict[str, Any]) -> None:
    """No variable holds a secret: it is empty, or names a file. The command line and the labels hold none either."""
    variables = service.get("environment") or {}
    values = {variable: str(value or "") for variable, value in variables.items() if SECRET.search(variable)}

    assert {
        variable: value for variable, value in values.items() if value and not (variable.endswith("_FILE") and value.startswith("/"))
    } == {}
    text = str([service.get("command"), service.get("entrypoint"), service.get("labels"), service.get("build", {})])
    assert re.search(r"\$\{?\w*(TOKEN|SECRET|PASSWORD|KEY)", text) is None


@pytest.mark.fault(24)
@SERVICE
def test_fault_24_no_development_endpoints(name: str, service: dict[str, Any]) -> None:
    """No stack switches on what is for developers, code of strangers included."""
    switched = [variable for variable in service.get("environment") or {} if any(word in variable.upper() for word in DEVELOPMENT)]

    assert switched == []


@pytest.mark.fault(24)
def test_fault_24_no_image_is_for_development(catalog: Catalog) -> None:
    """Nor does an image, by its environment or by a flag."""
    for name in catalog.images:
        text = (ROOT / f"images/{name}/Dockerfile").read_text() + catalog.images[name].model_dump_json()
        assert [word for word in DEVELOPMENT if re.search(rf"{word}\w*=|{word.lower().replace('_', '-')}\"", text)] == []


def test_a_pod_has_no_rights_to_spare(pods: list[tuple[str, dict[str, Any]]]) -> None:
    """The same on Kubernetes: an ordinary user, a read-only root, no capabilities, no account of the cluster's, nothing of the host's."""
    for stack, spec in pods:
        assert spec["securityContext"]["runAsNonRoot"] is True, stack
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, stack
        assert spec["automountServiceAccountToken"] is False, stack
        assert {"hostNetwork", "hostPID", "hostIPC"} & {key for key, value in spec.items() if value} == set(), stack
        assert [volume for volume in spec.get("volumes", []) if "hostPath" in volume] == [], stack
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            context = container["securityContext"]
            assert context == {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, stack
            assert [port for port in container.get("ports", []) if port.get("hostPort")] == [], stack


@pytest.mark.fault(24)
@pytest.mark.fault(26)
def test_fault_24_26_a_pod_gets_secrets_as_files(pods: list[tuple[str, dict[str, Any]]]) -> None:
    """No variable holds a secret or is filled from one, where every child process would show it; none is for developers."""
    for stack, spec in pods:
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert not container.get("envFrom"), stack
            variables = container.get("env", [])
            assert [variable for variable in variables if "secretKeyRef" in variable.get("valueFrom", {})] == [], stack
            named = [variable["name"] for variable in variables if SECRET.search(variable["name"]) and variable.get("value")]
            assert [name for name in named if not name.endswith("_FILE")] == [], stack
            assert [variable["name"] for variable in variables if any(word in variable["name"] for word in DEVELOPMENT)] == [], stack


def test_services_on_kubernetes_stay_inside(catalog: Catalog) -> None:
    """Nothing asks for a port of the nodes or an address of a load balancer."""
    for stack in catalog.stacks:
        for item in forms.objects(forms.render(catalog, stack, "k8s", gateway=True)):
            assert item["kind"] != "Service" or item["spec"].get("type", "ClusterIP") == "ClusterIP"
