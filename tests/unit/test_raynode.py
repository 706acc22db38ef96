"""Ray's command line, ports and environment on one node."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import raynode
from launcher.errors import Refused

SHARED = [
    "--node-ip-address=10.0.0.2", "--node-manager-port=6372", "--object-manager-port=6373", "--runtime-env-agent-port=6374",
    "--dashboard-agent-grpc-port=6375", "--dashboard-agent-listen-port=6376", "--metrics-export-port=6377", "--min-worker-port=10002",
    "--max-worker-port=19999", "--num-gpus=4", "--object-store-memory=83886080", "--disable-usage-stats",
]  # fmt: skip


def test_the_heads_command_line() -> None:
    """The head has Ray's own port, the ninth after the first, every other port named, and no dashboard."""
    found = raynode.command(head=None, ip="10.0.0.2", port=6370, gpus=4, store=80 << 20)

    assert found == ["ray", "start", "--head", "--port=6379", "--include-dashboard=false", "--no-monitor", *SHARED]


def test_a_workers_command_line() -> None:
    """A worker joins the head's port from its own address; options of the head, which Ray would refuse, are not there."""
    found = raynode.command(head="10.0.0.1", ip="10.0.0.2", port=6370, gpus=4, store=80 << 20)

    assert found == ["ray", "start", "--address=10.0.0.1:6379", *SHARED]


def test_all_ports_follow_the_first() -> None:
    """Another first port moves every port that Ray listens on, save those of its workers, and no two are the same."""
    moved = raynode.command(head=None, ip="10.0.0.2", port=20000, gpus=0, store=1)
    ports = [int(word.partition("=")[2]) for word in moved if word.partition("=")[0].endswith("port") and "worker" not in word]

    assert len(set(ports)) == 7
    assert all(20000 < port <= 20000 + raynode.GCS and port != 20000 + raynode.MASTER for port in ports)


@pytest.mark.parametrize(("cluster", "api"), [(6370, 8000), (6370, 6369), (6370, 6380), (9991, 10001 - 11), (20000, 10000), (65000, 8000)])
def test_ports_that_go_together(cluster: int, api: int) -> None:
    """Ports side by side are taken as they are."""
    raynode.check_ports(cluster, api, "ray")


@pytest.mark.parametrize(
    ("cluster", "api", "message"),
    [
        (6370, 6370, "LAUNCH_PORT 6370 is one of the cluster's own ports .6370 to 6379"),
        (6370, 6379, "LAUNCH_PORT 6379 is one of the cluster's own ports"),
        (6370, 10001, "LAUNCH_PORT 10001 is one of the cluster's own ports"),
        (6370, 19999, "LAUNCH_PORT 19999 is one of the cluster's own ports"),
        (9992, 8000, "LAUNCH_CLUSTER_PORT 9992 takes 9992 to 10001, and Ray's workers have 10001 to 19999"),
        (10002, 8000, "LAUNCH_CLUSTER_PORT 10002 takes 10002 to 10011"),
        (19999, 8000, "LAUNCH_CLUSTER_PORT 19999 takes 19999 to 20008"),
    ],
)
def test_ports_that_run_into_each_other(cluster: int, api: int, message: str) -> None:
    """A cluster's ports that overlap Ray's, the API's or the end of all ports are refused, and named."""
    with pytest.raises(Refused, match=message):
        raynode.check_ports(cluster, api, "ray")


def test_the_token_and_the_mode() -> None:
    """With a token Ray asks for it; without one the mode is switched off outright. Nothing is reported to Ray's makers either way."""
    guarded, open_ = raynode.environment("canary"), raynode.environment("")

    assert guarded["RAY_AUTH_MODE"] == "token"
    assert guarded["RAY_AUTH_TOKEN"] == "canary"
    assert open_["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in open_
    assert guarded["RAY_USAGE_STATS_ENABLED"] == open_["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(("free", "store"), [(64 << 20, raynode.LEAST_STORE), (400 << 20, 200 << 20), (64 << 30, raynode.OBJECT_STORE)])
def test_the_object_store_fits_shared_memory(monkeypatch: pytest.MonkeyPatch, free: int, store: int) -> None:
    """Half of what is free, but neither less than Ray takes nor more than the engines need."""

    class Shm:
        f_bavail, f_frsize = free // 4096, 4096

    monkeypatch.setattr(raynode.os, "statvfs", lambda _: Shm)

    assert raynode.store_bytes() == store


def test_rays_release_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release is that of the `ray` on PATH; without one there is none."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert raynode.version() == ""

    program = tmp_path / "bin/ray"
    program.parent.mkdir()
    program.touch(mode=0o755)
    assert raynode.version() == "unknown"

    (tmp_path / "lib/python3.12/site-packages/ray-2.55.1.dist-info").mkdir(parents=True)
    assert raynode.version() == "2.55.1"
