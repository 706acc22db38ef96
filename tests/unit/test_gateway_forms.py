"""The gateway in front of a stack: every form says what compose says, and what it cannot have is refused."""

from __future__ import annotations

import charts
import forms
import gateway_forms
import helm_python as helm
import pytest
from gateway_forms import READERS

from engineroom import stacks
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotRun

CATALOG = Catalog(forms.ROOT)
ON_KUBERNETES = [form for form in READERS if form != "slurm"]
ONE, SEVERAL = "r1-7b-v100", "r1-32b-v100"


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_it_is_the_gateway_of_compose(stack: str, form: str) -> None:
    """Image, limits, time-outs, files, deadline are the same; its addresses lead to the stack's own engine and page, where those listen."""
    if (stack, form) == ("demo-cpu-two-nodes", "kuberay"):
        pytest.skip("the stack has no such form")

    wanted, found = gateway_forms.compose(CATALOG, stack), READERS[form](CATALOG, stack, form)

    assert found == wanted
    assert (found.engines, found.page) == ("engine", "page")
    assert found.settings["GATEWAY_DRAIN_SECONDS"] == str(CATALOG.stacks[stack].drain_seconds)
    assert {value for name, value in found.settings.items() if name.endswith("_FILE")} == found.files
    assert int(found.settings["GATEWAY_ANSWER_SECONDS"]) > stacks.served(CATALOG, stack)["stop_seconds"]


@pytest.mark.parametrize("form", ON_KUBERNETES)
@pytest.mark.parametrize("stack", [ONE, SEVERAL])
def test_it_is_all_that_is_added(stack: str, form: str) -> None:
    """With it nothing else changes: the other objects are the same, and there are its pods, its name, its rule and a name for the engine's pods."""
    plain, found = (
        {(item["kind"], item["metadata"]["name"]): item for item in forms.objects(forms.render(CATALOG, stack, form, gateway=on))}
        for on in (False, True)
    )

    assert {name: found[name] for name in plain} == plain
    assert found.keys() - plain.keys() == {
        ("Deployment", f"{stack}-gateway"),
        ("Service", f"{stack}-gateway"),
        ("Service", f"{stack}-engines"),
        ("NetworkPolicy", f"{stack}-gateway"),
    }


@pytest.mark.parametrize("form", ON_KUBERNETES)
def test_who_may_ask_it_and_whom_it_may_ask(form: str) -> None:
    """Everybody reaches its one port; the rules of page and engine name its label, which its pods have. Its name has port 443."""
    found = forms.objects(forms.render(CATALOG, SEVERAL, form, gateway=True))
    rules = {item["metadata"]["name"].rpartition("-")[2]: item["spec"] for item in found if item["kind"] == "NetworkPolicy"}
    (name,) = (item for item in found if (item["kind"], item["metadata"]["name"]) == ("Service", f"{SEVERAL}-gateway"))
    pod = gateway_forms.pod(found)
    labels = pod["metadata"]["labels"]
    let_in = {
        component: [
            port["port"]
            for entry in rules[component]["ingress"]
            if any(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in entry["from"])
            for port in entry["ports"]
        ]
        for component in ("engine", "page")
    }

    assert let_in == {"engine": [8000], "page": [8080]}
    assert rules["gateway"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8443}]}]
    assert rules["gateway"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert name["spec"]["selector"].items() <= labels.items()
    assert name["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "https"}]
    assert pod["spec"]["containers"][0]["ports"] == [{"name": "https", "containerPort": 8443}]


@pytest.mark.parametrize("form", ON_KUBERNETES)
def test_replicas_and_secrets_are_those_asked_for(form: str) -> None:
    """Names of Secrets by default follow the stack; others take their place, and so does another number of pods."""
    usual = forms.objects(forms.render(CATALOG, ONE, form, gateway=True))
    own = forms.objects(
        forms.render(CATALOG, ONE, form, gateway=True, gateway_replicas=3, gateway_keys="people", gateway_certificate="chat.example")
    )

    def secrets(found: list[gateway_forms.Object]) -> list[tuple[str, str]]:
        return list(gateway_forms.mounted(gateway_forms.pod(found)["spec"]).values())

    assert secrets(usual) == [(f"{ONE}-gateway-keys", "keys"), *((f"{ONE}-gateway-tls", f"tls.{part}") for part in ("crt", "key"))]
    assert secrets(own) == [("people", "keys"), ("chat.example", "tls.crt"), ("chat.example", "tls.key")]
    (deployment,) = (item for item in own if (item["kind"], item["metadata"]["name"]) == ("Deployment", f"{ONE}-gateway"))
    assert deployment["spec"]["replicas"] == 3


def test_what_must_be_there_first_is_said() -> None:
    """The head of the text and the chart's notes have the lines that make both Secrets, in the right namespace."""
    options = {"gateway": True, "namespace": "llm", "gateway_keys": "people"}
    (text,) = forms.render(CATALOG, ONE, "k8s", **options).values()
    notes = charts.template(forms.render(CATALOG, ONE, "helm", **options), namespace="llm")["NOTES.txt"]

    for said in (text.partition("---")[0], notes):
        assert (
            'echo "default:$(openssl rand -hex 32)" | kubectl create secret generic people --namespace llm --from-file=keys=/dev/stdin'
            in said
        )
        assert f"kubectl create secret tls {ONE}-gateway-tls --namespace llm --cert=certificate.pem --key=certificate-key.pem" in said
    assert f"service/{ONE}-gateway 8443:443" in notes


def test_a_chart_takes_its_other_settings_and_no_more() -> None:
    """`gateway.environment` reaches the container; what the chart decides is refused there, and so is a number that is no string."""
    chart = forms.render(CATALOG, ONE, "helm", gateway=True)
    found = list(charts.objects(chart, {"gateway": {"environment": {"GATEWAY_KEY_RATE": "2"}}}).values())
    (container,) = gateway_forms.pod(found)["spec"]["containers"]

    assert {"name": "GATEWAY_KEY_RATE", "value": "2"} in container["env"]
    with pytest.raises(helm.HelmRenderError, match="GATEWAY_LISTEN in gateway.environment: the chart decides it"):
        charts.template(chart, {"gateway": {"environment": {"GATEWAY_LISTEN": "80"}}})
    with pytest.raises(helm.HelmValuesError, match="got number, want string"):
        charts.template(chart, {"gateway": {"environment": {"GATEWAY_KEY_RATE": 2}}})


@pytest.mark.parametrize(
    ("form", "options", "error", "reason"),
    [
        ("crater", {"gateway": True}, CannotRun, "its ingress ends TLS itself"),
        ("slurm", {"gateway": True, "gateway_keys": "people"}, BadRequest, "set GATEWAY_KEYS_FILE when you submit"),
        ("slurm", {"gateway": True, "gateway_replicas": 2}, BadRequest, "Slurm runs one gateway"),
        ("k8s", {"gateway_replicas": 2}, BadRequest, "Without --gateway there is nothing"),
        ("k8s", {"gateway_certificate": "chat"}, BadRequest, "Without --gateway there is nothing"),
        ("k8s", {"gateway": True, "gateway_keys": "My Keys"}, BadRequest, "--gateway-keys 'My Keys' is no name"),
    ],
)
def test_what_cannot_be_is_refused(form: str, options: dict[str, object], error: type[Exception], reason: str) -> None:
    """With the reason, and the way around it."""
    with pytest.raises(error, match=reason):
        forms.render(CATALOG, ONE, form, **options)
