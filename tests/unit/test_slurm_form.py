"""`engineroom jobs --to slurm`: what Slurm is asked for, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import forms
import pytest

from engineroom import stacks
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotRun
from engineroom.forms.slurm import HOURS

CATALOG = Catalog(Path(__file__).parents[2])


def directives(stack: str, **options: object) -> dict[str, str]:
    """The options for sbatch in a stack's script, up to the first line that is no comment: sbatch reads no further."""
    (text,) = forms.render(CATALOG, stack, "slurm", **options).values()
    head = re.match(r"(?:#.*\n)+", text)
    assert head
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", head[0], re.MULTILINE))


def test_what_is_asked_for() -> None:
    """A node's GPUs on each node, one task there, and a word in time for the drain."""
    assert directives("r1-32b-v100", node_selector={"partition": "gpu", "constraint": "v100&nvlink"}) == {
        "job-name": "r1-32b-v100", "nodes": "2", "ntasks-per-node": "1", "gres": "gpu:4", "cpus-per-task": "16", "mem": "80G",
        "time": "08:00:00", "signal": "B:USR1@135", "no-requeue": "", "output": "%x-%j.log", "partition": "gpu", "constraint": "v100&nvlink",
    }  # fmt: skip


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_time_outlasts_the_start(stack: str) -> None:
    """The job must not end while the launcher may still be loading; no GPUs are asked for where there are none."""
    assert stacks.served(CATALOG, stack)["healthy_seconds"] < HOURS * 3600
    assert ("gres" in directives(stack)) == bool(CATALOG.stacks[stack].gpus)


@pytest.mark.parametrize("selector", [{"nvidia.com/gpu.product": "V100"}, {"partition": "gpu\nrm"}, {"partition": "gpu --uid=0"}])
def test_selectors_are_options_of_sbatch(selector: dict[str, str]) -> None:
    """Labels of Kubernetes, and what would be more than one option, are refused."""
    with pytest.raises(BadRequest, match="for Slurm these are options of sbatch"):
        directives("demo-cpu", node_selector=selector)


def test_only_options_that_choose_nodes_can_contradict() -> None:
    """Another GPU in the name of an account, or among the nodes that are left out, is none that the job would run on."""
    for name in ("exclude", "account", "comment"):
        assert directives("r1-7b-v100", node_selector={name: "h200-old"})[name] == "h200-old"
    for name in ("constraint", "gres", "gpus", "gpus-per-node", "partition", "nodelist"):
        with pytest.raises(CannotRun, match="v100-half is for NVIDIA V100"):
            directives("r1-7b-v100", node_selector={name: "h200-new"})


@pytest.mark.parametrize(
    ("url", "port"),
    [("http://localhost:3000", 3000), ("http://localhost:80", 80), ("http://localhost:4000/", 4000), ("https://chat.example", 3000)],
)
def test_the_tunnel_ends_where_the_page_is_opened(url: str, port: int) -> None:
    """The port that people open, which the default one of its kind has too."""
    (text,) = forms.render(CATALOG, "demo-cpu", "slurm", url=url).values()

    assert f"ssh -N -L {port}:127.0.0.1" in text


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("hf_token", "set HF_TOKEN_FILE or CLUSTER_TOKEN_FILE"),
        ("cluster_token", "set HF_TOKEN_FILE or CLUSTER_TOKEN_FILE"),
        ("namespace", "no namespaces"),
        ("storage_class", "no volumes"),
    ],
)
def test_what_means_nothing_to_slurm(option: str, reason: str) -> None:
    """What only Kubernetes has is refused, with what to use instead."""
    with pytest.raises(BadRequest, match=reason):
        directives("r1-32b-v100", **{option: "mine"})
