"""What a node is, from what schedulers really leave in its environment."""

from __future__ import annotations

import pytest
from schedulers import CRATER_PYTORCH, KUBERAY_HEAD, KUBERAY_WORKER, NODES, SLURM_JOB, SLURM_STEP, VOLCANO_HOSTS, VOLCANO_PYTORCH, Node, lws

from launcher.errors import Refused
from launcher.role import Role, detect, first_host
from launcher.settings import SETTINGS, Settings


def role(env: dict[str, str]) -> Role:
    given = {setting.name: setting.kind(env[setting.variable]) for setting in SETTINGS if setting.variable in env}
    defaults = {setting.name: setting.default for setting in SETTINGS}
    return detect(Settings(**{**defaults, **given}, args={}, extra=(), secrets={}), env)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_each_scheduler_gives_a_role(node: Node) -> None:
    """Role, nodes, rank and head follow from the environment, and the rule says by which sign."""
    found = role(node.env)

    assert found[:1] + found[2:] == (node.role, node.nodes, node.rank, node.head), found.rule
    assert found.rule


@pytest.mark.parametrize("node", [node for node in NODES if "LAUNCH_ROLE" not in node.env and node.nodes > 1], ids=lambda node: node.name)
def test_launch_head_wins_over_the_schedulers(node: Node) -> None:
    """A head that the user names is looked for in place of the scheduler's."""
    assert role({**node.env, "LAUNCH_HEAD": "10.9.9.9"}).head == "10.9.9.9"


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "1", "MASTER_ADDR": "10.0.0.1"}, "WORLD_SIZE is not set"),
        (CRATER_PYTORCH, "RANK is not set"),  # the pod of a third task
        ({"LAUNCH_ROLE": "worker", "LAUNCH_NODES": "2"}, "Set LAUNCH_HEAD"),
        ({"JOB_COMPLETION_INDEX": "1", "HOSTNAME": "gpu17", "LAUNCH_NODES": "2"}, "Set LAUNCH_HEAD"),
        ({k: v for k, v in KUBERAY_WORKER.items() if k != "FQ_RAY_IP"} | {"LAUNCH_NODES": "2"}, "FQ_RAY_IP is not set"),
        (KUBERAY_HEAD, "Set LAUNCH_NODES in the head group and in the worker group"),
        ({"LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "a.b"}, "LWS_WORKER_INDEX is not set"),
        ({**SLURM_STEP, "SLURM_NODEID": ""}, "SLURM_NODEID is not set"),
        ({**SLURM_STEP, **VOLCANO_PYTORCH, "RANK": "0"}, "Two schedulers speak at once: RANK and WORLD_SIZE .* Slurm's SLURM_STEP_NUM_NODES"),
        ({**lws("a.b", 2, 0, "a"), "VC_DEFAULT0_HOSTS": "a-default0-0.a"}, "Two schedulers speak at once: .*LWS_GROUP_SIZE.*VC_"),
        ({"LAUNCH_NODES": "0"}, "LAUNCH_NODES is 0"),
        ({"LAUNCH_NODES": "-1", "LAUNCH_ROLE": "head"}, "LAUNCH_NODES is -1"),
        ({"LAUNCH_NODES": "2"}, "LAUNCH_NODES is 2 and nothing says which node this is. Set LAUNCH_ROLE"),
        ({"LAUNCH_HEAD": "10.0.0.1"}, "LAUNCH_HEAD is set and nothing says what this node is. Set LAUNCH_ROLE"),
        (lws("a.b", 0, 0, "a"), "LWS_GROUP_SIZE and LWS_WORKER_INDEX give node 0 of 0"),
        (lws("a.b", 2, 2, "a"), "LWS_GROUP_SIZE and LWS_WORKER_INDEX give node 2 of 2"),
        ({**VOLCANO_PYTORCH, "RANK": "2"}, "RANK and WORLD_SIZE of a PyTorch job give node 2 of 2"),
        ({**SLURM_STEP, "SLURM_NODEID": "2"}, "SLURM_NODEID give node 2 of 2"),
        ({**lws("a.b", 2, 0, "a"), "LAUNCH_NODES": "3"}, "LAUNCH_NODES is 3, and .*LWS_GROUP_SIZE.* says 2 nodes"),
        ({**SLURM_STEP, "LAUNCH_NODES": "1"}, "LAUNCH_NODES is 1, and .*SLURM_STEP_NUM_NODES.* says 2 nodes"),
        ({"LAUNCH_ROLE": "single", "LAUNCH_NODES": "2"}, "Role single and 2 nodes .*LAUNCH_NODES to 1"),
        ({"LAUNCH_ROLE": "head"}, "Role head of one node .*set LAUNCH_NODES"),
        ({"LAUNCH_ROLE": "worker", "LAUNCH_HEAD": "a", "LAUNCH_NODES": "1"}, "Role worker of one node .*set LAUNCH_NODES"),
        ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1"}, "LOCAL_WORLD_SIZE=8"),
        ({**SLURM_STEP, "SLURM_LOCALID": "1", "SLURM_PROCID": "1"}, "SLURM_LOCALID=1"),
        ({**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "16"}, "SLURM_LOCALID=0, 16 tasks"),
        (SLURM_JOB, "SLURM_NNODES=2 nodes, and this is the job's script.*\n.*srun --ntasks-per-node=1"),
        ({**VOLCANO_HOSTS, "HOSTNAME": "gpu17"}, r"VC_\*_HOSTS name llm-master-0.llm, .* and this host is gpu17"),  # hostNetwork
        (lws("a.b", 2, 1, "a") | {"LWS_GROUP_SIZE": "two"}, "LWS_GROUP_SIZE is 'two', and a number was wanted"),
        ({**VOLCANO_PYTORCH, "RANK": "-1"}, "RANK is '-1', and a number was wanted"),
        ({**VOLCANO_PYTORCH, "RANK": "²"}, "RANK is '²', and a number was wanted"),
    ],
)  # fmt: skip
def test_half_an_answer_is_refused(env: dict[str, str], named: str) -> None:
    """Partial, impossible and contradicting environments end with 78 and name the variable."""
    with pytest.raises(Refused, match=named) as error:
        role({"HOSTNAME": "somewhere", **env})

    assert error.value.exit_code == 78


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gnode10", "gnode10"),
        ("gnode[10-11]", "gnode10"),
        ("gnode[10,20,25-37],rack1n[001-004]", "gnode10"),
        ("n[098-101]", "n098"),
        ("n[9-11]", "n9"),
        ("a,b[1,3],c-01", "a"),
        ("rack[1-2]n[01-02]", "rack1n01"),
        ("node[1-2].cluster.local", "node1.cluster.local"),
        ("lx[15,18,32-33]", "lx15"),
        ("linux[0000-1023]", "linux0000"),
        ("ip-10-0-1-[5,9]", "ip-10-0-1-5"),
        ("tux[2,1-2]", "tux2"),
        ("node1,cn-d[003-004,006],node5,kep-d[03-04,06]", "node1"),
        ("host_a[2-5,7,14-15],host_b,host_c[008-010,012,017-019],host_d[099-101]", "host_a2"),
        ("", ""),
    ],
)
def test_first_host_of_slurms_short_form(nodes: str, first: str) -> None:
    """The first name of Slurm's node lists, with the zeros that it was written with."""
    assert first_host(nodes) == first
