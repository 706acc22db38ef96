"""Crater's documents under the portal's own rules, and the Volcano jobs that they become."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from conftest import ROOT
from crater_forms import load
from pydantic import ValidationError
from ruamel.yaml import YAML

from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotRun
from engineroom.host import Host
from engineroom.jobs import Options, render
from engineroom.stacks import served

STACKS = list(Catalog(ROOT).stacks)


@cache
def files(stack: str) -> dict[str, str]:
    return render(Catalog(ROOT), Host.load(ROOT, {}), stack, "crater", Options(models="public/models"))


def engine(stack: str) -> dict[str, Any]:
    return dict(json.loads(files(stack)[f"{stack}.json"]))


def page(stack: str) -> dict[str, Any]:
    return dict(json.loads(files(stack)[f"{stack}-page.json"]))


def volcano(stack: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(files(stack)[f"{stack}-volcano.yaml"]))


@pytest.mark.parametrize("stack", STACKS)
def test_every_document_keeps_the_forms_rules(stack: str, catalog: Catalog) -> None:
    """Engine and page can be imported and submitted as they are; several nodes are a PyTorch job."""
    assert load(engine(stack)).type == ("pytorch" if catalog.stacks[stack].nodes > 1 else "custom")
    assert load(page(stack)).type == "custom"


def task(document: dict[str, Any]) -> dict[str, Any]:
    return dict(document["data"]).get("ps") or document["data"]["task"]


ONE, TWO, PAGE = "r1-7b-v100", "r1-32b-v100", "r1-7b-v100-page"
FORWARD = {"name": "api", "port": 8000}
WRONG: list[tuple[str, str, object]] = [
    (ONE, "version", "20250317"),
    (ONE, "version", 20260707),
    (ONE, "type", "single"),
    (ONE, "data.jobName", ""),
    (ONE, "data.jobName", "a" * 41),
    (ONE, "data.envs.0.name", "1A"),
    (ONE, "data.envs.0.name", "LAUNCH_MODEL_NAME"),  # twice
    (ONE, "data.envs.0.value", ""),
    (ONE, "data.envs.0.value", 1),
    (PAGE, "data.forwards.0.name", "page1"),
    (PAGE, "data.forwards.0.name", "Page"),
    (PAGE, "data.forwards.0.name", ""),
    (PAGE, "data.forwards.0.name", "a" * 21),
    (PAGE, "data.forwards.0.port", 0),
    (PAGE, "data.forwards.0.port", "8080"),
    (PAGE, "data.forwards", None),
    (TWO, "data.forwards", [FORWARD]),
    (ONE, "data.volumeMounts.0.mountPath", "cache"),
    (ONE, "data.volumeMounts.0.mountPath", "/"),
    (ONE, "data.volumeMounts.0.mountPath", "/a/../b"),
    (ONE, "data.volumeMounts.0.mountPath", "//cache"),
    (PAGE, "data.volumeMounts.0.mountPath", "/app/backend/data"),  # twice
    (ONE, "data.volumeMounts.0.subPath", "home/me"),
    (ONE, "data.volumeMounts.0.subPath", ""),
    (ONE, "data.volumeMounts.0.type", 2),
    (ONE, "data.task.resource.cpu", 0.5),
    (ONE, "data.task.resource.cpu", -1),
    (ONE, "data.task.resource.memory", "32Gi"),
    (ONE, "data.task.resource.gpu.count", -1),
    (ONE, "data.task.resource.gpu.model", None),
    (ONE, "data.task.resource.gpu.model", "v100"),
    (ONE, "data.task.resource.network.enabled", True),
    (TWO, "data.ps.resource.network", {"enabled": True, "model": "rdma/hca"}),  # the worker has none
    (ONE, "data.task.image", "engineroom:cpu"),
    (ONE, "data.task.image.imageLink", ""),
    (ONE, "data.task.image.archs", []),
    (ONE, "data.task.command", "echo $$"),
    (ONE, "data.task.workingDir", None),
    (ONE, "data.task.shell", "zsh"),
    (ONE, "data.task.ports", [{"name": "an-api-with-a-long-name", "port": 8000}]),
    (ONE, "data.task.replicas", 0),
    (TWO, "data.ps.replicas", 2),
    (TWO, "data.ps.taskName", "head"),
    (TWO, "data.worker.taskName", "worker0"),
    (TWO, "data.worker.replicas", 0),
    (ONE, "data.nodeSelector.enable", True),
    (ONE, "data.nodeSelector.mode", "only"),
    (ONE, "data.scheduleType", 2),
    (ONE, "data.alertEnabled", "true"),
    (ONE, "data.namespace", "mine"),  # a field that nobody reads
]


@pytest.mark.parametrize(("name", "where", "value"), WRONG)
def test_the_rules_refuse_what_the_portal_would(name: str, where: str, value: object) -> None:
    """The control: one wrong value, and every error is about it or about what it is a part of."""
    document = json.loads(files(name.removesuffix("-page"))[f"{name}.json"])
    load(document)
    *path, last = where.split(".")
    place: Any = document
    for step in path:
        place = place[int(step) if step.isdigit() else step]

    place[last] = value

    with pytest.raises(ValidationError) as error:
        load(document)
    for found in error.value.errors():
        said = ".".join(str(step) for step in found["loc"][2:])
        assert where.startswith(said) or said.startswith(where), found


@pytest.mark.parametrize("stack", STACKS)
def test_settings_are_the_stacks_own(stack: str, catalog: Catalog) -> None:
    """Nothing of the row is lost or changed, but for the drain, which has to end within Kubernetes' 30 s."""
    row = served(catalog, stack)
    found = {env["name"]: env["value"] for env in engine(stack)["data"]["envs"]}
    wanted = {name: variable.value for name, variable in row["engine_environment"].items()} | {"LAUNCH_DRAIN_SECONDS": "15"}

    assert wanted.items() <= found.items()
    assert found["LAUNCH_MODEL"] == row["model"]
    assert ("LAUNCH_CLUSTER_TOKEN_FILE" in found) == row["clustered"]
    resource = task(engine(stack))["resource"]
    assert resource["gpu"]["count"] == row["gpus"]
    assert resource["memory"] > row["shm_gib"]


