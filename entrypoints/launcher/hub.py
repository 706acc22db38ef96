"""The model hub: what of a model is in the cache on this machine, and whether the hub can be reached for the rest.

Layout of the cache: models--ORG--NAME with refs/REVISION, which holds a commit, snapshots/COMMIT, whose files link into blobs.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from launcher import checkpoint
from launcher.errors import LaunchError, Refused, Unavailable

ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
ENDPOINT = "https://huggingface.co"
REACH_SECONDS = 5.0
TRUE = ("1", "on", "true", "yes")  # as huggingface_hub reads its own variables


class Cached(NamedTuple):
    """What the cache has of a model: folder and commit of the snapshot, empty where there is none, and what it lacks, empty when complete."""

    folder: str
    commit: str
    lacks: str


def cache(env: Mapping[str, str]) -> str:
    """The cache's folder, by the rules of huggingface_hub."""
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    return env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")


def repository(model: str, env: Mapping[str, str]) -> str:
    """The folder of one model in the cache."""
    return os.path.join(cache(env), "models--" + model.replace("/", "--"))


def offline(env: Mapping[str, str]) -> bool:
    """Whether the engine is told not to ask the hub."""
    return any(env.get(name, "").lower() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def cached(model: str, revision: str, env: Mapping[str, str]) -> Cached:
    """What is there of a model at a revision: a branch, a tag or a commit."""
    folder = repository(model, env)
    try:
        with open(os.path.join(folder, "refs", revision), encoding="ascii") as file:
            commit = file.read().strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = os.path.join(folder, "snapshots", commit)
    if not COMMIT.fullmatch(commit) or not os.path.isdir(snapshot):
        return Cached("", "", f"{model} is not in {cache(env)}")
    try:
        checkpoint.inspect(snapshot)
    except Refused as error:
        return Cached(snapshot, commit, str(error).partition("\n")[0])
    return Cached(snapshot, commit, "")


def config(folder: str) -> dict[str, Any]:
    """A model's config.json, from its folder or a snapshot in the cache; empty where it cannot be read."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def bytes_here(model: str, env: Mapping[str, str]) -> int:
    """Bytes of a model that have been fetched so far, unfinished files included: a download goes on where it ended."""
    blobs = os.path.join(repository(model, env), "blobs")
    try:
        with os.scandir(blobs) as found:
            return sum(entry.stat().st_size for entry in found if entry.is_file())
    except OSError:
        return 0


def known(model: str) -> dict[str, Any]:
    """What the catalog says of a model of the hub: `bytes` on disk, and `config`, the fields of its config.json that give its size; or nothing."""
    with open(os.path.join(os.path.dirname(__file__), "models.json"), encoding="utf-8") as file:
        return dict(json.load(file).get(model, {}))


def bytes_whole(model: str, snapshot: str) -> int:
    """Bytes of a model: from the table of known models, else from the index in the cache; 0 where neither says."""
    if found := known(model):
        return int(found["bytes"])
    try:
        with open(os.path.join(snapshot, "model.safetensors.index.json"), encoding="utf-8") as file:
            return int(json.load(file)["metadata"]["total_size"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def ask(model: str, revision: str, env: Mapping[str, str]) -> str:
    """Ask the hub for the model's config.json, through the environment's proxy, and say that it answers. Five seconds in all.

    Raises Unavailable when there is no answer, and Refused when the hub does not give this model.
    """
    import threading

    found: list[str | LaunchError] = []
    thread = threading.Thread(
        target=lambda: found.append(_answer(model, revision, env)), daemon=True
    )  # names are looked up without a deadline
    thread.start()
    thread.join(REACH_SECONDS + 0.5)
    answer = found[0] if found else Unavailable(f"no answer in {REACH_SECONDS:.0f} s")
    if isinstance(answer, Unavailable):
        raise Unavailable(f"the hub {endpoint(env)} cannot be reached: {answer}")
    if isinstance(answer, LaunchError):
        raise answer
    return answer


def endpoint(env: Mapping[str, str]) -> str:
    """The hub's address."""
    return (env.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _answer(model: str, revision: str, env: Mapping[str, str]) -> str | LaunchError:
    import http.client
    import ssl
    import urllib.error
    import urllib.parse
    import urllib.request

    try:
        place = f"{endpoint(env)}/{model}/resolve/{urllib.parse.quote(revision, safe='')}/config.json"
        request = urllib.request.Request(place, method="HEAD")  # noqa: S310 - the user's own hub
        if env.get("HF_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {env['HF_TOKEN']}")
        trusted = ssl.create_default_context(cafile=env.get("REQUESTS_CA_BUNDLE") or None)
        with urllib.request.urlopen(request, timeout=REACH_SECONDS, context=trusted):  # noqa: S310
            return f"{endpoint(env)} answers"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Refused(
                f"the hub does not give {model} at {revision}: {error.code} {error.headers.get('X-Error-Code') or error.reason}\n"
                f"Look for the name at {endpoint(env)}/{model}; accept the model's terms there, and give the token of that account: HF_TOKEN_FILE."
            )
        if error.code == http.HTTPStatus.NOT_FOUND:
            return Refused(
                f"the hub has no {model} at revision {revision}, or no config.json in it\nLook for the name at {endpoint(env)}/{model}."
            )
        return f"{endpoint(env)} answers, with {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        return Unavailable(str(getattr(error, "reason", None) or error or type(error).__name__))
