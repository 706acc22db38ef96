"""The command lines of published guides, other releases' flags and random ones, given to the launcher of each image."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from checkpoints import cached_model, small_model
from click.testing import CliRunner, Result
from hypothesis import strategies as some

from launcher import cli, flags, raynode
from launcher.errors import LaunchError, Refused
from launcher.settings import OWN_FLAGS, SETTINGS

ROOT = Path(__file__).parents[2]
RELEASES = sorted(file.stem for file in (ROOT / "images/flags").glob("*.json"))
IMAGES = sorted(file.parent.name for file in ROOT.glob("images/*/image.json"))
MODEL = "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"


def snapshot(release: str) -> flags.Snapshot:
    found = flags.load(str(ROOT / f"images/flags/{release}.json"))
    assert found
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each image has in /etc/engineroom, in a folder of its name; and a hub's cache with MODEL in it."""
    root = tmp_path_factory.mktemp("images")
    cached_model(root / "hf", MODEL)
    for image in IMAGES:
        (root / image).mkdir()
        facts = shutil.copy(ROOT / "images" / image / "image.json", root / image)
        shutil.copy(ROOT / f"images/flags/{json.loads(Path(facts).read_text())['release']}.json", root / image / "flags.json")
    return root


@pytest.fixture
def launcher(folders: Path, monkeypatch: pytest.MonkeyPatch, stub_gpus: Callable[[str], None], tmp_path: Path) -> Path:
    """A folder with a model in it, where a launcher may be asked for a dry run on four GPUs."""
    small_model(tmp_path / "deepseek-r1-7b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(folders / "hf"))
    monkeypatch.setattr(raynode, "version", lambda: "2.55.1")
    monkeypatch.setenv("LAUNCH_GPUS", "4")
    return folders


def serve(launcher: Path, image: str, *words: str, **env: str | None) -> Result:
    """A dry run in an image, on four GPUs of the kind that it is for, so large that nothing has to be cut to fit them."""
    facts = launcher / image / "image.json"
    kind, capability = next(iter(json.loads(facts.read_text())["gpus"].items()))
    gpus = f"4*{kind}:{capability}:640" if capability else ""
    return CliRunner().invoke(cli.serve, ["--dry-run", "--json", *words], env={"LAUNCH_IMAGE": str(facts), "STUB_GPUS": gpus, **env})


def plan(launcher: Path, image: str, *words: str, **env: str | None) -> dict[str, Any]:
    result = serve(launcher, image, *words, **env)
    assert result.exception is None, result.exception
    return dict(json.loads(result.output))


def given(launcher: Path, image: str, *words: str, **env: str | None) -> tuple[list[str], list[str]]:
    """What the user's flags add to the engine's command line, and what is said about them."""
    bare = plan(launcher, image, LAUNCH_MODEL=MODEL)["command"]
    found = plan(launcher, image, *words, **env)
    return [word for word in found["command"] if word not in bare], found["notes"]


def refusal(launcher: Path, image: str, *words: str, **env: str | None) -> list[str]:
    error = serve(launcher, image, *words, **env).exception
    assert isinstance(error, Refused), error
    return [line.partition(" It is: ")[0] for line in str(error).splitlines()]  # what the engine's help says is not ours


def test_r1_single_machine_guide(launcher: Path) -> None:
    """The guide's value for a switch, which no pinned release takes, becomes the release's own form."""
    found = plan(
        launcher, "v100-half", "./deepseek-r1-7b", "--dtype=half", "--enable-chunked-prefill=False", "--max-model-len=8192", "--tp", "1"
    )

    assert found["command"] == [
        "vllm", "serve", "./deepseek-r1-7b", "--dtype", "half", "--no-enable-chunked-prefill", "--no-enable-prefix-caching",
        "--served-model-name", "deepseek-r1-7b", "--host", "0.0.0.0", "--port", "8000",
        "--max-model-len", "8192", "--middleware", "engineroom_drain.Drain",
    ]  # fmt: skip
    assert found["notes"] == ["--enable-chunked-prefill=False: vLLM 0.9.2 has --no-enable-chunked-prefill"]
    assert found["warnings"] == []


def test_r5_two_machines_guide(launcher: Path) -> None:
    """`ray start` is a program of its own; the serving command becomes layers over four GPUs and two nodes."""
    assert cli.resolve(["ray", "start", "--head", "--port=6667"]) == ["ray", "start", "--head", "--port=6667"]
    found = plan(
        launcher, "v100-half", "./deepseek-r1-7b", "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2",
        "--disable-custom-all-reduce", "--dtype=half", "--max-num-seqs", "128",
        LAUNCH_ROLE="head", LAUNCH_NODES="2", LAUNCH_CLUSTER_TOKEN="token",
    )  # fmt: skip

    assert (found["tp"], found["pp"], found["cluster"]["executor"], found["notes"]) == (4, 2, "ray", [])
    assert found["command"][13:] == [
        "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2", "--max-num-seqs", "128",
        "--distributed-executor-backend", "ray", "--disable-custom-all-reduce", "--middleware", "engineroom_drain.Drain",
    ]  # fmt: skip


@pytest.mark.parametrize("image", ["a100-half", "h200-fp8"])
def test_r9_eight_billion_on_vllm(launcher: Path, image: str) -> None:
    """Accepted as it is."""
    words = ["--tensor-parallel-size", "1", "--max-model-len", "32768", "--enforce-eager"]

    found = plan(launcher, image, MODEL, *words)

    assert (found["tp"], found["notes"]) == (1, [])
    assert found["command"][2] == MODEL
    assert found["command"][9:12] == ["--max-model-len", "32768", "--enforce-eager"]


def test_r10_eight_billion_on_sglang(launcher: Path) -> None:
    """`--tp`, an abbreviation in SGLang, is the launcher's own setting; code of a revision that is not pinned wants LAUNCH_CHECKS=warn."""
    words = ["--model", MODEL, "--trust-remote-code", "--tp", "1"]
    assert "not pinned\nSet LAUNCH_ARG_REVISION" in "\n".join(refusal(launcher, "a100-sglang", *words))
    found = plan(launcher, "a100-sglang", *words, LAUNCH_CHECKS="warn")

    assert found["command"] == [
        "python3", "-m", "sglang.launch_server", "--model-path", MODEL, "--served-model-name", "DeepSeek-R1-0528-Qwen3-8B",
        "--host", "0.0.0.0", "--port", "8000", "--enable-metrics", "--trust-remote-code",
    ]  # fmt: skip
    assert found["notes"] == []


@pytest.mark.parametrize("image", ["a100-fp8", "h200-fp8"])
def test_r13_tuned_v3(launcher: Path, image: str) -> None:
    """Accepted as it is, the launcher's own settings by their engine's names."""
    words = ["--tensor-parallel-size", "4", "--quantization", "fp8", "--max-num-batched-tokens", "32768", "--max-num-seqs", "256"]

    added, said = given(launcher, image, MODEL, *words)

    assert sorted(added) == sorted(set(words) - {"--tensor-parallel-size", "4"})
    assert said == []


@pytest.mark.parametrize("image", ["a100-fp8", "h200-fp8", "v100-half"])
def test_r14_invented_flag(launcher: Path, image: str) -> None:
    """What no release has is refused by name with what to write instead; the port between nodes is a setting."""
    (line,) = refusal(launcher, image, MODEL, "--nccl-clique-size", "4", "--master-port", "29500")

    assert "has no --nccl-clique-size. No release of vLLM ever had it. Leave it out; GPUs that share layers are LAUNCH_TP" in line
    assert "--master-port" not in " ".join(plan(launcher, image, MODEL, "--master-port", "29500")["command"])


@pytest.mark.parametrize(
    ("image", "words", "added", "said"),
    [
        ("h200-fp8", "--task generate", "--runner generate", ["--task generate: vLLM 0.25.1 has --runner generate"]),
        ("h200-fp8", "--task embed", "--runner pooling --convert embed", ["--task embed: vLLM 0.25.1 has --runner pooling --convert embed"]),
        ("v100-half", "--runner generate --convert none", "--task generate", [
            "--runner generate: vLLM 0.9.2 has --task generate", "--convert none: left out. It was a part of --task.",
        ]),
        ("h200-fp8", "--enable-reasoning --reasoning-parser deepseek_r1", "--reasoning-parser deepseek_r1", [
            "--enable-reasoning: left out, since vLLM 0.25.1 has no --enable-reasoning (to 0.9.2). --reasoning-parser alone switches it on.",
        ]),
        ("h200-fp8", "--swap-space 4", "", [
            "--swap-space 4: left out, since vLLM 0.25.1 has no --swap-space (to 0.17.1). The V1 engine never swaps to the CPU's memory.",
        ]),
        ("v100-half", "--swap-space 4 --enable-reasoning", "--swap-space 4 --enable-reasoning", []),
        ("h200-fp8", "--disable-log-requests", "--no-enable-log-requests", ["--disable-log-requests: vLLM 0.25.1 has --no-enable-log-requests"]),
        ("v100-half", "--no-enable-log-requests", "--disable-log-requests", ["--no-enable-log-requests: vLLM 0.9.2 has --disable-log-requests"]),
        ("h200-fp8", "--disable-chunked-prefill", "--no-enable-chunked-prefill", [
            "--disable-chunked-prefill: vLLM 0.25.1 has --no-enable-chunked-prefill",
        ]),
        ("h200-fp8", "--disable-custom-all-reduce=False", "--no-disable-custom-all-reduce", [
            "--disable-custom-all-reduce=False: vLLM 0.25.1 has --no-disable-custom-all-reduce",
        ]),
        ("h200-fp8", "--enforce-eager true", "--enforce-eager", ["--enforce-eager true: vLLM 0.25.1 has --enforce-eager"]),
        ("h200-fp8", "--guided-decoding-backend xgrammar", "--structured-outputs-config.backend xgrammar", [
            "--guided-decoding-backend xgrammar: vLLM 0.25.1 has --structured-outputs-config.backend xgrammar",
        ]),
        ("v100-half", "--cudagraph-capture-sizes 1 2 4", "--cuda-graph-sizes 1 2 4", [
            "--cudagraph-capture-sizes 1 2 4: vLLM 0.9.2 has --cuda-graph-sizes 1 2 4",
        ]),
        ("h200-fp8", "--max_num_batched_tokens 8k --gpu_memory_utilization=0.8", "--max-num-batched-tokens 8k --gpu-memory-utilization 0.8", []),
        ("h200-fp8", "--disable-log-stats", "", ["--disable-log-stats: left out. Whether it is busy, and when it may stop, the launcher reads from the statistics."]),
        ("h200-fp8", "-dp 1 -O3 -cc.cudagraph_mode FULL", "--data-parallel-size 1 --optimization-level 3 --compilation-config.cudagraph_mode FULL", []),
        ("h200-fp8", '--hf-overrides {"a":1} --long-prefill-token-threshold -1', '--hf-overrides {"a":1} --long-prefill-token-threshold=-1', []),
        ("h200-fp8", "--seed 1 --seed 2", "--seed 2", []),
        ("a100-sglang", "--reasoning-parser deepseek_r1", "--reasoning-parser deepseek-r1", [
            "--reasoning-parser deepseek_r1: SGLang 0.5.23 has --reasoning-parser deepseek-r1",
        ]),
        ("a100-sglang", "--cuda-graph-bs 1 2 4", "--cuda-graph-bs-decode 1 2 4", ["--cuda-graph-bs 1 2 4: SGLang 0.5.23 has --cuda-graph-bs-decode 1 2 4"]),
        ("a100-sglang", "--enable-dp-attention --trust-remote-code=false", "--enable-dp-attention", [
            "--trust-remote-code=false: left out, since --trust-remote-code is off unless given",
        ]),
        ("b200-fp4", "--reasoning-parser deepseek_r1 --max-num-tokens 1344", "--reasoning_parser deepseek-r1 --max_num_tokens 1344", [
            "--reasoning-parser deepseek_r1: TensorRT-LLM 1.2.1 has --reasoning_parser deepseek-r1",
        ]),
        ("b200-fp4", "--enable-auto-tool-choice --tool-call-parser deepseek_v3", "--tool_parser deepseek_v3", [
            "--enable-auto-tool-choice: left out, since TensorRT-LLM 1.2.1 has no --enable-auto-tool-choice. --tool_parser alone switches it on.",
            "--tool-call-parser deepseek_v3: TensorRT-LLM 1.2.1 has --tool_parser deepseek_v3",
        ]),
        ("a100-sglang", "--enable-auto-tool-choice --tool-call-parser deepseek_v3", "--tool-call-parser deepseekv3", [
            "--enable-auto-tool-choice: left out, since SGLang 0.5.23 has no --enable-auto-tool-choice. --tool-call-parser alone switches it on.",
            "--tool-call-parser deepseek_v3: SGLang 0.5.23 has --tool-call-parser deepseekv3",
        ]),
    ],
)  # fmt: skip
def test_flags_become_the_releases(launcher: Path, image: str, words: str, added: str, said: list[str]) -> None:
    """Flags of other releases and engines, in each form that an engine takes."""
    bare = plan(launcher, image, MODEL)["command"]
    found = plan(launcher, image, MODEL, *words.split())
    start = next((index for index, (one, other) in enumerate(zip(bare, found["command"], strict=False)) if one != other), len(bare))

    assert found["command"][start : start + len(found["command"]) - len(bare)] == added.split()
    assert found["notes"] == said


def test_a_flag_that_may_be_given_again(launcher: Path) -> None:
    """Both middlewares of the user stand before the launcher's own."""
    found = plan(launcher, "h200-fp8", MODEL, "--middleware", "a.b", "--middleware", "c.d")["command"]

    assert found[-6:] == ["--middleware", "a.b", "--middleware", "c.d", "--middleware", "engineroom_drain.Drain"]


@pytest.mark.parametrize(
    ("image", "words", "message"),
    [
        ("h200-fp8", "--max-num-batched-token 9", "vLLM 0.25.1 has no --max-num-batched-token. Did you mean --max-num-batched-tokens?"),
        ("h200-fp8", "--seed many", "--seed many: not a whole number."),
        ("h200-fp8", "--gpu-memory-utilization all", "--gpu-memory-utilization all: not a number."),
        ("h200-fp8", "--compilation-config {", "--compilation-config {: not JSON."),
        ("h200-fp8", "--seed", "--seed wants a value."),
        ("h200-fp8", "--enforce-eager=perhaps", "--enforce-eager is on or off: perhaps is neither true nor false."),
        ("h200-fp8", "--task sing", "vLLM 0.25.1 has no --task sing (to 0.12.0). It was split into what runs (--runner) and what the model is turned into (--convert)."),
        ("h200-fp8", "--rope-theta 1e6", "vLLM 0.25.1 has no --rope-theta (to 0.11.0). It is a part of the model's configuration. Give all of it: "),
        ("h200-fp8", "--cuda-graph-sizes 64", "vLLM 0.25.1 has no --cuda-graph-sizes (to 0.12.0)."),
        ("v100-half", "--attention-backend FLASHINFER_MLA", "vLLM 0.9.2 has no --attention-backend FLASHINFER_MLA (from 0.13.0)."),
        ("v100-half", "--runner pooling", "Write --task embed, --task classify or --task reward."),
        ("v100-half", "--use-v2-block-manager=false", "vLLM 0.9.2 cannot switch --use-v2-block-manager off."),
        ("h200-fp8", "another/model", "Only one model can be served"),
        ("h200-fp8", "--node-rank 0", "The engine's --node-rank is set by the launcher. Use LAUNCH_ROLE."),
        ("a100-sglang", "--mem-fraction 0.8", "SGLang 0.5.23 has no --mem-fraction. Did you mean --mem-fraction-static?"),
        ("a100-sglang", "--max-total-tokens 8k", "--max-total-tokens 8k: not a whole number."),
        ("b200-fp4", "--backend vllm", "--backend vllm: not one of pytorch, tensorrt, _autodeploy."),
    ],
)  # fmt: skip
@pytest.mark.fault(35)
def test_fault_35_flags_that_cannot_be_are_named(launcher: Path, image: str, words: str, message: str) -> None:
    """Refused by name, with the nearest real one or what to write instead."""
    assert message in "\n".join(refusal(launcher, image, MODEL, *words.split()))


def test_all_that_is_wrong_is_said_at_once(launcher: Path) -> None:
    """Two bad flags and a bad variable are three lines."""
    found = refusal(launcher, "h200-fp8", MODEL, "--foo", "--dtype", "fp7", LAUNCH_ARG_BLOCK_SIZE="big")

    assert found == [
        "LAUNCH_ARG_BLOCK_SIZE: --block-size big: not a whole number.",
        "vLLM 0.25.1 has no --foo.",
        "--dtype fp7: not one of auto, bfloat16, float, float16, float32, half.",
    ]


def test_variables_are_translated_as_flags_are(launcher: Path) -> None:
    """LAUNCH_ARG_ of another release, and one that switches the image's own flag on; a flag wins over its variable."""
    found = plan(
        launcher, "v100-half", "--seed", "2", LAUNCH_MODEL=MODEL, LAUNCH_ARG_RUNNER="generate", LAUNCH_ARG_SEED="1",
        LAUNCH_ARG_ENABLE_CHUNKED_PREFILL="true", LAUNCH_ARG_ENABLE_PREFIX_CACHING="false", LAUNCH_ARG_DISABLE_LORA="true",
    )  # fmt: skip

    assert found["command"][3:7] == ["--dtype", "half", "--enable-chunked-prefill", "--no-enable-prefix-caching"]
    assert found["command"][-7:-2] == ["--task", "generate", "--seed", "2", "--no-enable-lora"]
    assert found["notes"] == [
        "LAUNCH_ARG_RUNNER=generate: vLLM 0.9.2 has --task generate",
        "LAUNCH_ARG_DISABLE_LORA=true: vLLM 0.9.2 has --no-enable-lora",
    ]


def test_a_flag_that_was_a_variable(launcher: Path) -> None:
    """On a release that has no such flag, the variable is set for the engine."""
    found = plan(launcher, "v100-half", MODEL, "--attention-backend", "XFORMERS")

    assert found["environment"]["VLLM_ATTENTION_BACKEND"] == "XFORMERS"
    assert found["notes"] == ["--attention-backend XFORMERS: vLLM 0.9.2 has the variable VLLM_ATTENTION_BACKEND=XFORMERS"]


@pytest.mark.parametrize(
    ("image", "variable", "warning"),
    [
        ("h200-fp8", "VLLM_ATTENTION_BACKEND", "VLLM_ATTENTION_BACKEND does nothing in vLLM 0.25.1: releases to 0.14.1 read it. Write --attention-backend."),
        ("v100-half", "VLLM_ATTENTION_BACKEND", None),
        ("h200-fp8", "VLLM_USE_V1", "VLLM_USE_V1 does nothing in vLLM 0.25.1: releases to 0.11.0 read it. There is no other engine: unset it."),
        ("v100-half", "VLLM_USE_FLASHINFER_MOE_FP8", "VLLM_USE_FLASHINFER_MOE_FP8 does nothing in vLLM 0.9.2: releases from 0.10.0 to 0.23.0 read it. Later ones have --moe-backend."),
        ("a100-fp8", "VLLM_USE_FLASHINFER_MOE_FP8", None),
        ("a100-sglang", "VLLM_USE_V1", None),
    ],
)  # fmt: skip
def test_variables_that_do_nothing_are_named(launcher: Path, image: str, variable: str, warning: str | None) -> None:
    """A variable that this release does not read gets a warning."""
    assert plan(launcher, image, MODEL, **{variable: "1"})["warnings"] == ([warning] if warning else [])


def test_the_images_own_flags_are_checked(launcher: Path, tmp_path: Path) -> None:
    """What image.json adds is checked as well as what the user gives."""
    facts = json.loads((launcher / "h200-fp8/image.json").read_text())
    (tmp_path / "image.json").write_text(json.dumps({**facts, "args": {"dtype": "fp7"}}))
    shutil.copy(launcher / "h200-fp8/flags.json", tmp_path)

    assert refusal(tmp_path, ".", MODEL) == ["--dtype fp7: not one of auto, bfloat16, float, float16, float32, half."]


def test_without_a_snapshot_flags_go_as_they_are(launcher: Path, tmp_path: Path) -> None:
    """Somebody's own image.json: nothing is checked, and that is said; a first word is still the model."""
    shutil.copy(launcher / "h200-fp8/image.json", tmp_path)

    found = plan(tmp_path.parent, tmp_path.name, MODEL, "--foo", "1")

    assert (found["model"], found["command"][-2:]) == (MODEL, ["--foo", "1"])
    assert found["warnings"] == [f"there is no flags.json beside {tmp_path}/image.json: the engine's flags are not checked"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"engine": "vllm", "version": "1", "flags": [{"names": "--x"}]}', "{", "\x00"])
def test_a_snapshot_of_another_kind_is_named(launcher: Path, tmp_path: Path, text: str) -> None:
    """A flags.json that is not one is refused by name."""
    shutil.copy(launcher / "h200-fp8/image.json", tmp_path)
    (tmp_path / "flags.json").write_text(text)

    assert "flags.json is no snapshot of an engine's flags" in refusal(tmp_path, ".", MODEL)[0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("h200-fp8", "--tensor-parallel-size 2 --max-model-len 8k --max-num-seqs 16 --served-model-name r1"),
        ("h200-fp8", "-tp 2 --max_model_len=8000 --max_num_seqs=16 --served_model_name=r1"),
        ("a100-sglang", "--tp-size 2 --context-length 8000 --max-running-requests 16 --served-model-name r1"),
        ("b200-fp4", "--tp_size 2 --max_seq_len 8000 --max_batch_size 16 --model-name r1"),
    ],
)
def test_engine_spellings_are_settings(launcher: Path, image: str, words: str) -> None:
    """What the launcher must know is a setting by whatever name an engine has for it, and wins over its variable."""
    found = plan(launcher, image, MODEL, *words.split(), LAUNCH_TP="4", LAUNCH_MAX_SEQS="8")

    assert (found["tp"], found["model_name"]) == (2, "r1")
    assert {"8000", "16"} <= set(found["command"])
    assert not {"4", "8"} & set(found["command"])


