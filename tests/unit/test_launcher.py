from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launcher import cli, settings
from launcher.engines import ENGINES
from launcher.engines.common import Request
from launcher.errors import BadUsage, LaunchError, Refused

FACTS = {
    "image": "v100-half", "engine": "vllm", "release": "vllm-0.9.2", "version": "0.9.2", "precision": "half", "gpus": {"v100": 70},
    "cuda": "12.6", "min_driver": "525.60", "model": "", "model_name": "",
    "args": {"dtype": "half", "enable-chunked-prefill": False}, "env": {"VLLM_X": "1"},
}  # fmt: skip


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image.json and a model folder that the settings name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "image.json").write_text(json.dumps(FACTS))
    monkeypatch.setenv("LAUNCH_IMAGE", str(tmp_path / "image.json"))
    monkeypatch.setenv("LAUNCH_MODEL", str(tmp_path / "model"))
    with socket.socket() as probe:
        probe.bind(("", 0))
        monkeypatch.setenv("LAUNCH_PORT", str(probe.getsockname()[1]))
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


def test_unlisted_flags_go_to_the_engine(image: Path) -> None:
    """Flags that are no settings reach the engine as they are, last."""
    assert command("--seed", "7", "--max-log-len=10")[-3:] == ["--seed", "7", "--max-log-len=10"]


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
        ({"LAUNCH_API_KEY": "x", "LAUNCH_API_KEY_FILE": "y"}, 78, "Both LAUNCH_API_KEY and LAUNCH_API_KEY_FILE"),
        ({"HF_TOKEN_FILE": "/no/such"}, 78, "HF_TOKEN_FILE names /no/such, which cannot be read"),
        ({"LAUNCH_IMAGE": "/no/such"}, 78, "is this an Engine Room image"),
        ({"LAUNCH_PORT": "0"}, 2, "LAUNCH_PORT"),
        ({"LAUNCH_TP": "-2"}, 2, "LAUNCH_TP"),
        ({"LAUNCH_ARG_": "x"}, 78, "LAUNCH_ARG_ names no flag"),
        ({"LAUNCH_ARG_PORT": "9000"}, 78, "Use LAUNCH_PORT"),
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
    assert "has no config.json: it holds readme.txt" in str(error)


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
        model="m", model_name="n", port=8000, tp=2, pp=1, max_model_len=None, max_seqs=None,         defaults={}, args={"trust-remote-code": False}, extra=(), api_key=None, state="",
    )  # fmt: skip

    found = ENGINES[engine].command(request)

    assert found[: len(start)] == start
    assert found[found.index("--host") + 1] == "0.0.0.0"
    assert found[found.index(flag[0]) + 1] == flag[1]
    assert ("--no-trust-remote-code" in found) == (engine == "vllm")
