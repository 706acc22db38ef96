"""Checks before weights load: real image.json files, real model folders, stubbed GPUs."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoints import cached_model, small_model, write_shard
from click.testing import CliRunner

from launcher import cli, hardware, safetensors
from launcher.checks import machine
from launcher.errors import LaunchError, Refused, Unavailable

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "models/demo-r1")
GPUS = {
    "v100": "Tesla V100-SXM2-32GB:70:32",
    "a100": "NVIDIA A100-SXM4-80GB:80:80",
    "h200": "NVIDIA H200:90:141",
    "l40s": "NVIDIA L40S:89:48",
}
MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


class Outcome(NamedTuple):
    """How a dry run ended: its checks by name, its JSON, its error."""

    checks: dict[str, dict[str, str]]
    plan: dict[str, Any]
    error: LaunchError | None

    @property
    def message(self) -> str:
        return str(self.error)


Start = Callable[..., Outcome]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, stub_gpus: Callable[[str], None], tmp_path: Path) -> Start:
    """A dry run in an image on some GPUs; the hub's cache is an empty folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def run(image: str, gpus: str, *arguments: str, model: str | Path = DEMO, **env: str) -> Outcome:
        count, _, kind = gpus.rpartition("*")
        stub_gpus(f"{count or 1}*{GPUS[kind]}" if kind else "")
        settings = {"LAUNCH_IMAGE": str(ROOT / "images" / image / "image.json"), "LAUNCH_MODEL": str(model), **env}
        result = CliRunner().invoke(cli.cli, ["serve", "--dry-run", "--json", *arguments], env=settings)
        assert isinstance(result.exception, LaunchError | None), result.exception
        plan = json.loads(result.output)
        return Outcome({check["name"]: check for check in plan["checks"]}, plan, result.exception)

    return run


def test_all_is_well(start: Start) -> None:
    """A complete model on the image's own GPU passes every check, and each says what it found."""
    found = start("v100-half", "v100")

    assert found.error is None
    assert {check["status"] for check in found.checks.values()} == {"ok"}
    assert "1 x Tesla V100-SXM2-32GB (32.0 GiB)" in found.checks["gpus"]["text"]
    assert "1 file of weights, 7 MiB, each as long as its header says" in found.checks["model"]["text"]


def test_one_screen_shows_all_that_is_wrong(start: Start, tmp_path: Path) -> None:
    """Not one error a start: every refusal comes with its fix, and all are shown."""
    found = start("h200-fp8", "v100", "--dtype", "bfloat16", model=small_model(tmp_path / "m"), VLLM_SERVER_DEV_MODE="1")

    assert [name for name, check in found.checks.items() if check["status"] == "refused"] == ["capability", "precision", "development"]
    assert all(check["fix"] for check in found.checks.values() if check["status"] == "refused")
    assert found.message.startswith("3 checks refuse this start.\n1. image h200-fp8 ")
    assert "2. dtype is bfloat16" in found.message
    assert isinstance(found.error, Refused)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("image", "gpu", "right"),
    [
        ("h200-fp8", "v100", "Use image v100-half:"),
        ("h200-fp8", "a100", "Use image a100-fp8 (a100-half, a100-sglang would run as well)"),
        ("a100-half", "h200", "Use image h200-fp8 (a100-sglang would run as well)"),
        ("v100-half", "a100", "Use image a100-half (a100-fp8, a100-sglang would run as well)"),
        ("a100-sglang", "v100", "Use image v100-half:"),
        ("h200-fp8", "l40s", "No image of ours is made for compute capability 89"),
    ],
)
def test_fault_37_an_image_for_other_gpus(start: Start, image: str, gpu: str, right: str) -> None:
    """Refused before weights load, also under LAUNCH_CHECKS=warn, and the right image is named."""
    found = start(image, gpu, LAUNCH_CHECKS="warn")

    assert isinstance(found.error, Refused)
    assert found.checks["capability"]["status"] == "refused"
    assert found.checks["capability"]["fix"].startswith(right)


def test_code_for_an_older_gpu_of_the_family(start: Start) -> None:
    """Code for 80 runs on 89, which is said and not refused."""
    found = start("a100-half", "l40s")

    assert found.error is None
    assert found.checks["capability"]["status"] == "warning"


