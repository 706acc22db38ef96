"""One row, every scheduler's form: they say the same, and the launcher makes the same of each."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import forms
import pytest
from click.testing import CliRunner

from engineroom import stacks
from engineroom.catalog import Catalog
from engineroom.cli import stacks as commands
from engineroom.errors import CannotRun
from engineroom.forms import FORMS
from launcher import cli, raynode

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)


NO_FORM = {("demo-cpu-two-nodes", "kuberay")}  # its nodes do not use Ray
BOTH = pytest.mark.parametrize(
    ("stack", "form"), [(stack, form) for stack in CATALOG.stacks for form in forms.READERS if (stack, form) not in NO_FORM]
)
ROLE = {"LAUNCH_ROLE", "LAUNCH_HEAD"}  # what tells nodes apart, where the scheduler does not


def test_every_form_is_read_back() -> None:
    """No form is left out here, and the command line offers each."""
    assert set(forms.READERS) == set(FORMS) == set(commands.FORM_NAMES)


@pytest.mark.parametrize(("stack", "form"), sorted(NO_FORM))
def test_what_has_no_form_is_refused(stack: str, form: str) -> None:
    """Everything can be everywhere, but stacks of several nodes that do not use Ray under KubeRay."""
    with pytest.raises(CannotRun):
        forms.render(CATALOG, stack, form)


@BOTH
def test_forms_say_the_same(stack: str, form: str) -> None:
    """Image, settings, GPUs, shared memory, mounts, deadlines and probes of each node are those of the stack's row."""
    row, served = CATALOG.stacks[stack], stacks.served(CATALOG, stack)
    settings = {name: variable.value for name, variable in served["engine_environment"].items()}
    inside = served["model"].startswith("/")
    if form == "crater":
        settings["LAUNCH_DRAIN_SECONDS"] = "15"  # its pods have Kubernetes' own grace period, 30 s

    found = forms.nodes(CATALOG, stack, form)

    assert [node.rank for node in found] == list(range(row.nodes))
    for node in found:
        assert node.image.endswith(served["image"])
        assert {name: value for name, value in node.environment.items() if name in settings} == settings
        assert (node.environment["LAUNCH_MODEL"], node.environment["LAUNCH_MODEL_NAME"]) == (served["model"], served["model_name"])
        assert ("LAUNCH_CLUSTER_TOKEN_FILE" in node.environment) == (row.nodes > 1)
        assert node.gpus == row.gpus
        if form == "crater":  # it cannot say the rest: tests/unit/test_crater.py
            continue
        assert node.shm_gib == served["shm_gib"]
        assert {"/cache", "/dev/shm", "/tmp"} <= node.mounts
        assert node.grace >= served["stop_seconds"]
        if form == "slurm":  # one folder of the user's holds everything, and the launcher's own deadlines have to do
            continue
        assert ("/cache/huggingface" in node.mounts) != inside
        assert 60 <= node.startup - served["healthy_seconds"] < 70  # the launcher ends by itself first, with a status
        assert node.probes == ("launch health --ready", "launch health --ready", "launch health")


@BOTH
def test_round_trip(stack: str, form: str, stub_gpus: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what the scheduler sets, the launcher takes the right role on every node, and its engine the stack's layout."""
    row = CATALOG.stacks[stack]
    monkeypatch.setattr(raynode, "version", lambda: "2.55.1")
    (tmp_path / "cluster_token").write_text("0123456789abcdef")
    if row.gpus:
        kind, _, gib = row.gpu.rpartition("-")
        stub_gpus(f"{row.gpus}*{CATALOG.gpus[kind].title}:{CATALOG.gpus[kind].compute_capability}:{gib}")

    decided = [dry_run(node, row.image, tmp_path) for node in forms.nodes(CATALOG, stack, form)]

    assert [plan["role"] for plan in decided] == (["single"] if row.nodes == 1 else ["head"] + ["worker"] * (row.nodes - 1))
    for rank, plan in enumerate(decided):
        assert (plan["tp"], plan["pp"]) == (row.tensor_parallel, row.pipeline_parallel)
        assert plan["max_model_len"] == row.max_model_len
        if row.nodes > 1:
            assert plan["cluster"]["nodes"] == row.nodes
            assert plan["cluster"]["rank"] in (rank, None)
            assert plan["cluster"]["head"] or rank == 0
    heads = {plan["cluster"]["head"] for plan in decided if plan["cluster"] and plan["role"] == "worker"}
    assert len(heads) == (row.nodes > 1)
    # Helm sorts a pod's variables, so that flags may come in another order.
    assert sorted(decided[0]["command"]) == sorted(dry_run(by_hand(stack), row.image, tmp_path)["command"])


@functools.cache
def by_hand(stack: str) -> forms.Node:
    """The first node of plain Kubernetes, with its role spelled out: what every other form must come to."""
    return forms.nodes(CATALOG, stack, "k8s")[0]


def dry_run(node: forms.Node, image: str, secrets: Path) -> dict[str, object]:
    """What the launcher decides on a node, without GPUs or a model: its checks only warn."""
    env = {**node.environment, **node.scheduler, "LAUNCH_IMAGE": str(ROOT / "images" / image / "image.json"), "LAUNCH_CHECKS": "warn"}
    env["LAUNCH_MODEL"] = env["LAUNCH_MODEL"].replace("/opt/models", str(ROOT / "models"))  # where the image has it from
    if "LAUNCH_CLUSTER_TOKEN_FILE" in env:
        env["LAUNCH_CLUSTER_TOKEN_FILE"] = str(secrets / "cluster_token")
    result = CliRunner().invoke(cli.cli, ["serve", "--dry-run", "--json"], env=env)
    assert result.exception is None, (result.exception, result.output)
    return dict(json.loads(result.output))
