"""Metrics, status, smoke, bundle and logs of the real demo stack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import docker
import pytest
from demo import ROOT, Demo

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host
from engineroom.rows import Metrics
from launcher import log

pytestmark = pytest.mark.containers
CATALOG = Catalog(ROOT)
IMAGE = resolve.tag("cpu", CATALOG.release_of("cpu"))
PROMETHEUS = resolve.tag(resolve.PROMETHEUS_IMAGE, CATALOG.release_of(resolve.PROMETHEUS_IMAGE))
RULES = sorted(ROOT.glob("compose/metrics/*.yaml"))
DASHBOARD = json.loads((ROOT / "compose/metrics/dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
# Shipped defaults of NVIDIA's exporter: https://github.com/NVIDIA/dcgm-exporter/blob/main/etc/default-counters.csv
DCGM = {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP"}


def engineroom(demo: Demo, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The host tool in the demo's environment."""
    command = [ROOT / ".venv/bin/engineroom", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**demo.env, **env}, capture_output=True, text=True, timeout=300, check=False)


class Prometheus:
    """The API of the demo's Prometheus."""

    def __init__(self, port: str) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}?{urlencode(query)}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression.replace("$stack", ".*"))["result"])

    def wait(self, expression: str, seconds: float = 120) -> None:
        """Wait until a query has data."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.query(expression):
                    return
            except OSError:  # it is not up yet
                pass
            time.sleep(1)
        raise AssertionError(f"{expression} has no data after {seconds} s")


@pytest.fixture(scope="module")
def image() -> str:
    """Prometheus, built, and the gateway beside it."""
    build.build(CATALOG, Host.load(ROOT), [resolve.PROMETHEUS_IMAGE, resolve.GATEWAY_IMAGE], lambda _: None)
    return PROMETHEUS


@pytest.fixture(scope="module")
def prometheus(demo: Demo, image: str) -> Iterator[Prometheus]:
    """Started, with the gateway, by naming the stack alone; a few answers seen."""
    added = {"demo-cpu-gateway", "demo-cpu-prometheus"}
    result = demo.compose("--profile", "gateway", "--profile", "metrics", "up", "--detach", "demo-cpu")
    assert result.returncode == 0, result.stderr
    assert added <= set(demo.compose("ps", "--services", "--status", "running").stdout.split())
    running = Prometheus(demo.env["PROMETHEUS_PORT"])
    running.wait('up{job="engine"} == 1')
    for _ in range(3):
        assert engineroom(demo, "smoke").returncode == 0
    running.wait("engineroom:tpot:p95 > 0")
    yield running
    demo.compose("--profile", "*", "rm", "--stop", "--force", "--volumes", *added)


@pytest.mark.parametrize("query", [query for query in QUERIES if not query.startswith("DCGM_")])
def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus, query: str) -> None:
    """What the dashboard asks for comes from the real engine."""
    (found,) = prometheus.query(query)

    assert found["metric"]["stack"] == "demo-cpu"
    assert float(found["value"][1]) >= 0


def test_gpu_panels_ask_for_what_the_exporter_has() -> None:
    """There is no GPU here: the names are those that DCGM's exporter documents."""
    assert {query for query in QUERIES if query.startswith("DCGM_")} == DCGM


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    """Each recorded name has data, no rule has an error, and no alert is raised over a healthy stack."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["type"] == "recording" and not prometheus.query(rule["name"])] == []
    assert [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] != "inactive"] == []


def test_prometheus_is_closed(demo: Demo, prometheus: Prometheus) -> None:
    """It is published on 127.0.0.1 alone, takes no commands, and runs without rights."""
    (found,) = docker.from_env().containers.list(
        filters={
            "label": [f"com.docker.compose.project={demo.env['COMPOSE_PROJECT_NAME']}", "com.docker.compose.service=demo-cpu-prometheus"]
        }
    )
    settings = found.attrs["HostConfig"]

    assert [port["HostIp"] for port in settings["PortBindings"]["9090/tcp"]] == ["127.0.0.1"]
    assert (settings["ReadonlyRootfs"], settings["CapDrop"]) == (True, ["ALL"])
    assert found.attrs["Config"]["User"] == "1000:0"
    with pytest.raises(urllib.error.HTTPError, match="40[35]"):
        urllib.request.urlopen(urllib.request.Request(prometheus.url.replace("/api/v1", "/-/quit"), method="POST"))


@pytest.mark.slow
def test_an_alert_is_raised(demo: Demo, prometheus: Prometheus) -> None:
    """The engine is frozen: within two minutes the real Prometheus says that it is lost, and takes it back afterwards."""
    demo.compose("pause", "demo-cpu-engine")
    try:
        prometheus.wait('ALERTS{alertname="EngineLost", alertstate="firing"}', 180)
    finally:
        demo.compose("unpause", "demo-cpu-engine")
    prometheus.wait('up{job="engine"} == 1')
    deadline = time.monotonic() + 60
    while json.loads(demo.inspect("demo-cpu-engine"))[0]["State"]["Health"]["Status"] != "healthy":  # for Docker by its next probe
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("name", sorted({name for name in Metrics.model_fields if name != "source"}))
def test_the_catalogs_names_are_the_engines(demo: Demo, name: str) -> None:
    """Each name in the release's row is a metric of its kind of the running server."""
    with urllib.request.urlopen(f"{demo.api.removesuffix('/v1')}/metrics") as response:
        text = response.read().decode()
    metric = getattr(CATALOG.release_of("cpu").metrics, name).split("{")[0]
    kind = {"running": "gauge", "waiting": "gauge", "cache": "gauge", "ttft": "histogram", "tpot": "histogram", "queue": "histogram"}

    assert re.search(rf"^# TYPE {metric} {kind.get(name, 'counter')}$", text, re.MULTILINE)


