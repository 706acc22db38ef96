"""`engineroom jobs`: what is refused and why, and where options end up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forms
import pytest
import yaml
from click.testing import CliRunner, Result

from engineroom import cli, jobs
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotBuild, CannotRun, EngineRoomError, UnknownName
from engineroom.forms import FORMS


def run(*arguments: str) -> Result:
    """`engineroom jobs` with these arguments."""
    return CliRunner().invoke(cli.cli, ["jobs", *arguments])


@pytest.mark.parametrize(
    ("stack", "options", "error", "reason"),
    [
        ("r1-h200", {"node_selector": {"nvidia.com/gpu.count": "4"}}, CannotRun, "takes 8 GPUs of a node, and those have 4"),
        ("r1-32b-v100", {"node_selector": {"nvidia.com/gpu.count": "2"}}, CannotRun, "takes 4 GPUs of a node, and those have 2"),
        ("r1-h200", {"node_selector": {"nvidia.com/gpu.memory": "81920"}}, CannotRun, "140 GiB a GPU, and those have 80"),
        ("r1-h200", {"node_selector": {"nvidia.com/gpu.compute.major": "8"}}, CannotRun, "capability 9.0, and those are 8.x"),
        (
            "r1-h200",
            {"node_selector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
            CannotRun,
            "h200-fp8 is for NVIDIA H100, NVIDIA H200",
        ),
        ("r1-h200", {"node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}, CannotRun, "a NVIDIA H100 has less"),
        ("r1-7b-v100", {"node_selector": {"accelerator": "h200"}}, CannotRun, "v100-half is for NVIDIA V100"),
        ("r1-32b-v100", {"gang_size": 1}, CannotRun, "a gang of 1 for a stack of 2 nodes: the others may never come"),
        ("r1-32b-v100", {"gang_size": 3}, CannotRun, "so many never come"),
        ("r1-7b-v100", {"gang_size": 2}, CannotRun, "a gang of 2 for a stack of 1 node: so many never come"),
        ("demo-cpu", {"namespace": "Team_A"}, BadRequest, "'Team_A' is no name of a namespace"),
        ("demo-cpu", {"namespace": "a" * 64}, BadRequest, "at most 63"),
        ("demo-cpu", {"namespace": "-a"}, BadRequest, "beginning and ending"),
        (
            "r1-7b-v100",
            {"model": "someone/else"},
            BadRequest,
            "no hub id in images/models.toml.*--models WHERE --model /models/NAME.\nKnown: dee",
        ),
        ("r1-7b-v100", {"model": "someone/else", "models": "weights"}, BadRequest, "its size is not known"),
        ("r1-7b-v100", {"model": "/models/mine"}, BadRequest, "nothing is mounted there. Say what holds it with --models"),
        ("r1-7b-v100", {"models": "/data/models"}, BadRequest, "'/data/models' is no name of a claim"),
        ("r1-7b-v100", {"model": "/data/mine", "models": "weights"}, BadRequest, "folders are below /models"),
        ("r1-7b-v100", {"url": "chat.example"}, BadRequest, "'chat.example' is no address of a page"),
        ("r1-7b-v100", {"url": "http://localhost:99999"}, BadRequest, "is no address of a page: write it like"),
        ("r1-7b-v100", {"url": "https://[::1"}, BadRequest, "is no address of a page"),
        ("r1-7b-v100", {"url": "https://me@chat.example"}, BadRequest, "is no address of a page"),
        ("r1-7b-v100", {"hf_token": "My Secret"}, BadRequest, "'My Secret' is no name"),
        ("r1-7b-v100", {"storage_class": "fast\nspec: {}"}, BadRequest, "is no name"),
        ("v3-a100x2", {}, CannotBuild, "313 GiB on each of two A100"),
        ("r1-7b-v10", {}, UnknownName, "Did you mean 'r1-7b-v100'"),
    ],
)
def test_what_cannot_be_is_refused(
    catalog: Catalog, stack: str, options: dict[str, Any], error: type[EngineRoomError], reason: str
) -> None:
    """Wrong input is refused with the reason, before anything is written."""
    with pytest.raises(error, match=reason) as raised:
        forms.render(catalog, stack, "k8s", **options)

    assert raised.value.exit_code in (2, 78)


def test_a_selector_that_fits_takes_the_place_of_gpu_labels(catalog: Catalog) -> None:
    """Without an own selector pods look for NVIDIA's labels; with one, for it alone."""
    pods = [
        forms.objects(forms.render(catalog, "r1-h200", "k8s", node_selector=selector))[0]["spec"]["template"]["spec"]
        for selector in ({}, {"nvidia.com/gpu.count": "8", "pool": "big"})
    ]

    rules = pods[0]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0][
        "matchExpressions"
    ]
    assert {rule["key"]: (rule["operator"], *rule["values"]) for rule in rules} == {
        "nvidia.com/gpu.compute.major": ("In", "9"),
        "nvidia.com/gpu.compute.minor": ("In", "0"),
        "nvidia.com/gpu.memory": ("Gt", str(int(139.8 * 1024 * 0.95))),
        "nvidia.com/gpu.count": ("Gt", "7"),
    }
    assert "affinity" not in pods[1]
    assert pods[1]["nodeSelector"] == {"nvidia.com/gpu.count": "8", "pool": "big"}


