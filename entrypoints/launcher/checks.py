"""Checks before weights load. Each says what was found, what is wanted and what to type."""

from __future__ import annotations

import os
import re
import socket

from launcher.errors import Refused
from launcher.plan import LaunchPlan

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def run(plan: LaunchPlan) -> list[str]:
    """Run every check and return a line for each that passed. Raises Refused at the first that does not."""
    return [check(plan) for check in (model_is_there, port_is_free) if plan.serves or check is not port_is_free]


def model_is_there(plan: LaunchPlan) -> str:
    """A folder must hold config.json; anything else must look like a hub id."""
    model = plan.model
    if os.path.isdir(model):
        if not os.path.isfile(os.path.join(model, "config.json")):
            raise Refused(
                f"The model folder {model} has no config.json: {_listing(model)}\n"
                "Point LAUNCH_MODEL at the folder that holds config.json and the safetensors files, and mount it into the container."
            )
        return f"model folder {model} has a config.json"
    if model.startswith(("/", "./", "../")) or not HUB_ID.fullmatch(model):
        raise Refused(
            f"The model {model} is neither a folder in this container nor a hub id such as deepseek-ai/DeepSeek-R1-Distill-Qwen-7B.\n"
            "Mount the folder (docker run -v /path/on/host:/models/NAME:ro) and set LAUNCH_MODEL=/models/NAME."
        )
    return f"model {model} comes from the hub or its cache"


def port_is_free(plan: LaunchPlan) -> str:
    """The port must be free where the engine will listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host.encode(), plan.port))  # bytes: a text would load the idna codec
        except OSError as error:
            raise Refused(
                f"Port {plan.port} cannot be used: {error.strerror}.\nStop what listens there (`ss -ltnp`), or set LAUNCH_PORT to another."
            ) from None
    return f"port {plan.port} is free"


def _listing(folder: str) -> str:
    try:
        names, most = sorted(os.listdir(folder)), 6
    except OSError as error:
        return f"it cannot be listed by user {os.getuid()} ({error.strerror}; `chmod -R a+rX` on the host helps)."
    return f"it holds {', '.join(names[:most])}{' …' if len(names) > most else ''}." if names else "it is empty."
