"""Every setting in one table. Flag > environment > default; each secret has a `_FILE` twin; unknown names are errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from launcher import log
from launcher.errors import Refused, did_you_mean

PREFIX = "LAUNCH_"
ARG_PREFIX = "LAUNCH_ARG_"
IMAGE_FACTS = "/etc/engineroom/image.json"


class Setting(NamedTuple):
    """One setting: `name` in Python, LAUNCH_NAME in the environment, --name on the command line."""

    name: str
    kind: type
    default: object
    help: str
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    spellings: tuple[str, ...] = ()  # what engines call it, so that a guide's command line can be pasted

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()


SETTINGS = (
    Setting("model", str, None, "Folder or hub id of the model.", spellings=("--model-path",)),
    Setting("model_name", str, None, "Name that the API shows.", spellings=("--served-model-name",)),
    Setting(
        "profile", str, None, "What the image's presets are for: latency, throughput or batch, where it has them (default: every load)."
    ),
    Setting("role", str, "auto", "What this container does.", ("auto", "single", "head", "worker")),
    Setting(
        "nodes", int, None, "Nodes in the stack, the head included (default: what the scheduler says, else 1).", spellings=("--nnodes",)
    ),
    Setting("gpus", int, None, "GPUs a node (default: what is visible).", low=0),
    Setting("head", str, None, "Name or address of the head node; looked up again at each try.", spellings=("--master-addr",)),
    Setting("interface", str, None, "Network interface between the nodes (default: the way to the head, or the default route)."),
    Setting(
        "cluster_port",
        int,
        6370,
        "First of ten ports between the nodes; Ray's is the last.",
        low=1024,
        high=65000,
        spellings=("--master-port",),
    ),
    Setting("insecure_cluster", bool, False, "Let nodes join without a token. Whoever reaches their ports can then run programs on them."),
    Setting(
        "tp",
        int,
        None,
        "Tensor parallel size (default: the GPUs of a node).",
        low=1,
        spellings=("-tp", "--tp-size", "--tensor-parallel-size"),
    ),
    Setting(
        "pp", int, None, "Pipeline parallel size (default: the nodes).", low=1, spellings=("-pp", "--pp-size", "--pipeline-parallel-size")
    ),
    Setting("host", str, "0.0.0.0", "Address that the API listens on."),  # noqa: S104 - the container's own network; what is published is the stack's choice
    Setting("port", int, 8000, "Port of the API.", low=1, high=65535),
    Setting("max_model_len", int, None, "Longest context, in tokens.", low=1, spellings=("--context-length", "--max-seq-len")),
    Setting(
        "max_seqs", int, None, "Most requests at once.", low=1, spellings=("--max-num-seqs", "--max-running-requests", "--max-batch-size")
    ),
    Setting("join_seconds", float, 600.0, "Deadline for the nodes to join.", low=0),
    Setting("peer_seconds", float, 30.0, "Silence after which a node counts as lost.", low=5),
    Setting("start_seconds", float, 3600.0, "Deadline for the engine to become ready.", low=0),
    Setting("drain_seconds", float, 120.0, "Deadline for running requests after SIGTERM.", low=0),
    Setting("probe_seconds", float, 30.0, "Time between one-token probes of a ready engine; 0 switches them off.", low=0),
    Setting(
        "executor",
        str,
        "auto",
        "How several GPUs work together.",
        ("auto", "ray", "native", "mp"),
        spellings=("--distributed-executor-backend",),
    ),
    Setting("checks", str, "refuse", "Whether a failed check refuses the start, where it might work all the same.", ("refuse", "warn")),
    Setting("log", str, "text", "Form of the launcher's own lines: text, or JSON lines.", log.FORMS),
    Setting("image", str, IMAGE_FACTS, "File that says what this image is."),
)
SECRETS = ("LAUNCH_API_KEY", "LAUNCH_CLUSTER_TOKEN", "HF_TOKEN")
# The engine's own name for it, which our probes need as well, and what KubeRay gives to every node.
OTHER_NAMES = {"LAUNCH_API_KEY": "VLLM_API_KEY", "LAUNCH_CLUSTER_TOKEN": "RAY_AUTH_TOKEN"}
# Flags of the engines that only the launcher gives: it finds each node's place itself, and a secret would stand in the open.
KEPT_FLAGS = {
    "api-key": "LAUNCH_API_KEY_FILE",
    "hf-token": "HF_TOKEN_FILE",
    "n": "LAUNCH_NODES",
    "node-rank": "LAUNCH_ROLE",
    "r": "LAUNCH_ROLE",
    "headless": "LAUNCH_ROLE",
    "dist-init-addr": "LAUNCH_HEAD",
    "nccl-init-addr": "LAUNCH_HEAD",
}
# All flags that are settings: the launcher must know them.
OWN_FLAGS = {
    **{name.lstrip("-"): setting.variable for setting in SETTINGS for name in (setting.name.replace("_", "-"), *setting.spellings)},
    **KEPT_FLAGS,
}


class Settings(NamedTuple):
    """All settings after flags, environment and defaults; `args` are engine flags from LAUNCH_ARG_*, `extra` from the command line.

    Once translated for the image's engine, `args` holds the words of both, and `extra` nothing.
    """

    model: str | None
    model_name: str | None
    profile: str | None
    role: str
    nodes: int | None
    gpus: int | None
    head: str | None
    interface: str | None
    cluster_port: int
    insecure_cluster: bool
    tp: int | None
    pp: int | None
    host: str
    port: int
    max_model_len: int | None
    max_seqs: int | None
    join_seconds: float
    peer_seconds: float
    start_seconds: float
    drain_seconds: float
    probe_seconds: float
    executor: str
    checks: str
    log: str
    image: str
    args: Mapping[str, str | tuple[str, ...]]
    extra: tuple[str, ...]
    secrets: Mapping[str, str]


def check_names(env: Mapping[str, str]) -> None:
    """Refuse LAUNCH_ names that nothing reads: a misspelt setting must not be ignored in silence.

    Raises Refused with the nearest real name.
    """
    known = [setting.variable for setting in SETTINGS] + [s for s in SECRETS if s.startswith(PREFIX)]
    known += [f"{secret}_FILE" for secret in SECRETS if secret.startswith(PREFIX)]
    for name in env:
        if name.startswith(PREFIX) and name not in known and not name.startswith(ARG_PREFIX):
            raise Refused(
                f"Unknown setting {name}.{did_you_mean(name, known)}\n"
                f"`launch serve --help` lists the settings; flags of the engine go in {ARG_PREFIX}<FLAG>."
            )


def engine_args(env: Mapping[str, str]) -> dict[str, str]:
    """LAUNCH_ARG_BLOCK_SIZE=16 as {"block-size": "16"}.

    Raises Refused for an empty name, and for flags that are settings of the launcher.
    """
    found = {}
    for name, value in env.items():
        if name.startswith(ARG_PREFIX):
            flag = name.removeprefix(ARG_PREFIX).lower().replace("_", "-")
            if not flag:
                raise Refused(f"{name} names no flag. Write {ARG_PREFIX}<FLAG>, for example {ARG_PREFIX}SEED=7.")
            check_flag(flag)
            found[flag] = value
    return found


def check_flag(flag: str, kept: Mapping[str, str] = OWN_FLAGS) -> None:
    """Raises Refused for a flag of the engine that is a setting of the launcher."""
    own = kept.get(flag.replace("_", "-"))  # engines take both spellings
    if own:
        raise Refused(f"The engine's --{flag} is set by the launcher. Use {own}.")


def read_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Each secret from its variable or from the file that its `_FILE` twin names; empty means unset.

    Raises Refused when both are set or the file cannot be read.
    """
    found = {}
    for name in SECRETS:
        value, path = env.get(name, "").strip(), env.get(f"{name}_FILE", "")
        if value and path:
            raise Refused(f"Both {name} and {name}_FILE are set; keep one.")
        if path:
            try:
                with open(path, encoding="utf-8") as file:
                    value = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not text"
                raise Refused(
                    f"{name}_FILE names {path}, which cannot be read by user {os.geteuid()}: {reason}{_owner(path)}.\n"
                    "Give the file to that user, for example `chmod 0444` on the host, or unset the variable."
                ) from None
        value = value or env.get(OTHER_NAMES.get(name, ""), "").strip()
        if not (value.isascii() and value.isprintable()):
            raise Refused(f"{name} holds characters that cannot travel in a header: use printable ASCII.")  # never the value
        if value:
            found[name] = value
    return found


def _owner(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"; it belongs to user {found.st_uid}, with mode {found.st_mode & 0o7777:04o}"
