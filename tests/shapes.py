"""Models that are shapes alone: a configuration and a tokenizer as large as its vocabulary, for engines that make weights up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

SPECIAL = ("<|endoftext|>", "<think>", "</think>")
# How byte-level BPE writes the 256 bytes: those that print as themselves, the others as the characters from 256 on; a space is the 33rd of these.
PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [*map(chr, PRINTING), *(chr(256 + number) for number in range(256 - len(PRINTING)))]
SPACE = chr(256 + 32)


def write(folder: Path, architecture: str, config: Mapping[str, Any]) -> Path:
    """A folder for `--load-format dummy`; `config` is what config.json says beside the architecture.

    Each token but the bytes is a space and some letters, so that any sequence of tokens is text that gives the same tokens again:
    load generators send text and count on that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "torch_dtype": "bfloat16", **config}))
    room = config["vocab_size"] - len(BYTES) - len(SPECIAL)
    stems, merges = [SPACE], []
    for stem in stems:
        added = [(stem, letter) for letter in ascii_lowercase][: room - len(merges)]
        merges += added
        stems += map("".join, added)
    words = [*BYTES, *stems[1:], *SPECIAL]
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [
                    {
                        "id": len(words) - len(SPECIAL) + number,
                        "content": word,
                        "special": True,
                        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                    }
                    for number, word in enumerate(SPECIAL)
                ],
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                "model": {"type": "BPE", "vocab": {word: number for number, word in enumerate(words)}, "merges": merges},
            }
        )
    )
    limit = config["max_position_embeddings"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0], "model_max_length": limit})
    )
    return folder