@pytest.mark.parametrize("flag", ["TENSOR_PARALLEL_SIZE", "TP", "MAX_NUM_SEQS", "CONTEXT_LENGTH", "MASTER_PORT", "MODEL"])
def test_settings_are_no_engine_variables(launcher: Path, flag: str) -> None:
    """LAUNCH_ARG_ for a setting names the setting's own variable, so that the two cannot differ."""
    assert "is set by the launcher. Use LAUNCH_" in refusal(launcher, "h200-fp8", MODEL, **{f"LAUNCH_ARG_{flag}": "2"})[0]


def test_flags_with_an_h_in_them_are_not_help(launcher: Path) -> None:
    """-dph is a flag of vLLM; -h alone is help."""
    assert "--data-parallel-hybrid-lb" in plan(launcher, "h200-fp8", MODEL, "-dph")["command"]
    assert serve(launcher, "h200-fp8", "-h").output.startswith("Usage: ")


# The data ---------------------------------------------------------------------------------------------------------------------------------


def claims() -> Iterator[tuple[str, flags.Change]]:
    """Every row with each pinned release that it is for."""
    for release in RELEASES:
        known = snapshot(release)
        for change in flags.changes(known.engine):
            if change.is_for(known.version):
                yield release, change


@pytest.mark.parametrize(("release", "change"), list(claims()), ids=lambda item: item.flag if isinstance(item, flags.Change) else item)
def test_each_change_holds_in_each_release(release: str, change: flags.Change) -> None:
    """The release does not have the old flag, and takes what the row writes instead."""
    known = snapshot(release)
    lines = [change.becomes, *([] if change.variable else change.values.values())]

    if change.since or change.until or not change.values:
        assert known.find(change.flag) is None
    for line in lines:
        for word in flags.read(known, line):
            flag = known.find(word.name)
            assert flag, word
            if word.values and word.values != ("{}",):
                assert list(flags.wrong_values(known, flag, word)) == []