@cache
def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Promtool of our image, with the rules below /rules and the tests of alerts below /alerts."""
    mounts = ["-v", f"{ROOT}/compose/metrics:/rules:ro", "-v", f"{ROOT}/tests/data/alerts:/alerts:ro"]
    command = ["docker", "run", "--rm", "--network=none", *mounts, "--entrypoint", "promtool", PROMETHEUS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_promtool_accepts_every_file(image: str) -> None:
    """The configuration and the rules of every stack."""
    rules = promtool("check", "rules", *(f"/rules/{file.name}" for file in RULES if file.stem in CATALOG.stacks))
    config = promtool("check", "config", "--syntax-only", "/rules/prometheus.yaml")

    assert (rules.returncode, config.returncode) == (0, 0), rules.stderr + config.stderr


def test_alerts_are_raised_by_what_they_mean(image: str) -> None:
    """Each alert over made-up series: raised after its time where it should be, and not by a healthy or busy stack."""
    result = promtool("test", "rules", "/alerts/demo-cpu.yaml")

    assert result.returncode == 0, result.stdout + result.stderr
    written = (ROOT / "tests/data/alerts/demo-cpu.yaml").read_text()
    assert set(re.findall(r"- alert: (\w+)", (ROOT / "compose/metrics/demo-cpu.yaml").read_text())) == set(
        re.findall(r"alertname: (\w+)", written)
    )


def test_status(demo: Demo) -> None:
    """A ready engine shows what it does; a stack that is not there shows nothing; a wrong name is refused."""
    (engine,) = (row for row in json.loads(engineroom(demo, "status", "demo-cpu", "--json").stdout) if row["service"] == "demo-cpu-engine")
    shown = engineroom(demo, "status").stdout

    assert (engine["state"], engine["why"]) == ("ready", "")
    assert min(engine[name] for name in ("tokens_per_second", "requests_running", "requests_waiting", "cache_use")) >= 0
    assert re.search(r"^demo-cpu-engine +ready +[\d.]+ ", shown, re.MULTILINE)
    assert json.loads(engineroom(demo, "status", "r1-7b-v100", "--json").stdout) == []
    assert engineroom(demo, "status", "demo-cpuu").returncode == 2
    assert engineroom(demo, "status", DOCKER_HOST="tcp://127.0.0.1:1").returncode == 69


def test_status_says_how_it_ended(demo: Demo) -> None:
    """A container that was refused: its exit code in words, and the launcher's own reason, in both forms of its log."""
    labels = {
        "com.docker.compose.project": demo.env["COMPOSE_PROJECT_NAME"],
        "com.docker.compose.service": "r1-7b-v100-engine",
        "com.docker.compose.oneoff": "False",
    }
    for form in log.FORMS:
        container = docker.from_env().containers.run(
            IMAGE, ["serve", "--max-model-len", "2048", "--no-such-flag"], labels=labels, environment={"LAUNCH_LOG": form}, detach=True
        )
        try:
            container.wait(timeout=60)
            (row,) = json.loads(engineroom(demo, "status", "r1-7b-v100", "--json").stdout)
            smoke = engineroom(demo, "smoke", "r1-7b-v100")
        finally:
            container.remove(force=True, v=True)

        assert row["state"] == "exited"
        assert re.match(r"refused before start, exit code 78: .*no-such-flag", row["last_exit"])
        assert (smoke.returncode, "no-such-flag" in smoke.stderr) == (69, True)


