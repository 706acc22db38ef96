from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from engineroom import render, resolve, stacks, tables
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError

ROOT = Path(__file__).parents[2]


def changed(root: Path) -> dict[str, str]:
    return {path: what for path, (what, _, _) in render.differences(Catalog(root)).items()}


def test_committed_files_are_as_rendered(catalog: Catalog) -> None:
    """Nothing rendered is stale, edited, missing or left over."""
    assert render.differences(catalog) == {}


def test_rendering_is_byte_stable(catalog: Catalog) -> None:
    """Two renders of the same catalog give the same bytes."""
    assert render.outputs(catalog) == render.outputs(Catalog(ROOT))


def test_every_edited_file_is_named(copy: Path, catalog: Catalog) -> None:
    """An edit of any rendered file is noticed and named."""
    paths = render.outputs(catalog)
    documents = tables.documents(catalog)  # only their tables are rendered
    for path in paths:
        (copy / path).write_text(paths[path].replace("| --- |", "| -- |") if path in documents else paths[path] + "\n")

    assert changed(copy) == dict.fromkeys(paths, "stale or edited")


def test_missing_and_left_over_files_are_named_and_mended(copy: Path) -> None:
    """A deleted file is missing, a folder without a row is left over; rendering mends both."""
    (copy / "compose/demo-cpu.yaml").unlink()
    shutil.copytree(copy / "images/cpu", copy / "images/gone")

    found = changed(copy)
    assert found.pop("compose/demo-cpu.yaml") == "missing"
    assert found
    assert all(path.startswith("images/gone/") and what == "left over" for path, what in found.items())

    render.write(Catalog(copy))
    assert changed(copy) == {}
    assert not (copy / "images/gone").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("images/images.toml", 'value = "half"', 'value = "float16"', "images/v100-half/image.json"),
        ("images/engines.toml", '"libc6-dev", "python3-dev"]', '"python3-dev"]', "images/v100-half/Dockerfile"),
        ("compose/stacks.toml", "max_model_len = 8192", "max_model_len = 4096", "compose/r1-7b-v100.yaml"),
        ("images/models.toml", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "me/mine", "compose/r1-7b-v100.yaml"),
        ("images/gpus.toml", "NVIDIA V100", "Volta", "images/v100-half/Dockerfile"),
    ],
)
def test_a_changed_row_makes_its_files_stale(copy: Path, file: str, old: str, new: str, stale: str) -> None:
    """Editing a catalog row without rendering is noticed."""
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))

    assert stale in changed(copy)
    assert f"+++ b/{stale}" in render.diff(Catalog(copy))


def test_files_of_the_users_own_are_left_alone(copy: Path) -> None:
    """A compose file that was not rendered is none of the renderer's business."""
    mine = copy / "compose/mine.yaml"
    mine.write_text("services: {}\n")

    assert render.write(Catalog(copy)) == []
    assert mine.exists()


def test_parsers_are_spelt_as_their_engines_do(catalog: Catalog) -> None:
    """The reasoning parser is deepseek_r1 in vLLM; SGLang and TensorRT-LLM call it deepseek-r1."""
    for name, stack in catalog.stacks.items():
        engine = catalog.release_of(stack.image).engine
        found = stacks.compose(catalog, name)["engine_environment"].get("LAUNCH_ARG_REASONING_PARSER")
        if catalog.models[stack.model].reasoning:
            assert found.value == ("deepseek_r1" if engine == "vllm" else "deepseek-r1"), name


def test_a_misspelt_name_in_a_template_stops_the_render(copy: Path) -> None:
    """Templates are strict: an unknown name is an error that says where."""
    (copy / "images/templates/vllm.Dockerfile.j2").write_text("FROM {{ bse }}\n")

    with pytest.raises(EngineRoomError, match=r"vllm.Dockerfile.j2.*'bse' is undefined"):
        render.outputs(Catalog(copy))


@pytest.mark.fault(42)
def test_fault_42_a_hostile_template_is_refused(copy: Path) -> None:
    """Templates are sandboxed: they can write text and nothing else."""
    (copy / "images/templates/vllm.Dockerfile.j2").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}\n")

    with pytest.raises(EngineRoomError, match="unsafe|undefined"):
        render.outputs(Catalog(copy))


