from __future__ import annotations

from pathlib import Path

import pytest

from engineroom import build
from engineroom.catalog import Catalog
from engineroom.errors import BuildFailed, CatalogError, EngineRoomError, ServiceUnavailable
from engineroom.host import Host


def host(root: Path, **env: str) -> Host:
    return Host.load(root, {"PIP_CONFIG_FILE": "", **env})


def test_environment_wins_over_dotenv(tmp_path: Path) -> None:
    """A variable of the environment wins over .env, and .env over the default."""
    (tmp_path / ".env").write_text("BASE_IMAGE=from-file\nWEBUI_PORT=4000\n")

    found = host(tmp_path, BASE_IMAGE="from-environment")

    assert found.base_image == "from-environment"
    assert found.webui_port == 4000
    assert found.api_port == 8000


def test_remembered_settings_are_read_again(tmp_path: Path) -> None:
    """What a run writes into .env, the next one reads; other lines stay, and so does who may read it."""
    (tmp_path / ".env").write_text("# mine\nMODELS=/data\n")
    (tmp_path / ".env").chmod(0o600)
    host(tmp_path).remember("WEBUI_IMAGE", "page:1")

    assert host(tmp_path).webui_image == "page:1"
    assert "# mine\nMODELS=/data\n" in (tmp_path / ".env").read_text()
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"API_PORT": "http"}, "API_PORT is 'http', which is no port"),
        ({"API_PORT": "70000"}, "API_PORT is '70000'"),
        ({"API_PORT": "²"}, "API_PORT is '²', which is no port"),
        ({"API_PORT": "9" * 5000}, "which is no port"),
        ({"BUILD_CA": "/no/such/file"}, "BUILD_CA names /no/such/file"),
        ({"WHEELS": "/no/such/folder"}, "WHEELS names /no/such/folder"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, env: dict[str, str], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(CatalogError, match=message):
        host(tmp_path, **env)


def test_build_settings_of_a_machine_with_mirrors(catalog: Catalog, tmp_path: Path) -> None:
    """A mirror, a certificate authority and wheels become secrets and contexts, never build arguments."""
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    ca = tmp_path / "ca.pem"
    ca.touch()
    found = host(
        tmp_path, WHEELS=str(tmp_path), BUILD_CA=str(ca), PIP_INDEX_URL="https://user:word@mirror.example/simple", BASE_IMAGE="mine"
    )

    settings = build.target_settings(catalog.release_of("cpu"), found, tmp_path)

    assert settings["args"] == {"BASE_IMAGE": "mine", "EXTRA_INDEX": ""}
    assert settings["contexts"] == {"wheels": str(tmp_path)}
    assert {entry.split(",")[0] for entry in settings["secret"]} == {"id=ca", "id=uv", "id=pip"}
    assert "mirror.example" in (tmp_path / "uv.toml").read_text()
    assert "word" not in str(settings)


def test_vendor_images_have_their_own_base(catalog: Catalog, tmp_path: Path) -> None:
    """BASE_IMAGE is Debian's and never reaches an image that is built on a vendor's."""
    settings = build.target_settings(catalog.release_of("b200-fp4"), host(tmp_path, BASE_IMAGE="debian", VENDOR_IMAGE="trt"), tmp_path)

    assert settings["args"] == {"BASE_IMAGE": "trt"}


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (
            [
                "ERROR: failed to resolve source metadata for nvcr.io/nvidia/tensorrt-llm/release:1.2.1: dial tcp: lookup nvcr.io: no such host"
            ],
            ServiceUnavailable,
            "the registry nvcr.io could not be reached.*\nSet VENDOR_IMAGE",
        ),
        (["#9 12.1 OSError: [Errno 28] No space left on device"], BuildFailed, "the disk is full"),
        (
            ["#9 3.0 error: Failed to fetch: `https://mirror.example/x.whl`", "#9 3.0   cause: dns error"],
            ServiceUnavailable,
            "PIP_INDEX_URL",
        ),
        (["#9 2.0 E: Failed to fetch http://mirror.example/dists  Temporary failure resolving"], ServiceUnavailable, "APT_SOURCES"),
        (["#9 1.0 error: Hash mismatch for `torch==2.13.0+cpu`"], BuildFailed, "torch==2.13.0.* is not the file that was locked"),
        (["#9 1.0 something", "#9 1.1 error: it broke"], BuildFailed, "it broke"),
    ],
)
def test_a_failed_build_is_explained(lines: list[str], error: type[EngineRoomError], message: str) -> None:
    """The output of a failed build gives the cause and the setting that mends it."""
    found = build.diagnose("image", lines)

    assert type(found) is error
    with pytest.raises(error, match=message):
        raise found
