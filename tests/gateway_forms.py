"""The gateway of a stack, read back from compose and from every scheduler's form: its settings, and where its addresses lead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forms
import yaml

from engineroom.catalog import Catalog
from gateway import start

ROOT = Path(__file__).parents[1]
OF_THE_PLACE = {"GATEWAY_ENGINES", "GATEWAY_PAGE", "GATEWAY_NAMES", "GATEWAY_SERVICE"}  # names differ; the rest must not

Object = dict[str, Any]


class Gateway(NamedTuple):
    """`settings` are those that it would have, defaults of the image included; `engines` and `page` the components that its addresses lead to."""

    image: str
    settings: dict[str, str]
    engines: str
    page: str
    files: frozenset[str]
    seconds: int


def effective(environment: dict[str, str]) -> dict[str, str]:
    """What the gateway makes of its variables."""
    return {name: value for name, value in start.read_settings(environment).items() if name not in OF_THE_PLACE}


def compose(catalog: Catalog, stack: str) -> Gateway:
    """From a stack's compose file, with nothing set on the machine."""
    text = re.sub(r"\$\{\w+:-([^{}]*)\}", r"\1", (ROOT / f"compose/{stack}.yaml").read_text())
    services = yaml.load(text, yaml.CSafeLoader)["services"]
    service, engine, page = services[f"{stack}-gateway"], services[f"{stack}-engine"], services[stack]
    places = {f"{stack}-engine:8000": "engine", f"{stack}:8080": "page"}
    if service.get("network_mode") == "host":
        places = {
            f"127.0.0.1:{engine['environment']['LAUNCH_PORT']}": "engine",
            f"127.0.0.1:{page['environment']['PORT']}": "page",
        }
    environment = service["environment"]
    return Gateway(
        service["image"],
        effective(environment),
        places[environment["GATEWAY_ENGINES"]],
        places[environment["GATEWAY_PAGE"]],
        frozenset(secret["target"] for secret in service["secrets"]),
        int(service["stop_grace_period"].removesuffix("s")),
    )


def pods(item: Any) -> list[Object]:
    """Templates of pods in an object, however deep; Helm's and Kubernetes' own."""
    if isinstance(item, dict):
        if "containers" in item.get("spec", {}) and "metadata" in item:
            return [item]
        return [pod for value in item.values() for pod in pods(value)]
    return [pod for value in item for pod in pods(value)] if isinstance(item, list) else []


def component(found: list[Object], place: str, labelled: dict[str, str]) -> str:
    """Whose pods a Service leads to at that port, which must listen there."""
    name, _, port = place.partition(":")
    (spec,) = (item["spec"] for item in found if (item["kind"], item["metadata"]["name"]) == ("Service", name))
    led = []
    for pod in pods(found):
        labels = pod["metadata"]["labels"]
        if spec["selector"].items() <= (labels | (labelled if labels["app.kubernetes.io/component"] == "engine" else {})).items():
            led.append(pod)
    assert led, f"{place} leads nowhere"
    (component,) = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in led}
    (listens,) = led[0]["spec"]["containers"][0]["ports"]
    if spec.get("clusterIP") == "None":
        assert listens["containerPort"] == int(port)
    else:
        assert (spec["ports"][0]["port"], spec["ports"][0]["targetPort"]) == (int(port), listens["name"])
    return str(component)


def kubernetes(catalog: Catalog, stack: str, form: str) -> Gateway:
    """From a form's objects. `labelled` are the labels that a controller gives to the pod with the API."""
    label = stack.replace(".", "-")
    labelled = {
        "lws": {"leaderworkerset.sigs.k8s.io/name": label, "leaderworkerset.sigs.k8s.io/worker-index": "0"},
        "kuberay": {"ray.io/cluster": label, "ray.io/node-type": "head"},
        "volcano": {"volcano.sh/job-name": label, "volcano.sh/task-spec": "master"},
    }.get(form, {})
    found = forms.objects(forms.render(catalog, stack, form, gateway=True))
    spec = pod(found)["spec"]
    (container,) = spec["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    return Gateway(
        container["image"],
        effective(environment),
        component(found, environment["GATEWAY_ENGINES"], labelled),
        component(found, environment["GATEWAY_PAGE"], {}),
        frozenset(mounted(spec)),
        spec["terminationGracePeriodSeconds"] - int(container["lifecycle"]["preStop"]["exec"]["command"][1]),
    )


def pod(found: list[Object]) -> Object:
    """The template of the gateway's pod."""
    (deployment,) = (item for item in found if (item["kind"], item["metadata"]["name"].rpartition("-")[2]) == ("Deployment", "gateway"))
    return dict(deployment["spec"]["template"])


def mounted(spec: Object) -> dict[str, tuple[str, str]]:
    """Files of Secrets in a container: path -> Secret and key."""
    (container,) = spec["containers"]
    (volume,) = (volume for volume in spec["volumes"] if "projected" in volume)
    (folder,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == volume["name"])
    secrets = [source["secret"] for source in volume["projected"]["sources"]]
    return {f"{folder}/{item['path']}": (secret["name"], item["key"]) for secret in secrets for item in secret["items"]}


def slurm(catalog: Catalog, stack: str, _: str) -> Gateway:
    """From the script's function that starts it."""
    (text,) = forms.render(catalog, stack, "slurm", gateway=True).values()
    body = text[text.index("start_gateway() (") : text.index("is_ready() {")]
    environment = dict(
        shlex.split(line, comments=True)[1].split("=", 1) for line in re.findall(r"^ +export GATEWAY_.*", body, re.MULTILINE)
    )
    ports = {"$API_PORT": "8000", "${WEBUI_IMAGE:+127.0.0.1:$WEBUI_PORT}": "127.0.0.1:3000", "$GATEWAY_PORT": "8443"}
    places = {"127.0.0.1:8000": "engine", "127.0.0.1:3000": "page"}
    for shell, value in ports.items():
        environment = {name: text.replace(shell, value) for name, text in environment.items() if name != "GATEWAY_NAMES"}
    image = re.search(r"GATEWAY_IMAGE:-([^}]+)", text)
    assert image
    assert "export LAUNCH_PORT=$API_PORT\n" in text
    assert "export HOST=127.0.0.1 PORT=$WEBUI_PORT\n" in text
    return Gateway(
        image[1],
        effective(environment),
        places[environment["GATEWAY_ENGINES"]],
        places[environment["GATEWAY_PAGE"]],
        frozenset(re.findall(r":(/[\w/]+):ro", body)),
        catalog.stacks[stack].drain_seconds + 15,  # the script takes it away when the engine's step has ended
    )


READERS: dict[str, Callable[[Catalog, str, str], Gateway]] = {
    **dict.fromkeys(("k8s", "helm", "lws", "kuberay", "volcano"), kubernetes),
    "slurm": slurm,
}
