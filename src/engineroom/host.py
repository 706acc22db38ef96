"""Settings of this machine: the environment, then `.env`, then what the machine's own tools are configured with."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values, set_key

from engineroom.errors import CatalogError

SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")
PROJECT = "engineroom"  # as in compose.yaml
HUB = "https://huggingface.co"
PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


@dataclass(frozen=True)
class Host:
    """What differs from machine to machine. Empty text and None mean: the default."""

    root: Path
    project: str
    base_image: str
    vendor_image: str
    webui_image: str
    registry: str
    ca: Path | None
    wheels: Path | None
    index: str
    apt_sources: Path | None
    api_port: int
    webui_port: int
    router_port: int
    upstream_url: str
    upstream_model: str
    upstream_key: Path | None
    gateway_address: str
    gateway_port: int
    gateway_keys: Path | None
    prometheus_port: int
    hub: str
    hub_offline: bool
    model: str
    hf_token: Path | None
    cluster_token: Path | None
    profiles: frozenset[str]

    @classmethod
    def load(cls, root: Path, environ: Mapping[str, str] | None = None) -> Host:
        """Read all settings. Raises CatalogError for a file or port that cannot be."""
        env = settings(root, environ)
        pip = _pip_configuration(env)
        folders = (env.get("UV_FIND_LINKS") or env.get("PIP_FIND_LINKS") or pip.get("find-links", "")).split()
        found = [folder for folder in folders if Path(folder).is_dir()]
        return cls(
            root=root,
            project=env.get("COMPOSE_PROJECT_NAME") or PROJECT,
            base_image=env.get("BASE_IMAGE", ""),
            vendor_image=env.get("VENDOR_IMAGE", ""),
            webui_image=env.get("WEBUI_IMAGE", ""),
            registry=env.get("ENGINEROOM_REGISTRY", ""),
            ca=_file(env, "BUILD_CA") or existing(env.get("SSL_CERT_FILE", "")) or existing(str(SYSTEM_CA)),
            wheels=_folder(env, "WHEELS") or (Path(found[0]) if found else None),
            index=env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or env.get("PIP_INDEX_URL") or pip.get("index-url", ""),
            apt_sources=_file(env, "APT_SOURCES"),
            api_port=_port(env, "API_PORT", 8000),
            webui_port=_port(env, "WEBUI_PORT", 3000),
            router_port=_port(env, "ROUTER_PORT", _port(env, "API_PORT", 8000)),
            upstream_url=env.get("UPSTREAM_URL", ""),
            upstream_model=env.get("UPSTREAM_MODEL", ""),
            upstream_key=_secret(root, env.get("UPSTREAM_KEY_FILE", "")),
            gateway_address=env.get("GATEWAY_ADDRESS") or "0.0.0.0",  # noqa: S104 - as in compose/templates/gateway.yaml.j2
            gateway_port=_port(env, "GATEWAY_PORT", 8443),
            gateway_keys=_secret(root, env.get("GATEWAY_KEYS_FILE", "")),
            prometheus_port=_port(env, "PROMETHEUS_PORT", 9090),
            hub=env.get("HF_ENDPOINT") or HUB,
            hub_offline=env.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes"),
            model=env.get("MODEL", ""),
            hf_token=_secret(root, env.get("HF_TOKEN_FILE", "")),
            cluster_token=_secret(root, env.get("CLUSTER_TOKEN_FILE", "")),
            profiles=frozenset(env.get("COMPOSE_PROFILES", "").replace(",", " ").split()),
        )

    def remember(self, name: str, value: str) -> None:
        """Write one setting into `.env`, so that plain `docker compose up` finds it too."""
        file = self.root / ".env"
        file.touch()
        set_key(file, name, value, quote_mode="never")  # keeps the file's mode: it may hold a password


def settings(root: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every variable as Compose sees it: `.env`, and the environment over it."""
    return {**_dotenv(root / ".env"), **(os.environ if environ is None else environ)}


def _dotenv(file: Path) -> dict[str, str]:
    try:
        return {name: value or "" for name, value in dotenv_values(file).items()}
    except UnicodeDecodeError:
        raise CatalogError(f"{file} is no UTF-8 text. Write it anew; .env.example shows the form.") from None


def _pip_configuration(env: Mapping[str, str]) -> dict[str, str]:
    """The [global] section of pip's configuration files, as far as it can be read; later files win."""
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        parser.read([Path(name).expanduser() for name in (*PIP_FILES, env.get("PIP_CONFIG_FILE", "")) if name])
    return dict(parser["global"]) if parser.has_section("global") else {}


def existing(name: str) -> Path | None:
    """The file of this name, if there is one."""
    return Path(name) if name and Path(name).is_file() else None


def _file(env: Mapping[str, str], name: str) -> Path | None:
    if env.get(name) and not Path(env[name]).is_file():
        raise CatalogError(f"{name} names {env[name]}, which is no file. Correct it in the environment or in .env.")
    return Path(env[name]).absolute() if env.get(name) else None


def _folder(env: Mapping[str, str], name: str) -> Path | None:
    if env.get(name) and not Path(env[name]).is_dir():
        raise CatalogError(f"{name} names {env[name]}, which is no folder. Correct it in the environment or in .env.")
    return Path(env[name]).absolute() if env.get(name) else None


def _secret(root: Path, name: str) -> Path | None:
    """The file of a secret, as Compose finds it, there or not: relative names count from compose/."""
    return None if name in ("", os.devnull) else root / "compose" / name


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:  # noqa: PLR2004
        raise CatalogError(f"{name} is {text!r}, which is no port. Set it to a number from 1 to 65535.")
    return int(text)
