"""Every form of the demo stacks, taken by the launcher in the real image: role and command of each node."""

from __future__ import annotations

import json
from pathlib import Path

import containers
import forms
import pytest
from image.conftest import ROOT

from engineroom.catalog import Catalog
from engineroom.errors import CannotRun

pytestmark = pytest.mark.containers
CATALOG = Catalog(ROOT)


@pytest.mark.parametrize("form", forms.READERS)
@pytest.mark.parametrize("stack", ["demo-cpu", "demo-cpu-two-nodes"])
def test_launcher_takes_its_role(image: str, stack: str, form: str, tmp_path: Path) -> None:
    """With what form and scheduler set, `launch serve --dry-run` in the image gives each node its role and the stack's layout."""
    token, row = tmp_path / "token", CATALOG.stacks[stack]
    token.write_text("of a test")
    token.chmod(0o444)
    try:
        nodes = forms.nodes(CATALOG, stack, form)
    except CannotRun:
        assert (stack, form) == ("demo-cpu-two-nodes", "kuberay")
        return
    plans = []
    for node in nodes:
        env = {**node.environment, **node.scheduler, "LAUNCH_IMAGE": "/etc/engineroom/image.json"}
        env |= {"LAUNCH_CLUSTER_TOKEN_FILE": "/token"} if row.nodes > 1 else {}
        output = containers.run(
            image, ["serve", "--dry-run", "--json"], environment=env, hostname=node.scheduler.get("HOSTNAME", "node"),
            volumes={str(token): {"bind": "/token", "mode": "ro"}}, shm_size=f"{node.shm_gib or 1}g",
        )  # fmt: skip
        plans.append(json.loads(output))

    assert [plan["role"] for plan in plans] == (["single"] if row.nodes == 1 else ["head"] + ["worker"] * (row.nodes - 1))
    for rank, plan in enumerate(plans):
        assert plan["command"][:3] == ["vllm", "serve", "/opt/models/demo-r1"]
        assert (plan["tp"], plan["pp"]) == (row.tensor_parallel, row.pipeline_parallel)
        assert {check["status"] for check in plan["checks"]} == {"ok"}
        if row.nodes > 1:
            assert (plan["cluster"]["nodes"], plan["cluster"]["rank"] in (rank, None)) == (row.nodes, True)
