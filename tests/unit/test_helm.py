"""The chart of every stack, through Helm's own library: it says what plain Kubernetes says, and refuses what cannot be."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import charts
import forms
import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
from charts import Object

from engineroom import jobs, stacks
from engineroom.catalog import Catalog
from engineroom.forms import kubernetes

ROOT = Path(__file__).parents[2]
CATALOG = Catalog(ROOT)
GAUGES = {name: CATALOG.release_of(row.image).metrics for name, row in CATALOG.stacks.items()}
SCALED = [name for name, row in CATALOG.stacks.items() if row.nodes == 1 and GAUGES[name].waiting]
EACH = pytest.mark.parametrize("stack", CATALOG.stacks)
KUBERNETES = ("1.37", "1.36", "1.35")  # the three newest that kubernetes-validate knows
ONE, SEVERAL, NO_GAUGES = "r1-7b-v100", "r1-32b-v100", "r1-b200"
EVERY_OPTION = {
    "hf_token": "hub",
    "cluster_token": "nodes",
    "models": "shared-models",
    "model": "/models/r1",
    "storage_class": "fast",
    "node_selector": {"pool": "gpu"},
    "url": "https://chat.example.org",
    "gateway": True,
    "gateway_replicas": 2,
    "gateway_keys": "people",
    "gateway_certificate": "chat-tls",
}
HELMS_OWN = {"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart", "helm.sh/resource-policy"}

# Of a ScaledObject, what the chart may write: https://keda.sh/docs/latest/reference/scaledobject-spec, and the prometheus scaler's page there.
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {name: {"type": "string"} for name in ("apiVersion", "kind", "name", "envSourceContainerName")},
                },
                **{
                    name: {"type": "integer"}
                    for name in ("pollingInterval", "cooldownPeriod", "idleReplicaCount", "minReplicaCount", "maxReplicaCount")
                },
                "advanced": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "restoreToOriginalReplicaCount": {"type": "boolean"},
                        "horizontalPodAutoscalerConfig": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"name": {"type": "string"}, "behavior": {"type": "object"}},
                        },
                    },
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "prometheus"},
                            "name": {"type": "string"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "metadata": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["serverAddress", "query", "threshold"],
                                "properties": {
                                    name: {"type": "string"}
                                    for name in ("serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues")
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@cache
def chart(stack: str) -> dict[str, str]:
    """The files of a stack's chart."""
    return forms.render(CATALOG, stack, "helm")