def test_no_gpu_for_an_image_that_needs_one(start: Start) -> None:
    """Refused with how to give it one; LAUNCH_CHECKS=warn goes on."""
    found = start("v100-half", "")

    assert "no GPU is visible" in found.message
    assert "docker run --gpus 1" in found.message
    assert start("v100-half", "", LAUNCH_CHECKS="warn").error is None


def test_no_gpu_tool_goes_on_on_cpu(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image without GPUs asks for no tool; another one says that there is none, and all other checks run."""
    monkeypatch.setenv("STUB_NVML_ERROR", "12")
    monkeypatch.setenv("PATH", "")

    assert start("cpu", "").checks["gpus"]["text"] == "none needed: image cpu computes on the CPU"
    found = start("v100-half", "", LAUNCH_CHECKS="warn")
    assert hardware.NO_TOOL in found.checks["gpus"]["text"]
    assert found.error is None
    assert {"model", "shared memory", "ports"} <= found.checks.keys()


def test_gpus_that_differ(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds among the GPUs that are taken get a warning."""
    monkeypatch.setitem(GPUS, "mixed", f"{GPUS['h200']},NVIDIA H100:90:80")

    assert start("h200-fp8", "mixed").checks["gpus"]["status"] == "warning"


@pytest.mark.parametrize(
    ("image", "driver", "cuda", "refused"),
    [
        ("h200-fp8", "550.54.15", 12040, True),
        ("h200-fp8", "580.65.06", 13000, False),
        ("h200-fp8", "1000.1", 14000, False),  # as text it would be less than 580
        ("a100-half", "525.60.13", 12000, False),  # CUDA 12.8 on the first driver of CUDA 12
        ("a100-half", "470.82.01", 11040, True),
    ],
)
def test_the_driver(start: Start, monkeypatch: pytest.MonkeyPatch, image: str, driver: str, cuda: int, *, refused: bool) -> None:
    """A driver of the image's CUDA major version will do; an older one is refused in the words of CUDA's own error."""
    monkeypatch.setenv("STUB_DRIVER", driver)
    monkeypatch.setenv("STUB_CUDA", str(cuda))

    found = start(image, "h200" if image == "h200-fp8" else "a100")

    assert (found.checks["driver"]["status"] == "refused") is refused
    assert not refused or "error 35, 803 or 804" in found.message


def test_r6_bfloat16_on_a_v100(start: Start, tmp_path: Path) -> None:
    """Asked for, it is refused with the fix; a bfloat16 checkpoint alone is served as float16."""
    model = small_model(tmp_path / "m", {"torch_dtype": "bfloat16"})

    assert "LAUNCH_ARG_DTYPE=half" in start("v100-half", "v100", model=model, LAUNCH_ARG_DTYPE="bfloat16").message
    found = start("v100-half", "v100", model=model)
    assert found.error is None
    assert "served as float16" in found.checks["precision"]["text"]


LATENT = {"kv_lora_rank": 512}
FP8 = {"quantization_config": {"quant_method": "fp8"}}
FP4 = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}


@pytest.mark.parametrize(
    ("image", "gpu", "config", "arguments", "status"),
    [
        ("v100-half", "v100", FP8, [], "refused"),
        ("v100-half", "v100", {}, ["--quantization", "fp8"], "refused"),
        ("a100-fp8", "a100", FP8, [], "ok"),
        ("a100-fp8", "a100", {}, ["--quantization=fp8"], "ok"),
        ("a100-fp8", "a100", LATENT, ["--kv_cache_dtype", "fp8_e4m3"], "refused"),
        ("a100-fp8", "a100", {}, ["--kv-cache-dtype", "fp8"], "ok"),
        ("h200-fp8", "h200", LATENT, ["--kv-cache-dtype", "fp8"], "ok"),
        ("h200-fp8", "h200", FP4, [], "warning"),
        ("v100-half", "v100", FP4, [], "refused"),
        ("a100-sglang", "h200", FP4, [], "refused"),
    ],
)
def test_precisions(start: Start, tmp_path: Path, image: str, gpu: str, config: dict[str, Any], arguments: list[str], status: str) -> None:
    """What a GPU cannot compute with is refused before weights load, whether a flag or the checkpoint asks for it."""
    found = start(image, gpu, *arguments, model=small_model(tmp_path / "m", config))

    assert found.checks["precision"]["status"] == status


