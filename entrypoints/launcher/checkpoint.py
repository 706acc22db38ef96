"""A model's folder: whether all that an engine needs is there, whole and readable. The weights themselves are not read."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from launcher import safetensors
from launcher.errors import Refused

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model", "tekken.json", "spiece.model")
OTHER_WEIGHTS = (".bin", ".gguf", ".npz", ".pt", ".pth")
MOST_NAMED = 3


class Contents(NamedTuple):
    """Files with weights and their bytes; `verified` says that these are safetensors whose sizes are right."""

    files: int
    bytes: int
    verified: bool


def inspect(folder: str, *, weights: bool = True, tokenizer: bool = True) -> Contents:
    """Raises Refused that names what is missing, truncated or unreadable.

    `weights` is off where dummy ones are served, `tokenizer` where it comes from elsewhere.
    """
    _config(folder)
    if tokenizer and not any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZERS):
        raise Refused(
            f"The model folder {folder} has no tokenizer: none of {', '.join(TOKENIZERS[:3])}.\n"
            "Copy it from the model's page, or name another with --tokenizer."
        )
    if not weights:
        return Contents(0, 0, verified=True)
    try:
        return _weights(folder)
    except OSError as error:
        raise Refused(safetensors.unreadable(folder, error)) from None


def _config(folder: str) -> None:
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        raise Refused(
            f"The model folder {folder} has no config.json: {listing(folder)}\n"
            "Point LAUNCH_MODEL at the folder that holds config.json and the safetensors files, and mount it into the container."
        ) from None
    except OSError as error:
        raise Refused(safetensors.unreadable(path, error)) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is no JSON: {error}.\n{safetensors.AGAIN}") from None
    if not isinstance(found, dict):
        raise Refused(f"{path} does not describe a model.\n{safetensors.AGAIN}")


def _weights(folder: str) -> Contents:
    paths = safetensors.shards(folder)
    wrong, total = [], 0
    for path in paths:
        try:
            safetensors.checked_header(path)
            total += os.stat(path).st_size
        except Refused as error:
            wrong.append(str(error))
    if wrong:
        named = [text.partition("\n")[0] for text in wrong[:MOST_NAMED]]
        more = f" And {len(wrong) - MOST_NAMED} more of {len(paths)} files." if len(wrong) > MOST_NAMED else ""
        raise Refused(f"{' '.join(named)}{more}\n{wrong[0].partition(chr(10))[2]}")
    if paths:
        return Contents(len(paths), total, verified=True)
    others = [name for name in os.listdir(folder) if name.endswith(OTHER_WEIGHTS)]
    if not others:
        raise Refused(
            f"The model folder {folder} has no weights: {listing(folder)}\n"
            "Download the model's safetensors files: `hf download MODEL --local-dir FOLDER`."
        )
    return Contents(len(others), sum(os.stat(os.path.join(folder, name)).st_size for name in others), verified=False)


def listing(folder: str) -> str:
    """What a folder holds, in a sentence."""
    try:
        names, most = sorted(os.listdir(folder)), 6
    except OSError as error:
        return f"it cannot be listed by user {os.geteuid()} ({error.strerror}; `chmod -R a+rX` on the host helps)."
    return f"it holds {', '.join(names[:most])}{' …' if len(names) > most else ''}." if names else "it is empty."
