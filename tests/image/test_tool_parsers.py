"""Calls as our chat templates write them, read by the pinned vLLM's own parsers. No model is loaded; its imports alone take half a minute."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.slow]
CHAT = Path(__file__).parents[2] / "entrypoints/launcher/chat"
READ = """
import json
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

tokenizer = AutoTokenizer.from_pretrained("/opt/models/demo-r1")
tokenizer.add_tokens([f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")])  # as R1-0528's has them
call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"first": 348, "second": 275}}}
messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "I add.", "tool_calls": [call, call]}]
found = {}
for parser, template in (("deepseek_v3", "deepseek.jinja"), ("hermes", "deepseek-qwen3.jinja")):
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=open(f"/chat/{template}").read())
    said = text.partition("<｜Assistant｜>")[2].removesuffix(tokenizer.eos_token)
    read = ToolParserManager.get_tool_parser(parser)(tokenizer).extract_tool_calls(said, ChatCompletionRequest(messages=[], model="any"))
    found[parser] = [read.content.strip(), *((each.function.name, json.loads(each.function.arguments)) for each in read.tool_calls)]
print(json.dumps(found))
"""


def test_calls_are_read_as_the_templates_write_them(image: str) -> None:
    """Two calls after a word to the visitor, in both forms."""
    command = [
        "docker",
        "run",
        "--rm",
        "--network=none",
        f"--volume={CHAT}:/chat:ro",
        "--entrypoint=/opt/engine/bin/python",
        image,
        "-c",
        READ,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr

    call = ["add", {"first": 348, "second": 275}]
    assert json.loads(result.stdout.splitlines()[-1]) == {"deepseek_v3": ["I add.", call, call], "hermes": ["I add.", call, call]}
