"""What a process sees in its environment under each scheduler. Formats are those of the cited sources; job names are made up."""

from __future__ import annotations

from typing import NamedTuple


class Node(NamedTuple):
    """One process: its environment, what the launcher makes of it, and who says that it looks like this."""

    name: str
    source: str
    env: dict[str, str]
    role: str
    nodes: int = 1
    rank: int | None = 0
    head: str | None = None


LWS = "kubernetes-sigs/lws:pkg/utils/pod/pod_utils.go"
VOLCANO_SVC = "volcano-sh/volcano:pkg/controllers/job/plugins/svc/svc.go"
VOLCANO_TORCH = "volcano-sh/volcano:pkg/controllers/job/plugins/distributed-framework/pytorch/pytorch.go"
CRATER = "raids-lab/crater:frontend/src/routes/portal/jobs/new/pytorch-ddp-job.tsx"
CRATER_ALONE = "raids-lab/crater:backend/internal/handler/vcjob/custom.go"
SLURM = "https://slurm.schedmd.com/srun.html"
SBATCH = "https://slurm.schedmd.com/sbatch.html"
KUBERAY = "ray-project/kuberay:ray-operator/controllers/ray/common/pod.go"
JOB = "https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/"
COMPLETION = "https://kubernetes.io/blog/2021/04/19/introducing-indexed-jobs/"
TORCHRUN = "https://docs.pytorch.org/docs/stable/elastic/run.html"
OURS = "entrypoints/launcher/settings.py"