def shorten(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 5)


def lengthen(folder: Path) -> None:
    with (folder / "model-00002-of-00003.safetensors").open("ab") as file:
        file.write(b"x")


def lfs_pointer(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4302384932\n"
    (folder / "model-00002-of-00003.safetensors").write_text(text)


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shorten, "model-00002-of-00003.safetensors is truncated: it has 126 of 131 bytes."),
        (lengthen, "model-00002-of-00003.safetensors is damaged: it has 132 bytes, and its header accounts for 131."),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-00003.safetensors is missing."),
        (lfs_pointer, "model-00002-of-00003.safetensors is a git-lfs pointer of 135 bytes and not the weights."),
        (lambda folder: os.truncate(folder / "model-00002-of-00003.safetensors", 4), "is truncated: it has 4 bytes"),
        (lambda folder: os.truncate(folder / "model-00002-of-00003.safetensors", 20), "is truncated: it has 20 bytes"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").write_bytes(b"\0" * 131), "is no safetensors file"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'), "does not name files"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is no index of a model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json does not describe a model"),
    ],
)
def test_fault_32_an_incomplete_folder(start: Start, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    """A truncated or missing file is named before anything loads, also under LAUNCH_CHECKS=warn."""
    folder = small_model(tmp_path / "m", shards=3)
    assert start("v100-half", "v100", model=folder).error is None

    spoil(folder)

    found = start("v100-half", "v100", model=folder, LAUNCH_CHECKS="warn")
    assert isinstance(found.error, Refused)
    assert message in found.checks["model"]["text"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": ["BF16"]},
        {"dtype": 5},
        {"dtype": None},
        {"shape": ["x"]},
        {"shape": "44"},
        {"shape": [4.5]},
        {"shape": [-4]},
        {"shape": 4},
    ],
)
def test_a_header_of_other_types(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """JSON that is whole and is no list of tensors is refused by the file's name, before anything computes with it."""
    file = tmp_path / "model.safetensors"
    text = json.dumps({"a": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32], **wrong}}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))

    with pytest.raises(Refused, match=r"model.safetensors is damaged: its header"):
        safetensors.header(str(file))


def test_many_missing_files_are_counted(start: Start, tmp_path: Path) -> None:
    """The first three are named, and the rest is a number."""
    folder = small_model(tmp_path / "m", shards=9)
    for file in folder.glob("*.safetensors"):
        file.unlink()

    assert "And 6 more of 9 files." in start("v100-half", "v100", model=folder).message


