from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import small_model
from click.testing import CliRunner, Result
from schedulers import NODES, Node

from launcher import cli, network, raynode, settings
from launcher.engines import ENGINES
from launcher.engines.common import Request
from launcher.errors import BadUsage, LaunchError, Refused, Unavailable

FACTS = {
    "image": "v100-half", "engine": "vllm", "release": "vllm-0.9.2", "version": "0.9.2", "precision": "half", "gpus": {"v100": 70},
    "cuda": "12.6", "min_driver": "525.60", "executors": ["ray", "native"], "model": "", "model_name": "",
    "args": {"dtype": "half", "enable-chunked-prefill": False}, "env": {"VLLM_X": "1"},
}  # fmt: skip


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub_gpus: Callable[[str], None]) -> Path:
    """One V100, and an image.json and a model folder that the settings name."""
    small_model(tmp_path / "model")
    stub_gpus("4*Tesla V100-SXM2-32GB:70:32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "image.json").write_text(json.dumps(FACTS))
    monkeypatch.setenv("LAUNCH_IMAGE", str(tmp_path / "image.json"))
    monkeypatch.setenv("LAUNCH_MODEL", str(tmp_path / "model"))
    return tmp_path


def dry_run(*arguments: str, **env: str | None) -> Result:
    return CliRunner().invoke(cli.cli, ["serve", "--dry-run", *arguments], env=env)


def command(*arguments: str, **env: str | None) -> list[str]:
    result = dry_run("--json", *arguments, **env)
    assert result.exception is None, result.exception
    return list(json.loads(result.output)["command"])


def test_command_of_an_image(image: Path) -> None:
    """The image's defaults become flags, a switched-off one with `no-`."""
    found = command(LAUNCH_MODEL_NAME="r1-7b", LAUNCH_MAX_MODEL_LEN="8192", LAUNCH_PORT="8123")

    assert found == [
        "vllm", "serve", str(image / "model"), "--dtype", "half", "--no-enable-chunked-prefill",
        "--served-model-name", "r1-7b", "--host", "0.0.0.0", "--port", "8123", "--max-model-len", "8192",
        "--middleware", "engineroom_drain.Drain",
    ]  # fmt: skip


def test_flag_over_environment_over_image(image: Path) -> None:
    """A flag wins over the environment, and the environment over the image's default."""
    found = command("--port", "9001", LAUNCH_PORT="9002")
    assert found[found.index("--port") + 1] == "9001"
    found = command(LAUNCH_ARG_DTYPE="float32", LAUNCH_ARG_ENABLE_CHUNKED_PREFILL="true")
    assert found[found.index("--dtype") + 1] == "float32"
    assert "--enable-chunked-prefill" in found
    assert "--no-enable-chunked-prefill" not in found


def test_the_address_to_listen_on(image: Path) -> None:
    """Every address of the container unless another is asked for."""
    found = command(LAUNCH_HOST="127.0.0.1")

    assert found[found.index("--host") + 1] == "127.0.0.1"


def test_unlisted_flags_go_to_the_engine(image: Path) -> None:
    """Flags that are no settings reach the engine as they are, last."""
    assert command("--seed", "7", "--max-log-len=10")[-3:] == ["--seed", "7", "--max-log-len=10"]


@pytest.mark.parametrize(
    "flag",
    [
        "--api-key=canary",
        "--node-rank=1",
        "--api_key=canary",
    ],
)
def test_the_launchers_own_flags_do_not_go_to_the_engine(image: Path, flag: str) -> None:
    """Flags that are settings are refused in each spelling that an engine takes: a key would stand in the open."""
    assert isinstance(dry_run(flag).exception, Refused)


def test_the_role_and_its_rule_are_printed(image: Path) -> None:
    """The dry run says which role was taken and why, and gives a command that can be pasted."""
    output = dry_run(LAUNCH_MODEL_NAME="it's").output

    assert "role      single (no cluster in sight)" in output
    assert "'it'\"'\"'s'" in output


@pytest.mark.fault(36)
def test_fault_36_metacharacters_stay_one_argument(image: Path, tmp_path: Path) -> None:
    """A value with shell metacharacters is one literal argument."""
    hostile = f"$(touch {tmp_path}/owned); `id` && x"

    found = command(LAUNCH_ARG_TOKENIZER=hostile, LAUNCH_MODEL_NAME="--port=1")

    assert found[found.index("--tokenizer") + 1] == hostile
    assert "--served-model-name=--port=1" in found
    assert not (tmp_path / "owned").exists()


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("env", "code", "message"),
    [
        ({"LAUNCH_PROT": "1"}, 78, "Unknown setting LAUNCH_PROT. Did you mean LAUNCH_PORT?"),
        ({"LAUNCH_MAX_MODEL_LENGTH": "1"}, 78, "Did you mean LAUNCH_MAX_MODEL_LEN?"),
        ({"LAUNCH_PORT": "http"}, 2, "LAUNCH_PORT"),
        ({"LAUNCH_ROLE": "boss"}, 2, "LAUNCH_ROLE"),
        ({"LAUNCH_MODEL": "/no/such"}, 78, "neither a folder in this container nor a hub id"),
        ({"LAUNCH_MODEL": None}, 78, "No model: set LAUNCH_MODEL"),
        ({"LAUNCH_NODES": "2"}, 78, "Set LAUNCH_ROLE to head or worker"),
        ({"LAUNCH_NODES": "0"}, 78, "LAUNCH_NODES is 0: a stack has at least one node"),
        ({"LAUNCH_NODES": "two"}, 2, "LAUNCH_NODES"),
        ({"LAUNCH_NODES": "2", "LAUNCH_ROLE": "head"}, 78, "A stack of 2 nodes needs a token"),
        ({"LAUNCH_EXECUTOR": "slurm"}, 2, "LAUNCH_EXECUTOR"),
        ({"LAUNCH_EXECUTOR": "ray"}, 78, "LAUNCH_EXECUTOR is ray, which joins several nodes, and this stack has one"),
        ({"LAUNCH_CLUSTER_PORT": "80"}, 2, "LAUNCH_CLUSTER_PORT"),
        ({"LAUNCH_PEER_SECONDS": "1"}, 2, "LAUNCH_PEER_SECONDS"),
        ({"LAUNCH_API_KEY": "x", "LAUNCH_API_KEY_FILE": "y"}, 78, "Both LAUNCH_API_KEY and LAUNCH_API_KEY_FILE"),
        ({"HF_TOKEN_FILE": "/no/such"}, 78, "HF_TOKEN_FILE names /no/such, which cannot be read"),
        ({"LAUNCH_IMAGE": "/no/such"}, 78, "is this an Engine Room image"),
        ({"LAUNCH_PORT": "0"}, 2, "LAUNCH_PORT"),
        ({"LAUNCH_TP": "-2"}, 2, "LAUNCH_TP"),
        ({"LAUNCH_ARG_": "x"}, 78, "LAUNCH_ARG_ names no flag"),
        ({"LAUNCH_ARG_PORT": "9000"}, 78, "Use LAUNCH_PORT"),
        ({"LAUNCH_ARG_NNODES": "2"}, 78, "Use LAUNCH_NODES"),
        ({"LAUNCH_ARG_API_KEY": "canary"}, 78, "Use LAUNCH_API_KEY_FILE"),
        ({"LAUNCH_API_KEY": "can\u20acary"}, 78, "LAUNCH_API_KEY holds characters"),
    ],
)
def test_fault_35_bad_settings_are_named(image: Path, env: dict[str, str | None], code: int, message: str) -> None:
    """An unknown or bad setting ends with 2 or 78 and is named, with a hint and without a traceback."""
    result = dry_run(**env)

    if isinstance(result.exception, LaunchError):
        assert result.exception.exit_code == code
        assert message in str(result.exception)
    else:
        assert result.exit_code == code
        assert message in result.output