def validate(item: Object) -> None:
    """Against Kubernetes' own schemas, or KEDA's."""
    if item["kind"] == "ScaledObject":
        jsonschema.validate(item, SCALED_OBJECT)
        hpa = {"maxReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "x"}}
        hpa["behavior"] = item["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        item = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}, "spec": hpa}
    for version in KUBERNETES:
        kubernetes_validate.validate(item, version, strict=True)


def plain(item: Any) -> Any:
    """Without what Helm adds; a container's variables by name, since Helm sorts them."""
    if isinstance(item, dict):
        found = {name: plain(value) for name, value in item.items() if name not in HELMS_OWN}
        return {name: value for name, value in found.items() if name != "annotations" or value}
    if isinstance(item, list):
        if item and all(isinstance(entry, dict) and entry.keys() == {"name", "value"} for entry in item):
            return {entry["name"]: entry["value"] for entry in item}
        return [plain(entry) for entry in item]
    return item


@EACH
def test_lint_finds_nothing(stack: str, tmp_path: Path) -> None:
    """`helm lint --strict` has nothing to say but that an icon would be nice."""
    for name, text in chart(stack).items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    report = helm.lint(tmp_path, {}, strict=True)

    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("options", [{}, EVERY_OPTION], ids=["plain", "every option"])
@EACH
def test_it_is_the_form_for_kubernetes(stack: str, options: dict[str, Any]) -> None:
    """`helm template` with the chart's own values gives the objects of `--to k8s`, field for field."""
    options = {"namespace": "chat", **options}
    wanted = {
        (item["kind"], item["metadata"]["name"]): plain(item) for item in forms.objects(forms.render(CATALOG, stack, "k8s", **options))
    }

    found = charts.objects(forms.render(CATALOG, stack, "helm", **options), namespace="chat")

    assert {name: plain(item) for name, item in found.items()} == wanted


@pytest.mark.parametrize("stack", [ONE, SEVERAL])
def test_everything_is_valid(stack: str) -> None:
    """Every object passes the schemas of the three newest releases of Kubernetes, with gateway and ingresses; of other stacks, those of `--to k8s` do."""
    values = {
        "gateway": {"enabled": True},
        "ingress": {"className": "nginx", **{part: {"host": f"{part}.example.org", "tlsSecret": "tls"} for part in ("page", "api")}},
    }

    found = charts.objects(chart(stack), values)

    assert {("Ingress", f"{stack}-page"), ("Ingress", f"{stack}-engine")} <= found.keys()
    for item in found.values():
        validate(item)


def test_workers_are_renewed_together() -> None:
    """Of three nodes none is ready before all are new, so Kubernetes must not renew one worker after another; chart and plain form agree."""
    several = {"nodes": 3, "environment": {"LAUNCH_NODES": "3", "LAUNCH_PP": "3"}}
    found = charts.objects(chart(SEVERAL), {"engine": several})
    two = charts.objects(chart(SEVERAL))
    job = jobs.job(CATALOG, forms.HOST, SEVERAL, jobs.Options())
    plain = [kubernetes.stateful(job, "worker", replicas, [])["spec"].get("updateStrategy") for replicas in (1, 2)]

    assert [items["StatefulSet", f"{SEVERAL}-worker"]["spec"].get("updateStrategy") for items in (two, found)] == plain
    assert plain == [None, {"type": "OnDelete"}]
    assert "updateStrategy" not in found["StatefulSet", f"{SEVERAL}-head"]["spec"]
    for item in found.values():
        validate(item)


def test_names_of_digits_are_strings() -> None:
    """Kubernetes takes a namespace, a Secret or a class called `123`, and no number in its place."""
    values = {
        **charts.autoscaled("keda", "waiting", prometheus={"namespace": "1"}),
        "engine": {"secrets": {"hfToken": "2"}},
        "gateway": {"enabled": True, "secrets": {"keys": "3", "certificate": "4"}},
        "ingress": {"className": "5", "controllerNamespace": "6", "page": {"host": "7", "tlsSecret": "8"}, "api": {"host": "9"}},
    }
    values["storage"] = {**values["storage"], "class": "10", "models": "11"}

    found = charts.objects(chart(ONE), values, namespace="12")

    for item in found.values():
        validate(item)
    text = json.dumps(list(found.values()))
    for number in range(1, 13):
        assert f'"{number}"' in text


@EACH
def test_it_holds_together_under_another_name(stack: str) -> None:
    """A release called `prod`: services find pods, pods find claims, and the page finds the server."""
    found = charts.objects(chart(stack), {"gateway": {"enabled": True}}, name="prod", namespace="elsewhere")
    name = f"prod-{stack}"
    pods = [item["spec"]["template"] for (kind, _), item in found.items() if kind in ("Deployment", "StatefulSet")]

    assert {kind for kind, named in found if not named.startswith(f"{name}-")} == set()
    assert {item["metadata"]["namespace"] for item in found.values()} == {"elsewhere"}
    for pod in pods:
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        assert claims or pod["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
        assert {("PersistentVolumeClaim", claim) for claim in claims} <= found.keys()
    for (kind, _), item in found.items():
        if kind == "Service":
            assert sum(item["spec"]["selector"].items() <= pod["metadata"]["labels"].items() for pod in pods) == 1
    environments = [{entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]} for pod in pods]
    (address,) = {env["OPENAI_API_BASE_URLS"] for env in environments if "OPENAI_API_BASE_URLS" in env}
    assert address == f"http://{name}-engine:8000/v1"
    (gateway,) = (env for env in environments if "GATEWAY_PAGE" in env)
    assert (gateway["GATEWAY_ENGINES"], gateway["GATEWAY_PAGE"]) == (f"{name}-engines:8000", f"{name}-page:80")
    assert {env["LAUNCH_HEAD"] for env in environments if "LAUNCH_HEAD" in env} == (
        {f"{name}-head"} if CATALOG.stacks[stack].nodes > 1 else set()
    )


def test_deadlines_follow_the_settings() -> None:
    """Who gives the engine longer to start or to drain need not think of probes and grace."""
    environment = {"LAUNCH_START_SECONDS": "1801", "LAUNCH_DRAIN_SECONDS": "300"}
    engine = charts.objects(chart(ONE), {"engine": {"environment": environment}})["Deployment", f"{ONE}-engine"]["spec"]
    pod = engine["template"]["spec"]

    assert pod["containers"][0]["startupProbe"]["failureThreshold"] == 187  # a minute more, in tens of seconds
    assert pod["terminationGracePeriodSeconds"] == jobs.PRE_STOP_SECONDS + 300 + stacks.STOP_MARGIN_SECONDS
    assert engine["progressDeadlineSeconds"] == 1801 + 600


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"autoscale": {"kind": "hpa"}}, "additional properties 'autoscale' not allowed"),
        ({"engine": {"gpus": "4"}}, "'/engine/gpus': got string, want integer"),
        ({"engine": {"nodes": 0}}, "'/engine/nodes': minimum: got 0, want 1"),
        ({"engine": {"image": "engineroom"}}, "'/engine/image': 'engineroom' does not match pattern"),
        ({"engine": {"image": None}}, "missing property 'image'"),
        ({"engine": {"environment": {"LAUNCH_MAX_SEQS": 64}}}, "'/engine/environment/LAUNCH_MAX_SEQS': got number, want string"),
        ({"engine": {"environment": {"LAUNCH_START_SECONDS": "10m"}}}, "'10m' does not match pattern"),
        ({"engine": {"environment": {"LAUNCH-TP": "1"}}}, "invalid propertyName 'LAUNCH-TP'"),
        ({"storage": {"accessMode": "ReadWriteSometimes"}}, "'/storage/accessMode': value must be one of"),
        ({"ingress": {"page": {"host": "https://chat.example.org"}}}, "'/ingress/page/host'"),
        ({"page": {"url": "chat.example.org"}}, "'/page/url'"),
        ({"autoscaling": {"metric": "cpu"}}, "'/autoscaling/metric': value must be one of 'waiting', 'cache'"),
        ({"autoscaling": {"kind": "vpa"}}, "'/autoscaling/kind': value must be one of '', 'hpa', 'keda'"),
        ({"autoscaling": {"min": 0}}, "'/autoscaling/min': minimum: got 0, want 1"),
        ({"autoscaling": {"metric": "cache", "target": 80}}, "'/autoscaling/target': maximum: got 80, want 1"),
        ({"autoscaling": {"scaleDownSeconds": 30}}, "'/autoscaling/scaleDownSeconds': minimum: got 30, want 300"),
    ],
)
def test_the_schema_refuses(values: Object, message: str) -> None:
    """A value that is misspelt, of another type, or out of range: the message names it."""
    with pytest.raises(helm.HelmValuesError) as refused:
        charts.template(chart(ONE), values)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("stack", "values", "message"),
    [
        (ONE, {"engine": {"gpus": 2}}, "engine.nodes 1 with 2 GPUs each are 2 devices, and LAUNCH_TP times LAUNCH_PP"),
        (SEVERAL, {"engine": {"nodes": 3}}, "engine.nodes 3 with 4 GPUs each are 12 devices"),
        (
            SEVERAL,
            {"engine": {"environment": {"LAUNCH_PP": "1"}}},
            "are 8 devices, and LAUNCH_TP times LAUNCH_PP in engine.environment is 4",
        ),
        (ONE, {"engine": {"gpus": 2, "environment": {"LAUNCH_TP": "2"}}}, "LAUNCH_GPUS in engine.environment is 1, and engine.gpus is 2"),
        (ONE, {"engine": {"nodeSelector": {"nvidia.com/gpu.count": "0"}}}, "takes nodes with 0 GPUs, and engine.gpus is 1"),
        (ONE, {"engine": {"environment": {"LAUNCH_PORT": "80"}}}, "LAUNCH_PORT in engine.environment: the chart decides it"),
        (ONE, {"engine": {"environment": {"HF_TOKEN": "hf_x"}}}, "make a Secret and name it in engine.secrets"),
        (ONE, {"page": {"environment": {"WEBUI_URL": "http://x"}}}, "WEBUI_URL in page.environment: the chart decides it"),
        (ONE, {"engine": {"replicas": 2}}, "storage.accessMode is ReadWriteOnce, and pods on several machines share"),
        (ONE, {"autoscaling": {"kind": "hpa"}}, "storage.accessMode is ReadWriteOnce"),
        (ONE, charts.autoscaled("hpa", "waiting", min=3), "autoscaling.min is 3 and autoscaling.max 2"),
        (SEVERAL, {"engine": {"replicas": 2}}, "a replica would be a whole group of pods that come and go together"),
        (SEVERAL, charts.autoscaled("keda", "waiting"), "engineroom jobs STACK --to lws"),
        (SEVERAL, {"storage": {"accessMode": "ReadWriteOnce"}}, "set ReadWriteMany"),
        (SEVERAL, {"engine": {"secrets": {"clusterToken": ""}}}, "needs engine.secrets.clusterToken"),
        (SEVERAL, {"engine": {"environment": {"LAUNCH_NODES": None}}}, "set LAUNCH_NODES in engine.environment to the same"),
        (NO_GAUGES, charts.autoscaled("hpa", "cache"), "this release of the engine has no Prometheus gauge for autoscaling.metric cache"),
        (ONE, {"ingress": {"page": {"host": "a.org"}, "api": {"host": "a.org"}}}, "give the API a name of its own"),
    ],
)
def test_templates_refuse(stack: str, values: Object, message: str) -> None:
    """Values that contradict each other: the message says what was found and what to set."""
    with pytest.raises(helm.HelmRenderError) as refused:
        charts.template(chart(stack), values)

    assert message in str(refused.value)