def test_other_weights_are_not_looked_into(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other formats are counted and said to be unverified; a folder without any is refused."""
    folder = small_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()

    assert "has no weights: it holds config.json, tokenizer.json." in start("v100-half", "v100", model=folder).message
    assert start("v100-half", "v100", "--load-format=dummy", model=folder).error is None
    worker = {
        "LAUNCH_ROLE": "worker",
        "LAUNCH_NODES": "2",
        "LAUNCH_HEAD": "h",
        "LAUNCH_CLUSTER_TOKEN": "t",
        "LAUNCH_ARG_LOAD_FORMAT": "dummy",
    }
    monkeypatch.setattr("launcher.raynode.version", lambda: "2.55.1")
    found = start("v100-half", "v100", model=folder, **worker)
    assert (found.error, found.plan["command"]) == (None, [])  # Ray starts it from the head, and this node's settings count all the same
    (folder / "pytorch_model.bin").write_bytes(b"1234")
    assert "no safetensors, so not looked into" in start("v100-half", "v100", model=folder).checks["model"]["text"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's id")
def test_a_folder_that_cannot_be_read(open_folder: Path) -> None:
    """A file of another user is named, with the id that cannot read it."""
    folder = small_model(open_folder / "m")
    (folder / "model.safetensors").chmod(0o600)

    with another_user(), pytest.raises(Refused, match=r"model.safetensors cannot be read by user \d+: Permission denied"):
        safetensors.header(str(folder / "model.safetensors"))


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Another user's rights for a while. What the launcher imports is loaded before: Python may lie in a folder of root's alone."""
    CliRunner().invoke(cli.cli, ["doctor"], env={"LAUNCH_IMAGE": str(ROOT / "images/cpu/image.json")})
    os.seteuid(12345)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_tensors_of_the_demo_model() -> None:
    """Names, shapes and dtypes come from the headers; their bytes are the file's."""
    tensors = safetensors.in_folder(DEMO)

    assert safetensors.Tensor("model.embed_tokens.weight", (1024, 256), "BF16") in tensors
    assert sum(2 * shape_size(tensor.shape) for tensor in tensors) == 2 * 3_807_488


def shape_size(shape: tuple[int, ...]) -> int:
    size = 1
    for part in shape:
        size *= part
    return size


@pytest.mark.fault(25)
def test_fault_25_code_of_a_model(start: Start, tmp_path: Path) -> None:
    """A model's own code is off unless it is allowed; whether the revision is pinned is shown in either case."""
    cached_model(tmp_path / "hf", MODEL, config={"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}})

    off = start("h200-fp8", "h200", model=MODEL)
    on = start("h200-fp8", "h200", "--trust-remote-code", model=MODEL)
    pinned = start("h200-fp8", "h200", "--trust-remote-code", f"--revision={'0' * 40}", model=MODEL)

    assert off.error is None
    assert off.checks["model code"]["text"] == (
        "off, though config.json names some (auto_map): the engine must know the model itself; revision: main, not pinned"
    )
    assert isinstance(on.error, Refused)
    assert (
        f"LAUNCH_ARG_REVISION to the commit that you have read; https://huggingface.co/{MODEL}/commits lists them. The cache has 000"
        in (on.message)
    )
    assert pinned.error is None
    assert pinned.checks["model code"]["text"] == f"on (--trust-remote-code); revision: pinned to {'0' * 40}"
    assert "on (--trust-remote-code)" in start("h200-fp8", "h200", "--trust-remote-code").checks["model code"]["text"]


@pytest.mark.fault(24)
def test_fault_24_development_mode(start: Start) -> None:
    """VLLM's development mode is refused, unless the checks only warn; switched off it is nothing."""
    assert "VLLM_SERVER_DEV_MODE is 1" in start("v100-half", "v100", VLLM_SERVER_DEV_MODE="1").message
    assert start("v100-half", "v100", VLLM_SERVER_DEV_MODE="1", LAUNCH_CHECKS="warn").error is None
    assert start("v100-half", "v100", VLLM_SERVER_DEV_MODE="0").error is None


@pytest.mark.fault(27)
@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's id")
def test_fault_27_a_secret_of_another_user(start: Start, open_folder: Path) -> None:
    """The error names the file, who may read it, who tried, and the fix."""
    secret = open_folder / "token"
    secret.write_text("canary")
    secret.chmod(0o600)

    with another_user():
        result = CliRunner().invoke(cli.cli, ["serve", "--dry-run"], env={"HF_TOKEN_FILE": str(secret)})
        doctor = CliRunner().invoke(
            cli.cli, ["doctor"], env={"HF_TOKEN_FILE": str(secret), "LAUNCH_IMAGE": str(ROOT / "images/cpu/image.json")}
        )

    assert isinstance(result.exception, Refused)
    message = f"HF_TOKEN_FILE names {secret}, which cannot be read by user 12345: Permission denied; it belongs to user 0, with mode 0600."
    assert message in str(result.exception)
    assert "`chmod 0444`" in str(result.exception)
    assert message in doctor.output
    assert doctor.exit_code == 78


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("gpus", "shm", "status"),
    [("1*h200", 64 << 20, "ok"), ("2*h200", 64 << 20, "refused"), ("2*h200", 1 << 30, "ok"), ("2*h200", 0, "refused")],
)
def test_fault_30_little_shared_memory(start: Start, monkeypatch: pytest.MonkeyPatch, gpus: str, shm: int, status: str) -> None:
    """Docker's 64 MiB are refused where several processes share a model, with the exact flag; one process needs no more."""
    monkeypatch.setattr(hardware, "shm_bytes", lambda: shm)

    check = start("h200-fp8", gpus).checks["shared memory"]

    assert check["status"] == status
    assert status == "ok" or "docker run --shm-size=16g" in check["fix"]


@pytest.mark.this_machine
def test_shared_memory_and_room_are_the_real_ones() -> None:
    """The sizes are those of the file systems: a folder that is yet to be made is held to the one it will be on."""
    assert hardware.shm_bytes() == shutil.disk_usage("/dev/shm").total
    assert 0 < machine.free_bytes("/dev/shm/no/such/folder") <= shutil.disk_usage("/dev/shm").total


@pytest.mark.fault(31)
def test_fault_31_no_room_for_a_download(start: Start, tmp_path: Path, hub: Hub) -> None:
    """Bytes needed and free are said before the download; what is there already counts."""
    snapshot = cached_model(tmp_path / "hf", "owner/model", shards=3)
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": 1 << 60}}))
    (snapshot / "model-00002-of-00003.safetensors").unlink()
    here = sum(file.stat().st_size for file in snapshot.parents[1].glob("blobs/*"))

    found = start("h200-fp8", "h200", model="owner/model", **hub.env)

    assert found.checks["model"]["status"] == "ok"
    assert f"({(1 << 60) - here} bytes of {1 << 60}), and {tmp_path}/hf/hub has " in found.checks["cache"]["text"]
    assert "a download goes on where it ended" in found.message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's id")
def test_a_cache_that_cannot_be_written(start: Start, tmp_path: Path, hub: Hub) -> None:
    """A cache of another user is named, with the id that may not write it."""
    with another_user():
        found = start("h200-fp8", "h200", model=MODEL, **hub.env)

    assert f"{tmp_path}/hf/hub cannot be written by user 12345" in found.message
    assert "docker run -v NAME:/cache" in found.message


class Hub(NamedTuple):
    """A hub on this machine: its environment, the status that it answers with, and what it was asked."""

    env: dict[str, str]
    status: list[int]
    asked: list[str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    status, asked = [200], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(status[0])
            if status[0] == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield Hub({"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}, status, asked)
        server.shutdown()


@pytest.mark.fault(33)
def test_fault_33_a_full_cache_works_offline(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete in the cache is served as it is: the engine is told not to ask the hub, unless the user says otherwise."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    cached_model(tmp_path / "hf", MODEL, shards=3)

    found = start("h200-fp8", "h200", model=MODEL)

    assert found.error is None
    assert found.plan["environment"]["HF_HUB_OFFLINE"] == "1"
    assert f"{MODEL} is complete in {tmp_path}/hf/hub; the hub is not asked (HF_HUB_OFFLINE=1)" in found.checks["model"]["text"]
    for more in (["--tokenizer", "other/one"], ["--trust-remote-code", f"--revision={'0' * 40}"]):
        assert "HF_HUB_OFFLINE" not in start("h200-fp8", "h200", *more, model=MODEL).plan["environment"]
    assert "HF_HUB_OFFLINE" not in start("h200-fp8", "h200", model=MODEL, HF_HUB_OFFLINE="0").plan["environment"]


@pytest.mark.fault(33)
def test_fault_33_an_unreachable_hub(start: Start, tmp_path: Path) -> None:
    """With an incomplete cache it ends fast with 69, naming what is missing; LAUNCH_CHECKS=warn goes on."""
    snapshot = cached_model(tmp_path / "hf", MODEL, shards=3)
    (snapshot / "model-00003-of-00003.safetensors").unlink()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

        found = start("h200-fp8", "h200", model=MODEL, **env)

        assert isinstance(found.error, Unavailable)
        assert found.error.exit_code == 69
        assert "cannot be reached: [Errno 111] Connection refused; and " in found.message
        assert "model-00003-of-00003.safetensors is missing" in found.message
        assert start("h200-fp8", "h200", model=MODEL, LAUNCH_CHECKS="warn", **env).error is None


@pytest.mark.fault(33)
def test_fault_33_a_hub_that_says_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is taken and never answered ends at the deadline."""
    monkeypatch.setattr("launcher.hub.REACH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

        assert isinstance(start("h200-fp8", "h200", model=MODEL, **env).error, Unavailable)


@pytest.mark.fault(33)
def test_fault_33_told_to_stay_offline(start: Start) -> None:
    """HF_HUB_OFFLINE and no complete cache cannot be had both."""
    found = start("h200-fp8", "h200", model=MODEL, HF_HUB_OFFLINE="1")

    assert isinstance(found.error, Refused)
    assert f"HF_HUB_OFFLINE is set, and {MODEL} is not in " in found.message


@pytest.mark.parametrize(("status", "message"), [(200, ""), (500, ""), (403, "403 GatedRepo"), (404, f"the hub has no {MODEL}")])
def test_the_hub_is_asked_for_the_model(start: Start, hub: Hub, status: int, message: str) -> None:
    """Once, with the token, for the model's own configuration: a gated or misspelt model is known before the engine starts."""
    hub.status[:] = [status]

    found = start("h200-fp8", "h200", "--revision", "v1/x", model=MODEL, HF_TOKEN="canary", **hub.env)

    assert hub.asked == [f"/{MODEL}/resolve/v1%2Fx/config.json Bearer canary"]
    assert (found.error is None) is not bool(message)
    assert message in found.checks["model"]["text"]
    assert "canary" not in json.dumps(found.plan) + found.message


@pytest.mark.this_machine
def test_a_port_in_use_names_its_holder(start: Start) -> None:
    """The process that listens is named, as far as it can be seen."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]

        message = start("v100-half", "v100", LAUNCH_PORT=str(port)).message

    assert (
        f"Port {port} cannot be used: Address already in use, by {Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
        in message
    )


def test_ports_of_a_cluster(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of Ray's that is taken is found before Ray fails on it."""
    monkeypatch.setattr("launcher.raynode.version", lambda: "2.55.1")
    monkeypatch.setattr(machine, "busy", lambda _, port: "something listens" if port == 6374 else "")
    env = {"LAUNCH_ROLE": "head", "LAUNCH_NODES": "2", "LAUNCH_CLUSTER_TOKEN": "t", "LAUNCH_CLUSTER_PORT": "6370"}

    message = start("v100-half", "v100", **env).message

    assert "Port 6374 cannot be used: something listens" in message
    assert "set LAUNCH_CLUSTER_PORT, on every node, to another" in message


def test_the_screen_for_people(start: Start, tmp_path: Path) -> None:
    """A line a check; what is wrong stands out, with its fix below, and the dry run shows the whole plan before it ends with 78."""
    env = {"LAUNCH_IMAGE": str(ROOT / "images/h200-fp8/image.json"), "LAUNCH_MODEL": DEMO, "STUB_GPUS": GPUS["v100"]}

    result = CliRunner().invoke(cli.cli, ["serve", "--dry-run"], env=env)

    assert isinstance(result.exception, Refused)
    assert "check     REFUSED capability: image h200-fp8 has device code for compute capability 90, and this GPU has 70\n" in result.output
    assert "            Use image v100-half: it is made for compute capability 70.\n" in result.output
    assert f"check     model: {DEMO}: 1 file of weights" in result.output
    assert "command   vllm serve " in result.output


def test_doctor(start: Start, hub: Hub) -> None:
    """It needs no model: hardware, which images fit, driver, memory, caches, ports, secrets, hub; 0 when all is well."""
    env = {"LAUNCH_IMAGE": str(ROOT / "images/a100-half/image.json"), "STUB_GPUS": f"8*{GPUS['a100']}", **hub.env}

    result = CliRunner().invoke(cli.cli, ["doctor", "--json"], env=env)

    found = {check["name"]: check for check in json.loads(result.output)}
    assert result.exit_code == 0
    assert found["gpus"]["text"].startswith("8 x NVIDIA A100-SXM4-80GB (80.0 GiB)")
    assert found["images"]["text"] == "a100-half, a100-fp8, a100-sglang for compute capability 80"
    assert found["hub"]["text"] == f"{hub.env['HF_ENDPOINT']} answers"
    assert {"driver", "memory", "shared memory", "ports", "secrets"} <= found.keys()


def test_doctor_of_the_wrong_image(start: Start) -> None:
    """What would refuse a start ends with 78, on one screen."""
    env = {"LAUNCH_IMAGE": str(ROOT / "images/h200-fp8/image.json"), "STUB_GPUS": GPUS["v100"]}

    result = CliRunner().invoke(cli.cli, ["doctor"], env=env)

    assert result.exit_code == 78
    assert "check     REFUSED capability: image h200-fp8" in result.output
    assert "Use image v100-half" in result.output


def test_shards_without_an_index(tmp_path: Path) -> None:
    """Files without an index are all taken."""
    for name in ("b.safetensors", "a.safetensors"):
        write_shard(tmp_path / name, {"t": ("F32", [2])})

    assert [Path(path).name for path in safetensors.shards(str(tmp_path))] == ["a.safetensors", "b.safetensors"]