def test_templates_hold_no_decisions() -> None:
    """Templates compare with nothing but emptiness: no names of GPUs, engines or versions in their conditions."""
    for template in (*ROOT.glob("images/templates/*"), *ROOT.glob("compose/templates/**/*.j2")):
        conditions = re.findall(r"{%-?\s*(?:el)?if (.*?)-?%}", template.read_text())
        conditions += re.findall(r"{{[^}]* if ([^}]*) else ", template.read_text())
        comparing = [c for c in conditions if re.search(r"[=<>!]=|[<>]| in ", c)]
        assert comparing == [], template.name


def test_every_layer_holds_each_locked_package_once(catalog: Catalog) -> None:
    """The layers of an image together are its lock, and the engine comes last."""
    for name in catalog.images:
        release = catalog.release_of(name)
        if release.install != "wheels":
            continue
        lock = resolve.lock_file(catalog, name).read_text()
        files = resolve.layers(release, lock)

        split = sorted(package for file in files for package, _ in resolve.locked(file.requirements))
        assert split == sorted(package for package, _ in resolve.locked(lock))
        assert files[-1].name == "engine"


def test_locks_are_hashed_and_name_no_host() -> None:
    """Every locked package has a hash, and no lock says where packages come from."""
    for lock in (*ROOT.glob("images/locks/*.txt"), ROOT / "requirements.txt"):
        text = lock.read_text()
        assert "://" not in text, lock.name
        for package, lines in resolve.locked(text):
            assert "--hash=sha256:" in lines, f"{lock.name}: {package}"


def same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


GPU = """
[t4]
title = "NVIDIA T4"
compute_capability = 75
memory_gib = [16]
usable_gib = [14.56]
precisions = ["half"]
source = "CUDA C++ programming guide"
"""
IMAGE = """
[t4-half]
engine = "vllm-0.9.2"
gpus = ["{gpu}"]
precision = "half"
"""
STACK = """
[r1-7b-again]
title = "R1-Distill-Qwen-7B once more"
image = "v100-half"
model = "r1-7b"
gpus = 1
gpu = "v100-32"
max_model_len = 4096
"""


@pytest.mark.parametrize(
    ("rows", "files", "rendered"),
    [
        ({"compose/stacks.toml": STACK}, 1, "compose/r1-7b-again.yaml"),
        ({"images/images.toml": IMAGE.format(gpu="v100")}, 1, "images/t4-half/Dockerfile"),
        ({"images/gpus.toml": GPU, "images/images.toml": IMAGE.format(gpu="t4")}, 2, "images/t4-half/Dockerfile"),
    ],
    ids=["stack", "image", "gpu"],
)
def test_growth_costs_what_was_promised(copy: Path, rows: dict[str, str], files: int, rendered: str) -> None:
    """A stack is one file, an image of a pinned release one, a GPU two; everything else is rendered."""
    for file, row in rows.items():
        path = copy / file
        text = path.read_text()
        mark = re.search(r"^# What cannot", text, re.MULTILINE)
        path.write_text(text[: mark.start()] + row + "\n" + text[mark.start() :] if mark else text + row)

    written = render.write(Catalog(copy))

    differ = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file() and not same(p, ROOT / p.relative_to(copy))}
    assert len(differ - set(written)) == files
    assert rendered in written
    assert all(what in render.outputs(Catalog(copy)) for what in written)
    assert changed(copy) == {}


def test_every_image_is_a_bake_target(catalog: Catalog) -> None:
    """bake.json has a target, a tag and a Dockerfile for every image, and no tag is `latest`."""
    bake = json.loads((ROOT / "images/bake.json").read_text())["target"]

    assert set(bake) == set(catalog.images)
    for name, target in bake.items():
        assert target["tags"] == [resolve.tag(name, catalog.release_of(name))]
        assert "latest" not in target["tags"][0]
        assert (ROOT / target["dockerfile"]).exists()