@pytest.mark.parametrize("stack", STACKS)
def test_the_page_has_all_its_settings(stack: str, catalog: Catalog) -> None:
    """What a form cannot say, an empty value, the command does; the server's address comes from the engine and not from the form."""
    settings = served(catalog, stack)["page_settings"]
    data = page(stack)["data"]
    found = {env["name"]: env["value"] for env in data["envs"]}

    empty = {name for name, variable in settings.items() if not variable.value}
    assert {name: variable.value for name, variable in settings.items() if name not in empty}.items() <= found.items()
    assert empty == set(re.findall(r" (\w+)=(?=[ \n])", data["task"]["command"]))
    assert empty == {"OPENAI_API_KEYS"}
    assert "OPENAI_API_BASE_URLS" not in found
    assert data["forwards"] == [{"name": "page", "port": 8080}]


def test_two_nodes_of_four_v100() -> None:
    """The guide's layout: one head and one worker with four GPUs each, in one gang, and a head whose end is the job's."""
    document, job = engine("r1-32b-v100"), volcano("r1-32b-v100")[0]

    assert [document["data"][role]["resource"]["gpu"] for role in ("ps", "worker")] == [{"count": 4, "model": "nvidia.com/v100"}] * 2
    assert job["spec"]["minAvailable"] == 2
    assert job["spec"]["plugins"] == {"pytorch": ["--master=master", "--worker=worker", "--port=23456"]}
    master, worker = job["spec"]["tasks"]
    assert {policy["event"]: policy["action"] for policy in master["policies"]} == {
        "TaskCompleted": "CompleteJob",
        "PodFailed": "TerminateJob",
    }
    assert (master["template"]["spec"]["restartPolicy"], worker["template"]["spec"]["restartPolicy"]) == ("Never", "OnFailure")
    for part in (master, worker):
        assert part["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/v100"] == "4"