def test_smoke(demo: Demo) -> None:
    """By stack and by address: the model, times, and the thought apart from the boxed sum."""
    found = json.loads(engineroom(demo, "smoke", "demo-cpu", "--json").stdout)
    by_address = engineroom(demo, "smoke", "--url", demo.api)

    assert (found["model"], r"\boxed{623}" in found["answer"], found["finish"]) == ("demo-r1", True, "stop")
    assert found["thought"].strip()
    assert found["ttft"] > 0
    assert found["rate"] > 0
    assert re.search(r"^thought +\d+ characters, apart from the answer$", by_address.stdout, re.MULTILINE)
    assert engineroom(demo, "smoke", "--url", "http://127.0.0.1:1/v1").returncode == 69
    assert engineroom(demo, "smoke", "--url", demo.page).returncode == 70
    assert engineroom(demo, "smoke", "r1-7b-v100").returncode == 69


def test_logs(demo: Demo) -> None:
    """The launcher's and the page's lines."""
    shown = engineroom(demo, "logs", "demo-cpu").stdout

    assert re.search(r"demo-cpu-engine-1 .*\[launch\] ready after", shown)
    assert re.search(r"demo-cpu-1 ", shown)
    assert engineroom(demo, "logs", "r1-7b-v100").returncode == 69


def test_no_secret_is_in_a_bundle(demo: Demo, tmp_path: Path) -> None:
    """Canaries in every place that a secret can be in: none of them is in the archive, and what a report needs is."""
    canaries = {place: f"canary-{place}-{os.urandom(6).hex()}" for place in ("file", "token", "environment", "index", "argument", "log")}
    for place in ("file", "token"):
        (tmp_path / place).write_text(f"name {canaries[place]}\n")
    labels = {
        "com.docker.compose.project": demo.env["COMPOSE_PROJECT_NAME"],
        "com.docker.compose.service": "demo-cpu-worker",
        "com.docker.compose.oneoff": "False",
    }
    said = f"echo Authorization: Bearer {canaries['log']}; echo {canaries['environment']}; echo --api-key {canaries['argument']}"
    container = docker.from_env().containers.run(
        IMAGE, ["sh", "-c", said], labels=labels, environment={"LAUNCH_API_KEY": canaries["environment"]}, detach=True
    )
    try:
        container.wait(timeout=60)
        file = tmp_path / "bundle.tar.gz"
        env = {"HF_TOKEN_FILE": str(tmp_path / "file"), "CLUSTER_TOKEN_FILE": str(tmp_path / "token")}
        env["PIP_INDEX_URL"] = f"https://me:{canaries['index']}@mirror.example/simple"
        result = engineroom(demo, "bundle", "demo-cpu", "--to", str(file), **env)
    finally:
        container.remove(force=True, v=True)

    assert result.returncode == 0, result.stderr
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as archive:
        texts = {Path(member.name).name: archive.extractfile(member).read().decode() for member in archive.getmembers()}  # type: ignore[union-attr]
    leaks = [(name, place) for name, text in texts.items() for place, canary in canaries.items() if canary in text or canary[-12:] in text]
    assert leaks == []
    assert texts["demo-cpu-worker.log"].count("********") == 3
    assert "[launch] ready after" in texts["demo-cpu-engine.log"]
    assert json.loads(texts["compose.json"])["services"]["demo-cpu-engine"]["environment"]["LAUNCH_MODEL_NAME"] == "demo-r1"
    assert json.loads(texts["image.json"])["image"] == "cpu"
    assert {row["status"] for row in json.loads(texts["doctor.json"])} <= {"ok", "warning", "failed"}
    assert json.loads(texts["versions.json"])["images"]["demo-cpu-engine"]["name"] == IMAGE


def test_the_launchers_lines_as_json() -> None:
    """Of a start that is refused every line is an object, and the plan in them shows no secret."""
    settings = {"LAUNCH_LOG": "json", "LAUNCH_API_KEY": "canary-0123456789", "VLLM_SERVER_DEV_MODE": "1"}
    container = docker.from_env().containers.run(IMAGE, ["serve"], environment=settings, detach=True)
    try:
        assert container.wait(timeout=60)["StatusCode"] == 78
        text = container.logs().decode()
    finally:
        container.remove(force=True, v=True)
    rows = [json.loads(line) for line in text.splitlines()]

    assert {"time", "level", "event", "message"} <= set.intersection(*map(set, rows))
    assert [row["event"] for row in rows][:2] == ["image", "role"]
    assert (rows[-1]["level"], rows[-1]["event"], rows[-1]["code"]) == ("ERROR", "exit", 78)
    assert settings["LAUNCH_API_KEY"] not in text