def test_the_schema_is_strict_everywhere() -> None:
    """Every table of values knows its names, and needs them all: nothing misspelt passes, and templates need no defaults."""
    schema = json.loads((ROOT / "compose/templates/cluster/helm/values.schema.json").read_text())

    def tables(part: Any) -> Iterator[Object]:
        if isinstance(part, dict):
            if part.get("type") == "object" and "properties" in part:
                yield part
            for inner in part.values():
                yield from tables(inner)

    jsonschema.Draft7Validator.check_schema(schema)
    found = list(tables(schema))
    assert len(found) > 8
    for table in found:
        assert table["additionalProperties"] is False
        assert set(table["required"]) == set(table["properties"]) or set(table["properties"]) == {"key", "operator", "values"}


@pytest.mark.parametrize("kind", ["hpa", "keda"])
@pytest.mark.parametrize("stack", SCALED)
def test_autoscaling(stack: str, kind: str) -> None:
    """By the release's own gauge, slowly down; Prometheus may read it, and the number of servers is the autoscaler's alone."""
    gauges = GAUGES[stack]
    for metric, gauge in (("waiting", gauges.waiting), ("cache", gauges.cache)):
        found = charts.objects(chart(stack), charts.autoscaled(kind, metric, max=4))
        (scaler,) = charts.scalers(found)
        spec, deployment = scaler["spec"], found["Deployment", f"{stack}-engine"]["spec"]
        validate(scaler)
        if kind == "hpa":
            (pods,) = spec["metrics"]
            assert pods["pods"]["metric"]["name"] == gauge.replace(":", "_")
            assert pods["pods"]["target"] == {"type": "AverageValue", "averageValue": "4" if metric == "waiting" else "0.8"}
            behavior, most = spec["behavior"], spec["maxReplicas"]
        else:
            (trigger,) = spec["triggers"]
            assert trigger["metadata"]["query"] == f'sum({gauge}{{namespace="default",pod=~"{stack}-engine-.+"}})'
            assert trigger["metadata"]["threshold"] == ("4" if metric == "waiting" else "0.8")
            behavior, most = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"], spec["maxReplicaCount"]

        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{stack}-engine"}
        assert most == 4
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= min(int(started(deployment)), 3600)
        assert "replicas" not in deployment
        assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        assert deployment["template"]["metadata"]["annotations"]["prometheus.io/port"] == "8000"
        assert "monitoring" in let_in(found["NetworkPolicy", f"{stack}-engine"])


