"""Every image that is built on this machine: what it claims, replayed in it. CI builds `cpu` and `webui`; GPU images are tested where they are."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from image.conftest import ROOT, run

from engineroom import auditing, build, flags, resolve, stacks
from engineroom.catalog import Catalog
from engineroom.host import Host
from launcher import flags as launcher_flags

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
CATALOG = Catalog(ROOT)
LAUNCHED = [name for name in CATALOG.images if CATALOG.release_of(name).launched]
PARSED = [name for name in LAUNCHED if CATALOG.release_of(name).engine in ("vllm", "sglang")]


def built(name: str) -> str:
    """The image's tag; the test is skipped where it is not built."""
    tag = resolve.tag(name, CATALOG.release_of(name))
    if not build.have(tag):
        pytest.skip(f"{tag} is not built here (make image TARGET={name})")
    return tag


def dry_run(image: str, stack: str) -> list[str]:
    """The engine's command line in a stack, as the launcher in the image makes it; of a cluster, the head's."""
    settings = stacks.compose(CATALOG, stack)["engine_environment"]
    env = {name: variable.value for name, variable in settings.items()}
    env |= {"LAUNCH_ROLE": "head", "LAUNCH_CLUSTER_TOKEN": "none"} if CATALOG.stacks[stack].nodes > 1 else {}
    inside = CATALOG.images[CATALOG.stacks[stack].image].model
    env |= {} if inside else {"LAUNCH_MODEL": "owner/model"}
    env |= {"LAUNCH_CHECKS": "warn", "HF_HUB_OFFLINE": "1"}  # there is no GPU here, and no such model
    options = [part for name, value in env.items() for part in ("--env", f"{name}={value}")]
    result = subprocess.run(
        ["docker", "run", "--rm", *options, image, "serve", "--dry-run", "--json"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout)["command"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_launcher_is_in_it(name: str) -> None:
    """The launcher starts under the image's own Python."""
    assert run(built(name), "--version").stdout.strip() == "launch, version 0.1.0"


@pytest.mark.fault(43)
@pytest.mark.parametrize("name", PARSED)
def test_fault_43_engine_takes_every_stacks_flags(name: str) -> None:
    """The engine is imported without a GPU, and its own parser accepts what the launcher writes for each stack of the image."""
    image = built(name)
    stacks = [stack for stack, row in CATALOG.stacks.items() if row.image == name]
    commands = [dry_run(image, stack) for stack in stacks]
    commands.append([*(commands[0] if commands else ["vllm", "serve", "m"]), "--nccl-clique-size", "4"])

    found = json.loads(flags.run_inside(CATALOG, name, "replay.py", CATALOG.release_of(name).engine, stdin=json.dumps(commands)))

    assert [answer.get("error") for answer in found[:-1]] == [None] * len(stacks)
    assert "--nccl-clique-size" in found[-1]["error"]


@pytest.mark.fault(43)
@pytest.mark.parametrize("name", PARSED)
def test_fault_43_engine_takes_what_flags_are_translated_to(name: str) -> None:
    """What the launcher writes instead of other releases' flags is accepted by the engine's own parser, keys of JSON too."""
    built(name)
    engine = CATALOG.release_of(name).engine
    commands = list(translated(flags.read_snapshot(CATALOG, CATALOG.image(name).engine)))

    found = json.loads(flags.run_inside(CATALOG, name, "replay.py", engine, stdin=json.dumps(commands)))

    assert commands
    assert [(answer["command"], answer["error"]) for answer in found if not answer["ok"]] == []


def translated(known: launcher_flags.Snapshot) -> Iterator[list[str]]:
    """A command for each line of words that flag_changes.toml has for a release, with a value of the flag's kind."""
    start = {"vllm": ["vllm", "serve", "m"], "sglang": ["python3", "-m", "sglang.launch_server", "--model-path", "m"]}[known.engine]
    keys = {"--structured-outputs-config.backend": "xgrammar", "--speculative-config.method": "ngram", "--speculative-config.model": "m"}
    for change in launcher_flags.changes(known.engine):
        for line in [change.becomes, *([] if change.variable else change.values.values())] if change.is_for(known.version) else []:
            flag = known.find(line[0]) if line else None
            if flag:
                value = (
                    str(flag.choices[0]) if flag.choices else "{}" if "json" in flag.kind and "." not in line[0] else keys.get(line[0], "1")
                )
                beside = (
                    ["--structured-outputs-config.backend", "guidance"] if line[0].startswith("--structured-outputs-config.dis") else []
                )
                yield [*start, *(value if word == "{}" else word for word in line), *beside]


@pytest.mark.parametrize("name", PARSED)
def test_snapshot_of_flags_is_the_images(name: str) -> None:
    """What the repository says about an engine's flags is what the engine in the image says."""
    built(name)
    found = flags.run_inside(CATALOG, name, "snapshot.py", CATALOG.release_of(name).engine)

    assert found == flags.snapshot_file(CATALOG, name).read_text()


@pytest.mark.parametrize("name", CATALOG.images)
def test_audit_is_clean(name: str) -> None:
    """As it was in the build, and from outside: user, history, layers under 2 GiB."""
    image = built(name)
    found = auditing.audit(CATALOG, name, None)

    assert found["findings"] == []
    stored = json.loads(run(image, "cat", "/etc/engineroom/audit.json", entrypoint="").stdout)
    assert stored["device_code"] == found["device_code"]
    assert stored["excepted"] == found["excepted"]


@pytest.mark.parametrize(
    ("name", "capability", "backend"),
    [("v100-half", 70, "XFORMERS"), ("a100-half", 80, "FLASH_ATTN"), ("h200-fp8", 90, "FLASH_ATTN")],
)
def test_attention_has_code_for_the_gpu(name: str, capability: int, backend: str) -> None:
    """The choice is vLLM's own, under a faked device: FlashAttention 2 has no code for 70, and is not chosen there."""
    built(name)
    found = json.loads(flags.run_inside(CATALOG, name, "attention.py", str(capability)))

    assert found["backend"] == backend
    assert (found["engine"] == "V0") is (capability == 70)


@pytest.mark.parametrize("name", LAUNCHED)
def test_launcher_change_rebuilds_the_last_layer_alone(name: str, tmp_path: Path) -> None:
    """A changed file of the launcher makes one layer anew; every other keeps its digest."""
    before = layers(built(name))
    copy = tmp_path / "checkout"
    copy.mkdir()
    for part in ("entrypoints", "images", "src", "models", ".dockerignore"):
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
    (copy / "entrypoints/launcher/role.py").open("a").write("\n# changed by a test\n")
    bake = json.loads((copy / "images/bake.json").read_text())
    changed = f"engineroom-test:{name}"
    bake["target"][name]["tags"] = [changed]
    (copy / "images/bake.json").write_text(json.dumps(bake))
    host: Any = Host.load(ROOT)
    host = build.ensure_base(host, lambda _: None) if CATALOG.release_of(name).install == "wheels" else host
    overlay = tmp_path / "host.json"
    overlay.write_text(json.dumps({"target": {name: build.target_settings(CATALOG.release_of(name), host, tmp_path)}}))
    try:
        build._bake(copy, name, overlay, lambda _: None)
        after = layers(changed)
    finally:
        subprocess.run(["docker", "rmi", "--force", changed], capture_output=True, check=False)

    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def layers(image: str) -> list[str]:
    """The digests of an image's layers, from the base up."""
    return list(docker.from_env().images.get(image).attrs["RootFS"]["Layers"])


def test_images_of_one_release_share_their_layers() -> None:
    """Two images of one engine release have the system's, the environment's and every layer of wheels in common."""
    first, second = layers(built("a100-half")), layers(built("a100-fp8"))
    common = 3 + len(CATALOG.release_of("a100-half").layers) + 1  # base, Debian's, environment; the named groups and the rest

    assert first[:common] == second[:common]


LOADED = """
import ctypes, json, subprocess, sys
stub = "/tmp/libcuda.so.1"  # there is no driver here
source = b"int cuGetErrorName(void){return 1;} int cuGetErrorString(void){return 1;} int cuTensorMapEncodeTiled(void){return 1;}"
subprocess.run(["gcc", "-shared", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o", stub], input=source, check=True)
ctypes.CDLL(stub, ctypes.RTLD_GLOBAL)
import torch
from flashinfer.jit.attention import gen_batch_prefill_module
from flashinfer.jit.xqa import gen_xqa_module
half, cache = torch.bfloat16, torch.float8_e4m3fn
for head_dim, group in json.loads(sys.argv[1]):
    prompts = gen_batch_prefill_module("fa3", cache, cache, half, torch.int32, head_dim, head_dim, 0, False, False, False)
    tokens = gen_xqa_module(half, cache, int(sys.argv[2]), head_dim, group, False, half, 1)
    print(bool(prompts.build_and_load().plan and tokens.build_and_load().xqa_wrapper))
"""


@pytest.mark.parametrize("name", [name for name, image in CATALOG.images.items() if image.kernels])
def test_kernels_are_there(name: str) -> None:
    """On a faked GPU vLLM takes FlashInfer, which finds attention for each shape and compiles nothing. That it is right was seen on a real one."""
    facts = json.loads((ROOT / "images" / name / "image.json").read_text())
    rows = next(rows for rows in facts["profiles"].values() if any(row["kernels"] for row in rows))
    variables = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a"} | {key: value for row in rows for key, value in row["env"].items()}
    options = [f"--env={key}={value}" for key, value in variables.items()]
    command = ["docker", "run", "--rm", "--network=none", *options, f"--volume={flags.INSIDE}:/inside:ro", "--workdir=/inside"]
    command += ["--entrypoint=python3", built(name), "-B"]

    def said(*arguments: str) -> str:
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    chosen = json.loads(said("attention.py", "90", *(f"--{row['flag']}={row['value']}" for row in rows)))
    assert (chosen["backend"], chosen["dtype"]) == ("FLASHINFER", "bfloat16")
    shapes = [(row["head_dim"], group) for row in facts["kernels"] for group in row["groups"]]
    assert said("-c", LOADED, json.dumps(shapes), str(chosen["block_size"])).split() == ["True"] * len(shapes)