@pytest.mark.parametrize("form", ["k8s", "lws", "kuberay", "volcano"])
def test_options_reach_the_objects(catalog: Catalog, form: str) -> None:
    """Namespace, storage class, secrets, models and address stand where Kubernetes looks for them."""
    found = forms.objects(
        forms.render(
            catalog, "r1-32b-v100", form,
            namespace="llm", storage_class="fast", hf_token="hub", cluster_token="ring", models="weights", model="/models/mine",
            url="https://chat.example",
        )
    )  # fmt: skip

    assert {item["metadata"]["namespace"] for item in found} == {"llm"}
    text = yaml.safe_dump(found)
    claims = [item for item in found if item["kind"] == "PersistentVolumeClaim"]
    assert {claim["spec"]["storageClassName"] for claim in claims} == {"fast"}
    assert "r1-32b-v100-weights" not in text  # the model is on the user's own volume
    page = next(item for item in found if item["kind"] == "Deployment" and item["metadata"]["name"].endswith("-page"))
    settings = {variable["name"]: variable["value"] for variable in page["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert settings["WEBUI_URL"] == settings["CORS_ALLOW_ORIGIN"] == "https://chat.example"
    for node in forms.READERS[form](found, "r1-32b-v100", 2):
        assert node.environment["LAUNCH_MODEL"] == "/models/mine"
        assert node.environment["HF_TOKEN_FILE"] == "/run/engineroom/hf_token"
        assert {"/models", "/run/engineroom"} <= node.mounts
    assert "name: hub\n" in text
    assert "name: ring\n" in text


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off", "y", "N", "1_000", "0b101", "12:30", "1e3", "007", "null", "~"])
def test_words_that_yaml_1_1_takes_for_others_stay_strings(catalog: Catalog, word: str) -> None:
    """Kubectl reads YAML 1.1, as this reader does, to which `gpu: yes` is a boolean and `no` is no name; keys too."""
    text = forms.render(catalog, "r1-7b-v100", "k8s", node_selector={"gpu": word, word: "gpu"})

    pod = forms.objects(text)[0]["spec"]["template"]["spec"]

    assert pod["nodeSelector"] == {"gpu": word, word: "gpu"}
    assert f'"{word}"' in next(iter(text.values()))  # one-letter words are booleans to kubectl, not to this reader


@pytest.mark.parametrize("form", FORMS)
def test_what_holds_models(catalog: Catalog, form: str) -> None:
    """A claim on Kubernetes, where a folder would be refused by the cluster; a folder elsewhere."""
    folder = "public/models" if form == "crater" else "/data/models"
    if form in ("slurm", "crater"):
        assert forms.render(catalog, "r1-7b-v100", form, models=folder, model="/models/mine")
    else:
        assert forms.render(catalog, "r1-7b-v100", form, models="weights.v2", model="/models/mine")
        with pytest.raises(BadRequest, match="is no name of a claim"):
            forms.render(catalog, "r1-7b-v100", form, models=folder, model="/models/mine")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://chat.example/", "https://chat.example"),
        ("HTTPS://Chat.Example:443", "https://chat.example"),
        ("http://chat.example:80/", "http://chat.example"),
        ("http://chat.example:443", "http://chat.example:443"),
        ("http://[FD00::1]:8080", "http://[fd00::1]:8080"),
    ],
)
@pytest.mark.parametrize("form", ["k8s", "helm"])
def test_the_page_s_address_is_what_browsers_send(catalog: Catalog, url: str, origin: str, form: str) -> None:
    """A page that asks from any other spelling of its address is turned away; the chart's schema takes it."""
    found = forms.objects(forms.render(catalog, "r1-7b-v100", form, url=url))

    (page,) = (item for item in found if item["kind"] == "Deployment" and item["metadata"]["name"] == "r1-7b-v100-page")
    settings = {variable["name"]: variable["value"] for variable in page["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert settings["WEBUI_URL"] == settings["CORS_ALLOW_ORIGIN"] == origin


@pytest.mark.parametrize(("stack", "other"), [("r1-7b-v100", "r1-14b"), ("demo-cpu", "r1-1.5b")])
@pytest.mark.parametrize("form", ["k8s", "helm"])
def test_another_model_brings_its_own_size(catalog: Catalog, stack: str, other: str, form: str) -> None:
    """Disk, deadline and name are those of the model that is served, also in place of one that is in the image or has a deadline of its own."""
    model = catalog.models[other]

    found = forms.objects(forms.render(catalog, stack, form, model=model.hub))

    node = next(forms.READERS[form](found, stack, 1))
    (claim,) = (item for item in found if item["metadata"]["name"] == f"{stack}-weights")
    start = 600 + model.bytes // 20_000_000
    assert (node.environment["LAUNCH_MODEL"], node.environment["LAUNCH_MODEL_NAME"]) == (model.hub, other)
    assert node.environment["LAUNCH_START_SECONDS"] == str(start)
    assert node.startup > start
    assert "/cache/huggingface" in node.mounts
    assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30 > model.bytes
    (page,) = (item for item in found if item["kind"] == "Deployment" and item["metadata"]["name"] == f"{stack}-page")
    assert {"name": "DEFAULT_MODELS", "value": other} in page["spec"]["template"]["spec"]["containers"][0]["env"]


def test_who_may_reach_what(catalog: Catalog) -> None:
    """The API is open to page and gateway alone, the nodes' other ports to the nodes, the page to the gateway."""
    policies = {
        item["metadata"]["name"]: item["spec"]
        for item in forms.objects(forms.render(catalog, "r1-32b-v100", "k8s"))
        if item["kind"] == "NetworkPolicy"
    }

    def opened(policy: str) -> list[tuple[set[str], object]]:
        return [
            (
                {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"]},
                [port["port"] for port in rule.get("ports", [])],
            )
            for rule in policies[policy]["ingress"]
        ]

    assert opened("r1-32b-v100-engine") == [({"page", "gateway"}, [8000]), ({"engine"}, [])]
    assert opened("r1-32b-v100-page") == [({"gateway"}, [8080])]
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress"]


def test_files_are_written_where_asked(tmp_path: Path) -> None:
    """A form of one file is printed, and written instead with --out."""
    printed = run("demo-cpu", "--to", "k8s")
    written = run("demo-cpu", "--to", "k8s", "--out", str(tmp_path / "new"))

    assert (printed.exit_code, written.exit_code) == (0, 0), (printed.output, written.output)
    assert written.stdout == f"{tmp_path}/new/demo-cpu.k8s.yaml\n"
    assert (tmp_path / "new/demo-cpu.k8s.yaml").read_text() == printed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo-cpu"], "Missing option '--to'"),
        (["demo-cpu", "--to", "nomad"], "'nomad' is not one of"),
        (["demo-cpu", "--to", "k8s", "--node-selector", "x"], "'x' is no KEY=VALUE"),
        (["demo-cpu", "--to", "k8s", "--gang-size", "0"], "0 is not in the range"),
    ],
)
def test_bad_usage(arguments: list[str], said: str) -> None:
    """Wrong usage ends with 2 and names what is wrong."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert said in result.output


def test_names_are_fit_for_kubernetes(catalog: Catalog) -> None:
    """The longest name that any form derives from a stack's fits a DNS label."""
    for stack in catalog.stacks:
        assert jobs.DNS_LABEL.fullmatch(f"{jobs.label(stack)}-cluster-token"), stack