def test_several_servers() -> None:
    """A fixed number of them: they share their claims, and are replaced one after another."""
    found = charts.objects(chart(ONE), {**charts.SHARED, "engine": {"replicas": 3}})
    spec = found["Deployment", f"{ONE}-engine"]["spec"]

    assert (spec["replicas"], spec["strategy"]["type"]) == (3, "RollingUpdate")
    assert {found["PersistentVolumeClaim", f"{ONE}-{claim}"]["spec"]["accessModes"][0] for claim in ("weights", "caches")} == {
        "ReadWriteMany"
    }
    assert found["Service", f"{ONE}-engine"]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()


def started(deployment: Object) -> str:
    """LAUNCH_START_SECONDS of a Deployment."""
    return next(str(e["value"]) for e in deployment["template"]["spec"]["containers"][0]["env"] if e["name"] == "LAUNCH_START_SECONDS")


def let_in(policy: Object) -> set[str]:
    """Namespaces that a policy lets in."""
    peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    return {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in peers if "namespaceSelector" in peer}


def test_the_query_finds_the_pods_of_the_release() -> None:
    """KEDA's query takes the pods of this Deployment and of no other."""
    found = charts.objects(chart(ONE), charts.autoscaled("keda", "waiting"), name="prod")
    query = found["ScaledObject", f"prod-{ONE}-engine"]["spec"]["triggers"][0]["metadata"]["query"]
    match = re.search(r'pod=~"([^"]+)"', query)

    assert match
    assert re.fullmatch(match[1], f"prod-{ONE}-engine-c8f5d6b7f9-x2v9k")
    assert not re.fullmatch(match[1], f"{ONE}-engine-c8f5d6b7f9-x2v9k")