def test_a_folder_without_config_is_named(image: Path) -> None:
    """A model folder without config.json is refused, with what it holds."""
    (image / "model/config.json").rename(image / "model/readme.txt")

    error = dry_run().exception

    assert isinstance(error, Refused)
    assert "has no config.json: it holds model.safetensors, readme.txt, tokenizer.json" in str(error)


def test_settings_win_over_the_images_flags(image: Path) -> None:
    """LAUNCH_MAX_SEQS wins over the image's max-num-seqs."""
    (image / "image.json").write_text(json.dumps({**FACTS, "args": {"max-num-seqs": 64}}))

    found = command(LAUNCH_MAX_SEQS="8")

    assert found.count("--max-num-seqs") == 1
    assert found[found.index("--max-num-seqs") + 1] == "8"


def test_an_image_file_of_another_kind_is_named(image: Path) -> None:
    """An image.json with an unknown engine is refused by name."""
    (image / "image.json").write_text(json.dumps({**FACTS, "engine": "tgi"}))

    assert "engine 'tgi'" in str(dry_run().exception)


@pytest.mark.this_machine
def test_a_port_in_use_is_named(image: Path) -> None:
    """A taken port is refused before anything starts."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])

        error = dry_run(LAUNCH_PORT=port).exception

    assert isinstance(error, Refused)
    assert f"Port {port} cannot be used" in str(error)


@pytest.mark.fault(26)
def test_fault_26_secrets_stay_out_of_sight(image: Path) -> None:
    """A key from a file goes to the engine by its environment: not in the command, not on the screen."""
    (image / "key").write_text("canary-1234\n")

    for output in (
        dry_run(LAUNCH_API_KEY_FILE=str(image / "key")).output,
        dry_run("--json", LAUNCH_API_KEY_FILE=str(image / "key")).output,
    ):
        assert "VLLM_API_KEY" in output
        assert "canary" not in output


def test_a_key_that_would_stand_in_the_open_is_refused(image: Path) -> None:
    """An engine that takes its key on the command line alone does not get one in silence."""
    (image / "image.json").write_text(json.dumps({**FACTS, "engine": "sglang"}))

    error = dry_run(LAUNCH_API_KEY="canary").exception

    assert isinstance(error, Refused)
    assert "LAUNCH_API_KEY does not reach SGLang" in str(error)


def test_empty_secret_files_mean_unset(image: Path) -> None:
    """/dev/null as a secret file is no secret."""
    assert settings.read_secrets({"HF_TOKEN_FILE": "/dev/null"}) == {}


@pytest.mark.parametrize(
    ("argv", "resolved"),
    [([], ["serve"]), (["--port", "1"], ["serve", "--port", "1"]), (["bash", "-c", "x"], ["bash", "-c", "x"]), (["--help"], ["--help"])],
)
def test_front_door(argv: list[str], resolved: list[str]) -> None:
    """Flags alone mean serve; an unknown word is a program."""
    assert cli.resolve(argv) == resolved


def test_a_misspelt_command_is_named() -> None:
    """A word that is neither a command nor a program gets the nearest command."""
    with pytest.raises(BadUsage, match="Did you mean serve?"):
        cli.become(["serv"])


@pytest.mark.parametrize(
    ("engine", "start", "flag"),
    [
        ("vllm", ["vllm", "serve", "m"], ["--tensor-parallel-size", "2"]),
        ("sglang", ["python3", "-m", "sglang.launch_server", "--model-path", "m"], ["--tp-size", "2"]),
        ("trtllm", ["trtllm-serve", "m"], ["--tp_size", "2"]),
    ],
)
def test_each_engine_listens_outside_and_shards(engine: str, start: list[str], flag: list[str]) -> None:
    """Each engine listens on every address of its container, since two of them default to localhost."""
    request = Request(
        model="m", model_name="n", host="0.0.0.0", port=8000, executor="", tp=2, pp=1, max_model_len=None, max_seqs=None, fraction=None,
        defaults={}, args={"trust-remote-code": False}, extra=(), api_key=None, state="",
    )  # fmt: skip

    found = ENGINES[engine].command(request)

    assert found[: len(start)] == start
    assert found[found.index("--host") + 1] == "0.0.0.0"
    assert found[found.index(flag[0]) + 1] == flag[1]
    assert ("--no-trust-remote-code" in found) == (engine == "vllm")


@pytest.fixture
def node(image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of four GPUs with a token, Ray and two interfaces; names are not known yet."""

    def unknown(name: str) -> str:
        raise Unavailable(name)

    monkeypatch.setattr(network, "resolve", unknown)
    monkeypatch.setattr(network, "interfaces", lambda: {"eth0": "10.0.0.1", "docker0": "172.17.0.1"})
    monkeypatch.setattr(network, "_default_interface", lambda: "eth0")
    monkeypatch.setattr(raynode, "version", lambda: "2.55.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("LAUNCH_GPUS", "4")
    (image / "token").write_text("canary-5678\n")
    monkeypatch.setenv("LAUNCH_CLUSTER_TOKEN_FILE", str(image / "token"))
    return image


@pytest.mark.parametrize("under", NODES, ids=lambda node: node.name)
def test_the_whole_decision_is_shown(node: Path, under: Node) -> None:
    """Under each scheduler the dry run shows role, rank, head, port, executor and command, and no secret."""
    shown, found = dry_run(**under.env).output, dry_run("--json", **under.env).output
    decided = json.loads(found)

    assert f"role      {under.role} ({decided['rule']})" in shown
    assert decided["role"] == under.role
    assert "canary" not in shown + found
    if under.role == "single":
        assert "cluster   " not in shown
        assert decided["cluster"] is None
        return
    rank = "rank given by the head" if under.rank is None else f"rank {under.rank}"
    head = f"head {under.head}, port 6370; own address on the way there"
    where = head if under.role == "worker" else "head at 10.0.0.1:6370 on eth0 (the default route goes there)"
    assert f"cluster   {under.nodes} nodes, {rank}; {where}\n" in shown
    reason = f"{under.nodes} nodes: ray before native"
    assert f"executor  ray ({reason}); tensor parallel 4, pipeline parallel {under.nodes}\n" in shown
    cluster = {name: decided["cluster"][name] for name in ("nodes", "rank", "head", "port", "executor", "reason", "gpus")}
    assert cluster == {
        "nodes": under.nodes, "rank": under.rank, "head": under.head, "port": 6370, "executor": "ray", "reason": reason, "gpus": 4,
    }  # fmt: skip
    if under.role == "worker":
        assert "command   none: Ray starts the engine's processes from the head" in shown
        assert decided["command"] == []
    else:
        assert "command   vllm serve " in shown
        assert decided["command"][-2:] == ["--middleware", "engineroom_drain.Drain"]
        assert ("--tensor-parallel-size 4 --pipeline-parallel-size 2 --distributed-executor-backend ray" in shown) == (under.nodes == 2)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_engines_own_way_over_nodes(node: Path, role: str) -> None:
    """Without Ray each node starts an engine, with the same sizes, and needs no Ray in its image."""
    found = command(LAUNCH_ROLE=role, LAUNCH_NODES="2", LAUNCH_HEAD="h", LAUNCH_EXECUTOR="native")

    assert found[:2] == ["vllm", "serve"]
    assert found[found.index("--distributed-executor-backend") + 1] == "mp"
    assert found[found.index("--pipeline-parallel-size") + 1] == "2"


def test_what_all_nodes_must_share(node: Path) -> None:
    """What would make two nodes differ is what they compare when they meet, and head and worker come to the same."""
    head, worker = (
        json.loads(dry_run("--json", LAUNCH_ROLE=role, LAUNCH_NODES="2", LAUNCH_HEAD="h").output)["cluster"]["agreed"]
        for role in ("head", "worker")
    )

    assert head == worker
    assert {"engine": "vllm 0.9.2", "executor": "ray", "nodes": 2, "ray": "2.55.1"}.items() <= head.items()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LAUNCH_CLUSTER_TOKEN_FILE": None}, "set LAUNCH_CLUSTER_TOKEN_FILE"),
        ({"LAUNCH_CLUSTER_TOKEN_FILE": "/dev/null"}, "set LAUNCH_CLUSTER_TOKEN_FILE"),
        ({"LAUNCH_CLUSTER_PORT": "12000"}, "LAUNCH_CLUSTER_PORT 12000 takes 12000 to 12009"),
        ({"LAUNCH_PORT": "6375"}, "LAUNCH_PORT 6375 is one of the cluster's own ports"),
        ({"LAUNCH_EXECUTOR": "mp"}, "LAUNCH_EXECUTOR is mp, and over several nodes image v100-half has ray and native"),
        ({"LAUNCH_INTERFACE": "ib0"}, "LAUNCH_INTERFACE is ib0"),
        ({"LAUNCH_TP": "3"}, r"Tensor parallel 3 \(LAUNCH_TP\)"),
    ],
)
def test_a_cluster_that_cannot_work_is_refused(node: Path, env: dict[str, str | None], message: str) -> None:
    """No token, ports that run into each other, and what the image cannot do end before anything starts."""
    with pytest.raises(Refused, match=message):
        raise dry_run(**{"LAUNCH_ROLE": "head", "LAUNCH_NODES": "2", **env}).exception or AssertionError


