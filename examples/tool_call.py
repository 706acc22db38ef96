#!/usr/bin/env python3
"""Let the model call a function of yours, and answer with what it gave.

    python examples/tool_call.py "What is 348 + 275?"            the model decides whether to call
    python examples/tool_call.py "What is 348 + 275?" --force    it must call

Both need a model that was trained for tools and a server that was told how it writes a call. R1-0528 and V3-0324 were, and
their stacks are told; the first R1, its distills and the demo model were not, and the demo's server says that it takes none.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import openai
from server import connect

NAME = "calculate"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "strict": True,  # the server lets no other arguments through
        "description": "Add or subtract two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "first": {"type": "integer", "minimum": 0, "maximum": 9999},
                "operator": {"type": "string", "enum": ["+", "-"]},
                "second": {"type": "integer", "minimum": 0, "maximum": 9999},
            },
            "required": ["first", "operator", "second"],
            "additionalProperties": False,
        },
    },
}


def calculate(first: int, operator: str, second: int) -> int:
    """The function behind the tool."""
    return first + second if operator == "+" else first - second


def main() -> None:
    """Ask with the tool, run what is called, and ask again with the result."""
    parser = argparse.ArgumentParser(description="Let the model call a function.")
    parser.add_argument("question")
    parser.add_argument("--force", action="store_true", help="the model must call")
    options = parser.parse_args()

    client, model = connect()
    choice: Any = {"type": "function", "function": {"name": NAME}} if options.force else "auto"
    messages: list[Any] = [{"role": "user", "content": options.question}]
    try:
        message = client.chat.completions.create(model=model, messages=messages, tools=[TOOL], tool_choice=choice).choices[0].message
    except openai.BadRequestError as error:
        raise SystemExit(f"This server takes no tool calls for this model: {error.message}") from None
    if not message.tool_calls:
        print(f"The model called nothing and answered: {(message.content or '').strip()}")
        return

    messages.append(message)
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = calculate(**arguments)
        print(f"call: {call.function.name}({call.function.arguments}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    answer = client.chat.completions.create(model=model, messages=messages).choices[0].message.content
    print(f"answer: {(answer or '').strip()}")


if __name__ == "__main__":
    main()
