"""What KubeRay does around the launcher, without KubeRay: its variables, and the container before each worker that waits for Ray."""

from __future__ import annotations

from pathlib import Path

import containers
import forms
import pytest
from cluster.nodes import ROOT, TOKEN, Stack
from docker.errors import ContainerError
from docker.types import Mount

from engineroom.catalog import Catalog

pytestmark = pytest.mark.containers
SERVICE = "r1-32b-v100-head-svc.default.svc.cluster.local"


def test_nodes_meet_under_kuberay(stack: Stack, tmp_path: Path) -> None:
    """The form's token is what Ray takes from KubeRay's waiting container; then head and worker take their roles, and meet.

    Source of that container: DefaultWorkerPodTemplate in ray-project/kuberay, ray-operator/controllers/ray/common/pod.go.
    """
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "cluster_token").write_text(f"{TOKEN}\n")
    mounts = [Mount("/run/engineroom", str(secrets), type="bind", read_only=True)]
    head_env, worker_env = (node_environment(node) for node in forms.nodes(Catalog(ROOT), "r1-32b-v100", "kuberay"))
    unsaid = {"LAUNCH_ROLE": "-", "LAUNCH_HEAD": "-", "LAUNCH_CLUSTER_TOKEN": "-"}

    head = stack.start("head", options={"mounts": mounts}, **unsaid, **head_env)
    head.wait_for("Ray runs on")
    waiting = {
        "entrypoint": ["/bin/bash", "-c", "--"],
        "network": stack.network.name,
        "mounts": mounts,
        "mem_limit": "256m",
    }
    question = ["ray health-check --address head:6379"]
    containers.run(stack.image, question, environment=worker_env, read_only=True, tmpfs={"/tmp": ""}, **waiting)
    with pytest.raises(ContainerError, match="token is missing or incorrect"):
        containers.run(stack.image, question, environment={**worker_env, "RAY_AUTH_MODE": "disabled"}, **waiting)
    worker = stack.start("worker", options={"mounts": mounts}, **unsaid, **worker_env)
    head.wait_for("ready after")

    worker.wait_for("the head is ready")
    assert "KubeRay's head group" in head.logs
    assert "KubeRay's FQ_RAY_IP" in worker.logs


def node_environment(node: forms.Node) -> dict[str, str]:
    """What KubeRay and its form set for a node, with this network's name for the head; the stub keeps a model and a layout of its own."""
    ours = {name: node.environment[name] for name in ("LAUNCH_NODES", "LAUNCH_CLUSTER_TOKEN_FILE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    return {name: value.replace(SERVICE, "head") for name, value in {**ours, **node.scheduler}.items()}
