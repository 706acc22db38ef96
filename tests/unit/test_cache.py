"""Where compiled code is kept: apart by release, GPU and model, and never where the user wants another place."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cache
from launcher.engines import ENGINES
from launcher.hardware import Gpu

H200 = (Gpu("NVIDIA H200", 90, 0, 0),)
LINE = ["vllm", "serve", "someone/model", "--dtype", "half"]


def place(
    tmp_path: Path,
    release: str = "vllm-0.25.1",
    gpus: tuple[Gpu, ...] = H200,
    model: str = "someone/model",
    line: list[str] = LINE,
    **env: str,
) -> cache.Cache:
    return cache.plan("VLLM_CACHE_ROOT", release, gpus, model, line=line, env={"XDG_CACHE_HOME": str(tmp_path), **env})


def test_each_release_gpu_and_model_has_its_own(tmp_path: Path) -> None:
    """Each of them alone leads elsewhere; the names say which is which, so that an old one can be removed."""
    found = {
        place(tmp_path).folder,
        place(tmp_path, release="vllm-0.19.1").folder,
        place(tmp_path, gpus=(Gpu("NVIDIA H100 80GB HBM3", 90, 0, 0),)).folder,
        place(tmp_path, gpus=()).folder,
        place(tmp_path, model="/models/someone/model-2").folder,
        place(tmp_path, model="someone-else/model").folder,
        place(tmp_path, model="someone-model").folder,
        place(tmp_path, model="模型").folder,
        place(tmp_path, model="型模").folder,
    }

    assert len(found) == 9
    assert place(tmp_path).folder == f"{tmp_path}/engineroom/vllm-0.25.1/NVIDIA-H200-90/someone--model"
    assert all(path.startswith(place(tmp_path).folder + "/") for path in place(tmp_path).variables.values())


@pytest.mark.parametrize("model", ["../../..", "/", "a" * 5000, "模型" * 100, "a\nb"])
def test_any_name_is_one_folder(tmp_path: Path, model: str) -> None:
    """A model's name leads nowhere else, and a file system takes it."""
    folder = Path(place(tmp_path, model=model).folder)

    assert folder.parent == tmp_path / "engineroom/vllm-0.25.1/NVIDIA-H200-90"
    folder.mkdir(parents=True)


def test_the_users_own_place_counts(tmp_path: Path) -> None:
    """A variable that is set is left alone, and that is said."""
    found = place(tmp_path, TRITON_CACHE_DIR="/fast/triton")

    assert "TRITON_CACHE_DIR" not in found.variables
    assert "VLLM_CACHE_ROOT" in found.variables
    assert found.shown.endswith("(cold: no start has come to an end here; not for TRITON_CACHE_DIR, which you have set)")


def test_whether_it_is_warm(tmp_path: Path) -> None:
    """Warm after a start that came to its first token; with other flags, only in part. A spoilt note counts as none."""
    cache.started(place(tmp_path), 73.2)

    assert place(tmp_path).state == "warm: the last start took 73.2 s"
    assert place(tmp_path, line=[*LINE, "--quantization", "fp8"]).state == "warm in part: the last start took 73.2 s, with other flags"
    for text in ("", "[]", "{}", '{"seconds": "x", "command": []}'):
        Path(place(tmp_path).folder, cache.MARK).write_text(text)
        assert place(tmp_path).state == "cold: no start has come to an end here"


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "engineroom").write_text("a file")

    cache.started(place(tmp_path), 1)
    assert place(tmp_path).state.startswith("cold")


def test_each_engine_has_a_place() -> None:
    """The engine's own variable is none of the libraries'."""
    assert {engine.CACHE for engine in ENGINES.values()} == {"VLLM_CACHE_ROOT", "SGLANG_CACHE_DIR", ""}
    assert not cache.COMMON.keys() & {engine.CACHE for engine in ENGINES.values()}