@pytest.mark.parametrize(("part", "component", "path"), [("page", "page", "/"), ("api", "engine", "/v1")])
def test_ingress(part: str, component: str, path: str) -> None:
    """One for the page or the API, off unless it has a host; the controller is let in to that alone, and streams are not cut."""
    found = charts.objects(chart(ONE), {"ingress": {part: {"host": "ai.example.org", "tlsSecret": "tls", "annotations": {"own": "yes"}}}})
    (ingress,) = [item for (kind, _), item in found.items() if kind == "Ingress"]
    (rule,) = ingress["spec"]["rules"]
    annotations = ingress["metadata"]["annotations"]
    page = {
        entry["name"]: entry["value"] for entry in found["Deployment", f"{ONE}-page"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }

    assert rule["host"] == "ai.example.org"
    assert [(entry["path"], entry["backend"]["service"]["name"]) for entry in rule["http"]["paths"]] == [(path, f"{ONE}-{component}")]
    assert ingress["spec"]["tls"] == [{"hosts": ["ai.example.org"], "secretName": "tls"}]
    assert annotations["own"] == "yes"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3600
    assert {annotations[f"{name}-body-size"] for name in ("nginx.ingress.kubernetes.io/proxy", "nginx.org/client-max")} == {"16m"}
    opened = {name for name in ("page", "engine") if let_in(found["NetworkPolicy", f"{ONE}-{name}"]) == {"ingress-nginx"}}
    assert opened == {component}
    assert page["WEBUI_URL"] == page["CORS_ALLOW_ORIGIN"] == ("https://ai.example.org" if part == "page" else "http://localhost:3000")


@EACH
def test_notes_say_what_to_type(stack: str) -> None:
    """How to reach the page, and a request that names the model."""
    notes = charts.template(chart(stack))["NOTES.txt"]

    assert f"kubectl port-forward --namespace default service/{stack}-page 3000:80" in notes
    assert "curl http://localhost:8000/v1/chat/completions" in notes
    asked = re.search(r"-d '(.*)'", notes)
    assert asked
    assert json.loads(asked[1])["model"] == stacks.served(CATALOG, stack)["model_name"]
    assert ("kubectl create secret generic" in notes) == (CATALOG.stacks[stack].nodes > 1)


def test_notes_with_ingress_and_autoscaling() -> None:
    """The public names, and how many GPUs it may come to."""
    values = {
        **charts.autoscaled("keda", "waiting", max=5),
        "ingress": {p: {"host": f"{p}.example.org", "tlsSecret": ""} for p in ("page", "api")},
    }

    notes = charts.template(chart(ONE), values)["NOTES.txt"]

    assert "Chat    http://page.example.org" in notes
    assert "curl http://api.example.org/v1/chat/completions" in notes
    assert "Servers 1 to 5, with 5 GPUs at most, on vllm:num_requests_waiting" in notes
    assert "port-forward" not in notes


def test_what_the_page_says_works() -> None:
    """Every value in docs/helm.md is taken, and its rule gives the gauges the names that the chart asks for."""
    text = (ROOT / "docs/helm.md").read_text()
    values = [helm.parse_set_string(line) for line in re.findall(r"--set (\S+=\S+)", text)]
    values += [helm.parse_set_string_values(line) for line in re.findall(r"--set-string (\S+=\S+)", text)]
    blocks = [helm.values_from_yaml(textwrap.dedent(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    (rule,) = next(block["rules"] for block in blocks if "rules" in block)
    series = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])

    with helm.Chart.load_archive(charts.archive(chart(ONE))) as loaded:
        for part in (*values, *(block for block in blocks if "rules" not in block)):
            loaded.validate_schema(part)
    assert len(values) == 4
    assert series
    for gauges in GAUGES.values():
        for gauge in filter(None, (gauges.waiting, gauges.cache)):
            assert re.match(series[1], gauge)
            found = re.match(rule["name"]["matches"], gauge)
            assert found
            assert found.expand(rule["name"]["as"].replace("${1}", r"\1").replace("${2}", r"\2")) == gauge.replace(":", "_")