def test_every_row_is_for_a_pinned_release_and_says_why() -> None:
    """No row is there for nothing; each has one action, a reason, a source and no more than one bound."""
    rows = [(engine, change) for engine in flags.TITLES for change in flags.changes(engine)]
    used = {(snapshot(release).engine, change.flag, change.since, change.until) for release, change in claims()}

    assert [change.flag for engine, change in rows if (engine, change.flag, change.since, change.until) not in used] == []
    assert [change.flag for _, change in rows if not (change.why and change.source)] == []
    assert [change.flag for _, change in rows if change.since and change.until] == []
    assert [change.flag for _, change in rows if change.drop + bool(change.becomes) + bool(change.values) > 1] == []
    assert [change.flag for _, change in rows if change.switch and "{}" in change.becomes] == []


def test_flags_are_there_in_the_releases_that_had_them() -> None:
    """A row's bounds are right: pinned releases up to the last, and from the first on, have the flag."""
    known = [snapshot(release) for release in RELEASES]
    outside = [(each, change) for each in known for change in flags.changes(each.engine) if not change.is_for(each.version)]

    assert outside
    assert [(each.title, change.flag) for each, change in outside if not each.find(change.flag)] == []


# Anything at all --------------------------------------------------------------------------------------------------------------------------

ODD = ["", " ", "-", "--", "---", "=", "-1", "1e999", "9" * 5000, "$(touch owned)", "`id`", "; reboot", "a b", "{", "[" * 3000, "None", "é", "\n", "../..", "%s", "{}", "-Z", "8k", "nan"]  # fmt: skip
VALUES = ["1", "2", "true", "False", "auto", "ray", "generate", *ODD]
REAL = sorted({name for release in RELEASES for name in snapshot(release).flags})
CHANGED = [change.flag for engine in flags.TITLES for change in flags.changes(engine)]
NAMES = [*REAL, *CHANGED, *(form for name in CHANGED for form in (name.replace("-", "_"), f"--no-{name[2:]}"))]
NAMES += [*(f"--{name}" for name in OWN_FLAGS), *ODD, "--a b", "--é"]
# What follows a name: more of the same word, and words of their own.
ENDS = [
    ("",),
    (".key", "1"),
    *((f"={value}",) for value in VALUES),
    *(("", value) for value in VALUES),
    *(("", value, value) for value in VALUES),
]
VARIABLES = [setting.variable for setting in SETTINGS if setting.name not in ("image", "port", "model")]
VARIABLES += [f"LAUNCH_ARG_{name.lstrip('-').upper().replace('-', '_')}" for name in REAL]
VARIABLES += ["LAUNCH_ARG_", "LAUNCH_ODD", "LAUNCH_ARG_é", "VLLM_USE_V1"]