def test_a_worker_with_too_few_gpus_goes_to_the_head(node: Path) -> None:
    """The head names a worker that has too few GPUs; on the head itself they are refused."""
    sizes = {"LAUNCH_NODES": "2", "LAUNCH_TP": "4", "LAUNCH_PP": "2", "LAUNCH_GPUS": "2"}

    assert dry_run(LAUNCH_ROLE="worker", LAUNCH_HEAD="h", **sizes).exception is None
    assert "is 8, and the stack has 4 GPUs, 2 on each of 2 nodes" in str(dry_run(LAUNCH_ROLE="head", **sizes).exception)


def test_an_image_without_ray_is_named(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is wanted and not there, the other way is named."""
    monkeypatch.setattr(raynode, "version", lambda: "")

    assert "There is no `ray` program in this container. Set LAUNCH_EXECUTOR=native" in str(
        dry_run(LAUNCH_ROLE="head", LAUNCH_NODES="2").exception
    )


def test_a_closed_network_needs_no_token(node: Path) -> None:
    """Who says that nobody else reaches the ports may do without."""
    found = dry_run(LAUNCH_ROLE="head", LAUNCH_NODES="2", LAUNCH_CLUSTER_TOKEN_FILE=None, LAUNCH_INSECURE_CLUSTER="true")

    assert found.exception is None


def test_rays_token_counts_as_the_clusters() -> None:
    """KubeRay gives every node a token; the launcher's own setting wins over it."""
    assert settings.read_secrets({"RAY_AUTH_TOKEN": " a= \n"}) == {"LAUNCH_CLUSTER_TOKEN": "a="}
    assert settings.read_secrets({"RAY_AUTH_TOKEN": "a", "LAUNCH_CLUSTER_TOKEN": "b"}) == {"LAUNCH_CLUSTER_TOKEN": "b"}


@pytest.mark.parametrize(
    ("engine", "rank", "line"),
    [
        ("vllm", 0, ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1", "--master-port", "6371"]),
        ("vllm", 1, ["--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "6371", "--headless"]),
        ("sglang", 1, ["--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "10.0.0.1:6371"]),
    ],
)
def test_each_engines_own_form_of_a_node(engine: str, rank: int, line: list[str]) -> None:
    """Only the first node of vLLM has a server; SGLang sees to that itself."""
    assert ENGINES[engine].native(2, rank, "10.0.0.1", 6371) == line


def test_tensorrt_llm_stays_on_one_node() -> None:
    """TensorRT-LLM over several nodes is refused."""
    with pytest.raises(Refused, match="TensorRT-LLM is not started over several nodes"):
        ENGINES["trtllm"].native(2, 0, "10.0.0.1", 6371)
