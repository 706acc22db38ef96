"""Every setting in one table. Flag > environment > default; each secret has a `_FILE` twin; unknown names are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()


SETTINGS = (
    Setting("model", str, None, "Folder or hub id of the model."),
    Setting("model_name", str, None, "Name that the API shows."),
    Setting("role", str, "auto", "What this container does.", ("auto", "single", "head", "worker")),
    Setting("nodes", int, 1, "Nodes in the stack."),
    Setting("gpus", int, None, "GPUs a node (default: what is visible)."),
    Setting("head", str, None, "Address of the head node."),
    Setting("tp", int, None, "Tensor parallel size (default: the GPUs of a node)."),
    Setting("pp", int, None, "Pipeline parallel size (default: the nodes)."),
    Setting("port", int, 8000, "Port of the API."),
    Setting("max_model_len", int, None, "Longest context, in tokens."),
    Setting("max_seqs", int, None, "Most requests at once."),
    Setting("join_seconds", float, 600.0, "Deadline for the nodes to join."),
    Setting("start_seconds", float, 3600.0, "Deadline for the engine to become ready."),
    Setting("drain_seconds", float, 120.0, "Deadline for running requests after SIGTERM."),
    Setting("probe_seconds", float, 30.0, "Time between one-token probes of a ready engine; 0 switches them off."),
    Setting("executor", str, "auto", "How several GPUs work together.", ("auto", "ray", "native", "mp")),
    Setting("image", str, IMAGE_FACTS, "File that says what this image is."),
)
SECRETS = {"LAUNCH_API_KEY": "key that clients must send", "HF_TOKEN": "token of the model hub"}


class Settings(NamedTuple):
    """All settings after flags, environment and defaults; `args` are engine flags from LAUNCH_ARG_*, `extra` from the command line."""

    model: str | None
    model_name: str | None
    role: str
    nodes: int
    gpus: int | None
    head: str | None
    tp: int | None
    pp: int | None
    port: int
    max_model_len: int | None
    max_seqs: int | None
    join_seconds: float
    start_seconds: float
    drain_seconds: float
    probe_seconds: float
    executor: str
    image: str
    args: Mapping[str, str]
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
    """LAUNCH_ARG_MAX_NUM_SEQS=64 as {"max-num-seqs": "64"}."""
    return {
        name.removeprefix(ARG_PREFIX).lower().replace("_", "-"): value
        for name, value in env.items()
        if name.startswith(ARG_PREFIX) and name != ARG_PREFIX
    }


def read_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Each secret from its variable or from the file that its `_FILE` twin names; empty means unset.

    Raises Refused when both are set or the file cannot be read.
    """
    found = {}
    for name in SECRETS:
        value, path = env.get(name, ""), env.get(f"{name}_FILE", "")
        if value and path:
            raise Refused(f"Both {name} and {name}_FILE are set; keep one.")
        if path:
            try:
                with open(path, encoding="utf-8") as file:
                    value = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not text"
                raise Refused(
                    f"{name}_FILE names {path}, which cannot be read: {reason}.\n"
                    "Give the file to the container's user, for example `chmod 0444` on the host, or unset the variable."
                ) from None
        if value:
            found[name] = value
    return found