@pytest.mark.parametrize("stack", STACKS)
def test_volcano_jobs_are_those_of_the_documents(stack: str) -> None:
    """Command, image, settings and mounts go over as they are; names fit what Crater and Volcano make of them."""
    for document, job in zip((engine(stack), page(stack)), volcano(stack), strict=True):
        data = document["data"]
        tasks = [data[role] for role in ("ps", "worker", "task") if role in data]
        name = job["metadata"]["name"]
        assert re.fullmatch(r"(sg|pyt)-[a-z][a-z0-9]*-\d{6}-[0-9a-f]{5}", name)
        assert name.startswith("pyt-" if document["type"] == "pytorch" else "sg-")
        assert len(name) <= 45
        for form, made in zip(tasks, job["spec"]["tasks"], strict=True):
            (container,) = made["template"]["spec"]["containers"]
            assert container["command"] == ["sh", "-c", form["command"]]
            assert container["image"] == form["image"]["imageLink"]
            assert container["env"][: len(data["envs"])] == data["envs"]
            assert [mount["mountPath"] for mount in container["volumeMounts"]] == [
                "/dev/shm",
                *(mount["mountPath"] for mount in data["volumeMounts"]),
            ]
            assert container["resources"]["requests"]["memory"] == f"{form['resource']['memory']}Gi"
            assert len(f"{name}-{made['name']}-{made['replicas'] - 1}") <= 63


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (Options(namespace="mine"), BadRequest, "one namespace"),
        (Options(storage_class="fast"), BadRequest, "one namespace and one volume"),
        (Options(hf_token="hub"), BadRequest, "know no secrets"),
        (Options(cluster_token="mine"), BadRequest, "know no secrets"),
        (Options(node_selector={"zone": "b"}), BadRequest, "know no label zone"),
        (Options(models="/data/models"), BadRequest, "below `user`, `account` or `public`"),
        (Options(models="user/../other"), BadRequest, "below `user`, `account` or `public`"),
        (Options(gang_size=1), CannotRun, "a gang of 1 for a stack of 2 nodes"),
    ],
)
def test_what_the_forms_cannot_say_is_refused(catalog: Catalog, options: Options, kind: type[Exception], said: str) -> None:
    """With the reason, and with what to type."""
    with pytest.raises(kind, match=said):
        render(catalog, Host.load(ROOT, {}), "r1-32b-v100", "crater", options)


def test_a_name_that_the_form_does_not_take_is_refused(copy: Any) -> None:
    """Forty characters, the page's ending among them."""
    stacks = copy / "compose/stacks.toml"
    long = "r1-7b-v100-for-the-whole-department-x"
    stacks.write_text(stacks.read_text().replace("[r1-7b-v100]", f"[{long}]"))

    with pytest.raises(CannotRun, match=f"{long}-page has {len(long) + 5}"):
        render(Catalog(copy), Host.load(copy, {}), long, "crater", Options())


def test_a_node_can_be_named(catalog: Catalog) -> None:
    """The one label that the form knows."""
    options = Options(node_selector={"kubernetes.io/hostname": "gpu17"})
    found = render(catalog, Host.load(ROOT, {}), "r1-7b-v100", "crater", options)

    document = json.loads(found["r1-7b-v100.json"])
    load(document)
    assert document["data"]["nodeSelector"] == {"enable": True, "mode": "include", "nodes": ["gpu17"]}
    affinity = YAML(typ="safe").load_all(found["r1-7b-v100-volcano.yaml"]).__next__()["spec"]["tasks"][0]["template"]["spec"]["affinity"]
    assert "gpu17" in json.dumps(affinity)