@pytest.mark.timeout(900)
def test_any_settings_and_flags_end_in_a_plan_or_a_sentence(launcher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given: no traceback, a list of words or exit 2 or 78, and nothing is run."""

    def ran(*args: object, **_: object) -> NoReturn:
        raise AssertionError(f"something was run: {args}")

    for module, name in ((subprocess, "run"), (subprocess, "Popen"), (os, "system"), (os, "popen"), (os, "execvp"), (os, "execv"), (os, "posix_spawn"), (os, "fork")):  # fmt: skip
        monkeypatch.setattr(module, name, ran)
    monkeypatch.setattr(flags, "load", functools.cache(flags.load))
    monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: [])  # the slowest part, tested above
    codes: Counter[int] = Counter()

    @hypothesis.given(
        some.sampled_from(IMAGES),
        some.lists(some.tuples(some.sampled_from(NAMES), some.sampled_from(ENDS)), max_size=3),
        some.lists(some.tuples(some.sampled_from(VARIABLES), some.sampled_from(VALUES)), max_size=2),
    )
    def ends_well(image: str, pairs: list[tuple[str, tuple[str, ...]]], env: list[tuple[str, str]]) -> None:
        words = [word for name, (more, *values) in pairs for word in (name + more, *values)]
        codes[code(serve(launcher, image, *words, LAUNCH_MODEL=MODEL, **dict(env)))] += 1

    ends_well()
    assert codes.keys() == {0, 2, 78}
    assert min(codes.values()) > codes.total() / 100  # each way out is tried
    assert not Path("owned").exists()


def code(result: Result) -> int:
    """The exit code of a dry run; what it prints is a plan whose command is a list of words, or a sentence."""
    if isinstance(result.exception, LaunchError):
        assert str(result.exception)
        return result.exception.exit_code
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 0 and not result.output.startswith("Usage: "):
        command = json.loads(result.output)["command"]
        assert isinstance(command, list)
        assert all(isinstance(part, str) for part in command)
    return result.exit_code


MODELS = {
    "qwen2": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "qwen3": "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
    "deepseek_v3": "deepseek-ai/DeepSeek-R1-0528",
}  # a type of model, and one of it
PROFILES = [
    (image, profile) for image in IMAGES for profile in json.loads((ROOT / "images" / image / "image.json").read_text())["profiles"]
]


@pytest.mark.parametrize(("image", "profile"), PROFILES)
def test_profiles_are_made_of_flags_of_the_release(
    launcher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, profile: str
) -> None:
    """Every flag passes the check against the snapshot, and is told with its reason and where it was measured."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # without MODEL, which has other shapes than its name
    rows = json.loads((ROOT / "images" / image / "image.json").read_text())["profiles"][profile]
    for row in rows:
        for kind in row["model_types"] or ["qwen2"]:
            gpus = "1" if row["kernels"] else "4"
            found = plan(launcher, image, LAUNCH_MODEL=MODELS[kind], LAUNCH_PROFILE=profile, LAUNCH_CHECKS="warn", LAUNCH_GPUS=gpus)
            assert str(row["value"]) in found["command"]
            name = f"--{row['flag']}"
            assert {"name": name, "value": str(row["value"]), "source": f"{row['why']} {row['measured']}"} in found["presets"]


def test_a_profile_is_below_the_users_flags(launcher: Path) -> None:
    """What the user sets counts, from the environment and on the command line; what is for other models is left out. Both are said."""
    found = plan(launcher, "h200-fp8", "--performance-mode", "balanced", LAUNCH_MODEL=MODEL, LAUNCH_PROFILE="latency")

    assert found["command"][found["command"].index("--performance-mode") + 1] == "balanced"
    assert "--speculative-config" not in found["command"]
    assert [choice["source"] for choice in found["presets"]] == ["not taken: yours counts", "not taken: it is for deepseek_v3"]
    found = plan(launcher, "h200-fp8", LAUNCH_MODEL=MODEL, LAUNCH_PROFILE="throughput", LAUNCH_ARG_KV_CACHE_DTYPE="auto")
    assert found["command"][found["command"].index("--kv-cache-dtype") + 1] == "auto"


LLAMA = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
KERNELS = {"VLLM_HAS_FLASHINFER_CUBIN": "1", "VLLM_KV_CACHE_LAYOUT": "HND", "FLASHINFER_DISABLE_JIT": "1"}
NO_KERNELS = "the image has no kernels for this model's shape"
OTHER_NUMBERS = "its kernels are for bfloat16, and a cache without scales of its own"


@pytest.mark.parametrize(
    ("changed", "settings", "lacks"),
    [
        ({}, {}, ""),
        ({"torch_dtype": None, "dtype": "bfloat16"}, {}, ""),
        ({"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8}, {}, ""),
        ({"hidden_size": None}, {}, NO_KERNELS),
        ({"num_attention_heads": 32}, {}, NO_KERNELS),
        ({"use_sliding_window": True, "max_window_layers": 28, "sliding_window": 4096}, {}, NO_KERNELS),
        ({"is_causal": False}, {}, NO_KERNELS),
        ({"torch_dtype": "float16"}, {}, OTHER_NUMBERS),
        ({"quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": {"strategy": "attn_head"}}}, {}, OTHER_NUMBERS),
        ({"model_type": "llama"}, {}, "it is for qwen2, qwen3"),
        ({}, {"LAUNCH_GPUS": "4", "LAUNCH_TP": "2"}, "its kernels are for one GPU"),
        ({}, {"LAUNCH_GPUS": "2", "LAUNCH_ARG_DATA_PARALLEL_SIZE": "2"}, "its kernels are for one GPU"),
        ({}, {"LAUNCH_ARG_ENFORCE_EAGER": "true"}, "not tried with your --enforce-eager"),
        ({}, {"LAUNCH_ARG_DTYPE": "half", "LAUNCH_ARG_KV_CACHE_DTYPE": "auto"}, "not tried with your --dtype, --kv-cache-dtype"),
        ({}, {"LAUNCH_ARG_SPEC_TOKENS": "3"}, "not tried with your --spec-tokens"),
    ],
)
def test_compiled_kernels_are_for_one_shape(
    launcher: Path, tmp_path: Path, changed: dict[str, object], settings: dict[str, str], lacks: str
) -> None:
    """Attention that was compiled into the image is asked for where it has run, whole or not at all, with its variables."""
    config = tomllib.loads((ROOT / "images/models.toml").read_text())["r1-7b"]["config"]
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", **config, **changed}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    settings = {"LAUNCH_PROFILE": "batch", "LAUNCH_CHECKS": "warn", "LAUNCH_ARG_LOAD_FORMAT": "dummy", "LAUNCH_GPUS": "1", **settings}
    found = plan(launcher, "h200-fp8", LAUNCH_MODEL=str(tmp_path), **settings)

    attention, pages = (row for row in found["presets"] if row["name"] in {"--attention-backend", "--block-size"})
    assert ("--attention-backend" in found["command"]) is ("--block-size" in found["command"]) is (not lacks)
    assert {name: found["environment"].get(name) for name in KERNELS} == (dict.fromkeys(KERNELS) if lacks else KERNELS)
    if lacks:
        assert {attention["source"], pages["source"]} == {f"not taken: {lacks}"}


@pytest.mark.parametrize("model", [LLAMA, MODELS["deepseek_v3"]])
def test_other_models_keep_their_attention(launcher: Path, model: str) -> None:
    found = plan(launcher, "h200-fp8", LAUNCH_MODEL=model, LAUNCH_PROFILE="batch", LAUNCH_CHECKS="warn", LAUNCH_GPUS="1")

    assert "--attention-backend" not in found["command"]
    assert found["command"][found["command"].index("--kv-cache-dtype") + 1] == "fp8"


@pytest.mark.parametrize("flag", ["attention-backend", "block-size"])
def test_attention_and_its_pages_go_together(launcher: Path, flag: str) -> None:
    value = {"attention-backend": "FLASH_ATTN", "block-size": "32"}[flag]
    name = f"LAUNCH_ARG_{flag.upper().replace('-', '_')}"
    found = plan(
        launcher, "h200-fp8", LAUNCH_MODEL=MODELS["qwen2"], LAUNCH_PROFILE="batch", LAUNCH_CHECKS="warn", LAUNCH_GPUS="1", **{name: value}
    )

    assert {row["source"] for row in found["presets"][1:]} == {"not taken: yours counts", f"not taken: not tried with your --{flag}"}
    assert {"FLASHINFER", "64"}.isdisjoint(found["command"])


@pytest.mark.parametrize(
    ("word", "flag"),
    [("-O0", "optimization-level"), ("-cc.mode=0", "compilation-config"), ("--attention-config.backend=FLASH_ATTN", "attention-config")],
)
def test_a_part_of_a_flag_counts_as_the_flag(launcher: Path, word: str, flag: str) -> None:
    """What switches the compiled path off in another spelling."""
    found = plan(launcher, "h200-fp8", word, LAUNCH_MODEL=MODELS["qwen2"], LAUNCH_PROFILE="batch", LAUNCH_CHECKS="warn", LAUNCH_GPUS="1")

    assert [row["source"] for row in found["presets"][1:]] == [f"not taken: not tried with your --{flag}"] * 2


@pytest.mark.parametrize(
    "image", [image for image in IMAGES if json.loads((ROOT / "images" / image / "image.json").read_text())["kernels"]]
)
def test_what_kernels_were_not_tried_with_are_flags(launcher: Path, image: str) -> None:
    known = flags.load(str(launcher / image / "flags.json"))
    rows = json.loads((launcher / image / "image.json").read_text())["kernels"]

    assert known
    assert [flag for row in rows for flag in row["unless"] if not known.find(f"--{flag}")] == []


def test_a_profile_counts_in_what_fits(launcher: Path) -> None:
    """An FP8 cache holds twice the tokens."""
    fits = [
        plan(launcher, "h200-fp8", LAUNCH_MODEL=MODELS["qwen2"], LAUNCH_CHECKS="warn", LAUNCH_PROFILE=profile)["sizing"]["fit"]
        for profile in ("", "throughput")
    ]

    assert fits[1]["tokens"] == pytest.approx(2 * fits[0]["tokens"], rel=0.01)


@pytest.mark.parametrize(
    ("image", "profile", "message"),
    [
        (
            "h200-fp8", "latancy",
            "Image h200-fp8 has no profile latancy; it has latency, throughput, batch. Did you mean latency? Set LAUNCH_PROFILE to one that it has, or unset it.",
        ),
        (
            "v100-half", "latency",
            "Image v100-half has no profile latency; it has none: its settings are for every load. Set LAUNCH_PROFILE to one that it has, or unset it.",
        ),
    ],
)  # fmt: skip
def test_a_profile_that_is_not_there_is_refused(launcher: Path, image: str, profile: str, message: str) -> None:
    """With those that are."""
    assert refusal(launcher, image, LAUNCH_MODEL=MODEL, LAUNCH_PROFILE=profile) == [message]
    assert plan(launcher, image, LAUNCH_MODEL=MODEL, LAUNCH_PROFILE="")["presets"] == []
