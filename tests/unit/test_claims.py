"""What guides claim and is wrong, each held against what this project says or does. Sizes and precisions are in test_planner.py."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import charts
import forms
import helm_python
import pytest
from checkpoints import small_model
from click.testing import CliRunner

from engineroom.catalog import Catalog
from launcher import cli

ROOT = Path(__file__).parents[2]
POPEN = subprocess.Popen


def test_eager_is_no_setting_for_throughput(stub_gpus: Callable[[str], None], tmp_path: Path) -> None:
    """R9: `--enforce-eager` is taken, and what it costs is said; without it there is nothing to say."""
    stub_gpus("NVIDIA H200:90:141")
    env = {"LAUNCH_IMAGE": str(ROOT / "images/h200-fp8/image.json"), "LAUNCH_MODEL": str(small_model(tmp_path))}

    eager, graphs = (CliRunner().invoke(cli.cli, ["serve", "--dry-run", *flags], env=env).output for flags in (["--enforce-eager"], []))

    assert "WARNING graphs: CUDA graphs are switched off: an H200 gave 1.2 to 2.8 times the tokens with them" in eager
    assert "graphs" not in graphs


def test_an_unquoted_version_is_a_redirection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install vllm>=0.6.0` asks for no version and makes a file `=0.6.0`; nothing of ours is written so."""
    monkeypatch.setattr(subprocess, "Popen", POPEN)

    said = subprocess.run(["bash", "-c", "echo pip install vllm>=0.6.0"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert said == ""
    assert (tmp_path / "=0.6.0").read_text() == "pip install vllm\n"
    for file in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("images/*/Dockerfile"),
        ROOT / "Makefile",
    ):
        assert not re.search(r"pip3? install[^\"'\n]*\w[<>]=?\d", file.read_text()), file


def test_autoscaling_gpu_servers_on_cpu_use_does_nothing_useful(catalog: Catalog) -> None:
    """R15: whatever scales the servers of any stack asks what they say of themselves; use of CPU or memory cannot even be asked for."""
    asked: list[tuple[str, str]] = []
    for stack, row in catalog.stacks.items():
        chart, gauges = forms.render(catalog, stack, "helm"), catalog.release_of(row.image).metrics
        for kind in ("hpa", "keda"):
            with pytest.raises(helm_python.HelmValuesError, match="value must be one of 'waiting', 'cache'"):
                charts.template(chart, charts.autoscaled(kind, "cpu"))
            for metric in ("waiting", "cache"):
                if row.nodes > 1 or not gauges.waiting:
                    with pytest.raises(helm_python.HelmRenderError, match="a replica would be a whole group|has no Prometheus gauge"):
                        charts.template(chart, charts.autoscaled(kind, metric))
                    continue
                for scaler in charts.scalers(charts.objects(chart, charts.autoscaled(kind, metric))):
                    found = list(asks(scaler["spec"]))
                    assert {name for _, name in found} <= {gauges.waiting.replace(":", "_"), gauges.cache.replace(":", "_")}
                    asked += found

    assert {way for way, _ in asked} == {"Pods", "prometheus"}
    assert len(asked) > 8


def asks(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a HorizontalPodAutoscaler or a ScaledObject asks for: the way, and the name as the former spells it."""
    for metric in spec.get("metrics", []):
        yield metric["type"], metric["pods"]["metric"]["name"]
    for trigger in spec.get("triggers", []):
        yield trigger["type"], trigger["metadata"]["query"].removeprefix("sum(").partition("{")[0].replace(":", "_")
