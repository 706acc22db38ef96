"""`engineroom up`: which phases there are, and what it says at the end. Starting a stack is in tests/stack."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import build, cli
from engineroom.catalog import Catalog
from engineroom.errors import CannotRun, ServiceUnavailable
from engineroom.host import Host
from engineroom.up import Bringup, UpstreamBringup

ADDRESS = {"GATEWAY_ADDRESS": "192.0.2.7", "GATEWAY_PORT": "9443", "WEBUI_PORT": "1"}  # nobody is asked whether there is an account


def bringup(catalog: Catalog, stack: str, root: Path, **env: str) -> Bringup:
    """A bring-up with these settings alone."""
    kind = UpstreamBringup if stack in catalog.upstream_stacks else Bringup
    return kind(catalog, Host.load(root, env), stack, lambda _: None)


@pytest.mark.parametrize(
    ("stack", "profiles", "images", "services"),
    [
        ("demo-cpu", "", [], []),
        ("demo-cpu", "gateway,metrics,other", ["gateway", "prometheus"], ["gateway", "prometheus"]),
        ("r1-b200", "gateway,metrics", ["gateway"], ["gateway"]),  # its engine has nothing to tell Prometheus
        ("api", "gateway,metrics", ["gateway"], ["gateway"]),
    ],
)
def test_profiles_add_their_image_and_a_wait(
    catalog: Catalog, tmp_path: Path, stack: str, profiles: str, images: list[str], services: list[str]
) -> None:
    """What a profile adds to the stack is built before anything starts, and waited for after the page."""
    phases = [name for name, _ in bringup(catalog, stack, tmp_path, COMPOSE_PROFILES=profiles).phases()]

    assert phases[phases.index("image webui") + 1 : -2 - len(services)] == [f"image {image}" for image in images]
    assert phases[phases.index("chat page") + 1 :] == services


def test_the_end_names_the_gateway(catalog: Catalog, tmp_path: Path) -> None:
    """Its address and where a key is; that others already reach a page without an owner; Prometheus' address. Nothing of them without the profiles."""
    on = bringup(catalog, "demo-cpu", tmp_path, COMPOSE_PROFILES="gateway,metrics", **ADDRESS).ending()
    own = bringup(catalog, "demo-cpu", tmp_path, COMPOSE_PROFILES="gateway", GATEWAY_KEYS_FILE="/etc/secrets/keys", **ADDRESS).ending()
    off = bringup(catalog, "demo-cpu", tmp_path, **ADDRESS).ending()

    assert "Others  https://192.0.2.7:9443 has both; a key for the API: docker compose exec demo-cpu-gateway cat /data/keys\n" in on
    assert "Others reach it already: make it now." in on
    assert "Metrics http://localhost:9090\n" in on
    assert "a key for the API: in /etc/secrets/keys\n" in own
    assert ("Others" in off, "Metrics" in off) == (False, False)


def test_a_profile_that_the_stack_has_not_is_refused() -> None:
    """Asked for by name it is refused; in COMPOSE_PROFILES it may be for other stacks."""
    result = CliRunner().invoke(cli.cli, ["up", "r1-b200", "--metrics"])

    assert isinstance(result.exception, CannotRun)
    assert "r1-b200 has no metrics: its server has nothing to tell Prometheus. Leave --metrics out." in str(result.exception)


def test_a_base_made_here_changes_no_other_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles that options switched on are in no file: they are still on when the base image has been made and remembered."""
    monkeypatch.setattr(build, "have", lambda _: False)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, int("pull" in command), "", ""))

    found = build.ensure_base(replace(Host.load(tmp_path, {}), profiles=frozenset({"gateway"})), lambda _: None)

    assert (found.base_image, found.profiles) == (build.LOCAL_BASE, {"gateway"})
    assert Host.load(tmp_path, {}).base_image == build.LOCAL_BASE


def test_an_image_of_a_registry_that_is_away(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was pulled serves; without it, the registry's words are shown, and a slow one is told from one that refuses."""
    up = bringup(catalog, "demo-cpu", tmp_path, ENGINEROOM_REGISTRY="registry.example/")

    def refused(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Error response from daemon: no such host\n")

    def slow(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, build.PULL_SECONDS)

    for run, message in (
        (refused, r"registry.example/engineroom:cpu-\S+ cannot be pulled: .*no such host\nENGINEROOM_REGISTRY"),
        (slow, r"registry.example/engineroom:cpu-\S+ did not come within 10 minutes. Run the same again"),
    ):
        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(build, "have", lambda _: False)
        with pytest.raises(ServiceUnavailable, match=message):
            up.engine_image()
        monkeypatch.setattr(build, "have", lambda name: name.startswith("registry.example/"))
        up.engine_image()