SLURM_JOB = {
    "SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gnode[10-11]",
    "SLURM_NODELIST": "gnode[10-11]", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURMD_NODENAME": "gnode10",
}  # fmt: skip
SLURM_STEP = {
    **SLURM_JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gnode[10-11]", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip
SLURM_ONE = {"SLURM_JOB_ID": "4712", "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "gnode10", "SLURM_NODEID": "0"}
VOLCANO_HOSTS = {
    "VC_WORKER_HOSTS": "llm-worker-0.llm,llm-worker-1.llm", "VC_WORKER_NUM": "2", "VC_MASTER_HOSTS": "llm-master-0.llm",
    "VC_MASTER_NUM": "1", "VC_TASK_INDEX": "0", "VK_TASK_INDEX": "0",
}  # fmt: skip
VOLCANO_PYTORCH = {
    "MASTER_ADDR": "vllm-rdma-test-master-0.vllm-rdma-test", "MASTER_PORT": "23456", "WORLD_SIZE": "2",
    "VC_MASTER_HOSTS": "vllm-rdma-test-master-0.vllm-rdma-test", "VC_MASTER_NUM": "1",
    "VC_WORKER_HOSTS": "vllm-rdma-test-worker-0.vllm-rdma-test", "VC_WORKER_NUM": "1",
}  # fmt: skip
CRATER_PYTORCH = {
    "MASTER_ADDR": "py-liyilong-670a0-master-0.py-liyilong-670a0", "MASTER_PORT": "23456", "WORLD_SIZE": "2",
    "VC_MASTER_HOSTS": "py-liyilong-670a0-master-0.py-liyilong-670a0", "VC_WORKER_HOSTS": "py-liyilong-670a0-worker-0.py-liyilong-670a0",
}  # fmt: skip
KUBERAY_HEAD = {
    "RAY_CLUSTER_NAME": "raycluster-ow", "RAY_CLOUD_INSTANCE_ID": "raycluster-ow-head-x7k2p", "RAY_NODE_TYPE_NAME": "headgroup",
    "RAY_ADDRESS": "127.0.0.1:6379", "RAY_PORT": "6379", "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
    "KUBERAY_GEN_RAY_START_CMD": "ray start --head  --block  --dashboard-agent-listen-port=52365  --num-cpus=1 ",
}  # fmt: skip
KUBERAY_WORKER = {
    **KUBERAY_HEAD, "RAY_CLOUD_INSTANCE_ID": "raycluster-ow-small-group-worker-9bq4z", "RAY_NODE_TYPE_NAME": "small-group",
    "FQ_RAY_IP": "raycluster-ow-head-svc.default.svc.cluster.local", "RAY_IP": "raycluster-ow-head-svc",
    "RAY_ADDRESS": "raycluster-ow-head-svc.default.svc.cluster.local:6379",
    "KUBERAY_GEN_RAY_START_CMD": "ray start  --address=raycluster-ow-head-svc.default.svc.cluster.local:6379  --block ",
}  # fmt: skip
TWO, THREE = {"LAUNCH_NODES": "2"}, {"LAUNCH_NODES": "3"}


def lws(address: str, size: int, index: int, hostname: str) -> dict[str, str]:
    return {"LWS_LEADER_ADDRESS": address, "LWS_GROUP_SIZE": str(size), "LWS_WORKER_INDEX": str(index), "HOSTNAME": hostname}


CRATER_HEAD = CRATER_PYTORCH["MASTER_ADDR"]
NODES = (
    Node("lws leader", LWS, lws("vllm-0.vllm.default", 2, 0, "vllm-0"), "head", 2, 0, "vllm-0.vllm.default"),
    Node("lws worker", LWS, lws("vllm-0.vllm.default", 2, 1, "vllm-0-1"), "worker", 2, 1, "vllm-0.vllm.default"),
    Node("lws second group", LWS, lws("vllm-1.vllm-1.default", 3, 2, "vllm-1-2"), "worker", 3, 2, "vllm-1.vllm-1.default"),
    Node("lws group of one", LWS, lws("vllm-0.vllm.default", 1, 0, "vllm-0"), "single"),
    Node("volcano svc head", VOLCANO_SVC, {**VOLCANO_HOSTS, "HOSTNAME": "llm-master-0"}, "head", 3, 0, "llm-master-0.llm"),
    Node("volcano svc worker", VOLCANO_SVC, {**VOLCANO_HOSTS, "HOSTNAME": "llm-worker-0"}, "worker", 3, 1, "llm-master-0.llm"),
    Node("volcano svc last", VOLCANO_SVC, {**VOLCANO_HOSTS, "HOSTNAME": "llm-worker-1"}, "worker", 3, 2, "llm-master-0.llm"),
    Node("volcano svc of one task", VOLCANO_SVC, {"VC_DEFAULT0_HOSTS": "a-default0-0.a,a-default0-1.a", "HOSTNAME": "a-default0-1"},
         "worker", 2, 1, "a-default0-0.a"),
    Node("volcano svc of other names", VOLCANO_SVC, {"VC_GPU_WORKER_HOSTS": "a-gpu-worker-0.a", "VC_HEAD_HOSTS": "a-head-0.a", "HOSTNAME": "a-head-0"},
         "head", 2, 0, "a-head-0.a"),
    Node("volcano pytorch head", VOLCANO_TORCH, {**VOLCANO_PYTORCH, "RANK": "0", "HOSTNAME": "vllm-rdma-test-master-0"},
         "head", 2, 0, "vllm-rdma-test-master-0.vllm-rdma-test"),
    Node("volcano pytorch worker", VOLCANO_TORCH, {**VOLCANO_PYTORCH, "RANK": "1", "HOSTNAME": "vllm-rdma-test-worker-0"},
         "worker", 2, 1, "vllm-rdma-test-master-0.vllm-rdma-test"),
    Node("crater head", CRATER, {**CRATER_PYTORCH, "RANK": "0", "HOSTNAME": "py-liyilong-670a0-master-0"}, "head", 2, 0, CRATER_HEAD),
    Node("crater worker", CRATER, {**CRATER_PYTORCH, "RANK": "1", "HOSTNAME": "py-liyilong-670a0-worker-0"}, "worker", 2, 1, CRATER_HEAD),
    Node("crater alone", CRATER_ALONE, {"VC_DEFAULT0_HOSTS": "sg-li-1-default0-0.sg-li-1", "HOSTNAME": "sg-li-1-default0-0"}, "single"),
    Node("torchrun a node head", TORCHRUN, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1"},
         "head", 2, 0, "10.0.0.1"),
    Node("slurm srun head", SLURM, SLURM_STEP, "head", 2, 0, "gnode10"),
    Node("slurm srun worker", SLURM, {**SLURM_STEP, "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURMD_NODENAME": "gnode11"},
         "worker", 2, 1, "gnode10"),
    Node("slurm step of half the job", SLURM, {**SLURM_STEP, "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gnode[08-11]"},
         "head", 2, 0, "gnode10"),
    Node("slurm step of one node", SLURM, {**SLURM_STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "gnode11"},
         "single"),
    Node("slurm batch shell of one node", SBATCH, SLURM_ONE, "single"),
    Node("slurm batch shell with a role", SBATCH, {**SLURM_JOB, **TWO, "LAUNCH_ROLE": "head"}, "head", 2, 0),
    Node("kuberay head", KUBERAY, {**KUBERAY_HEAD, **TWO}, "head", 2, 0),
    Node("kuberay worker", KUBERAY, {**KUBERAY_WORKER, **TWO}, "worker", 2, None, "raycluster-ow-head-svc.default.svc.cluster.local"),
    Node("kuberay alone", KUBERAY, {**KUBERAY_HEAD, "LAUNCH_NODES": "1"}, "single"),
    Node("indexed job head", JOB, {"JOB_COMPLETION_INDEX": "0", "HOSTNAME": "serve-0", **TWO}, "head", 2, 0),
    Node("indexed job worker", JOB, {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": "serve-1", "LAUNCH_HEAD": "serve-0.serve-svc", **TWO},
         "worker", 2, 1, "serve-0.serve-svc"),
    Node("indexed job of servers", COMPLETION, {"JOB_COMPLETION_INDEX": "3", "HOSTNAME": "serve-3"}, "single"),
    Node("explicit head", OURS, {"LAUNCH_ROLE": "head", **TWO}, "head", 2, 0),
    Node("explicit worker", OURS, {"LAUNCH_ROLE": "worker", "LAUNCH_HEAD": "10.0.0.1", **THREE}, "worker", 3, None, "10.0.0.1"),
    Node("explicit over a scheduler", OURS, {**SLURM_STEP, "LAUNCH_ROLE": "single"}, "single"),
    Node("nothing", OURS, {"HOSTNAME": "0f3a9c1b2d4e", "PATH": "/usr/bin"}, "single"),
)  # fmt: skip
