#!/usr/bin/env python3
"""An answer as JSON of a given shape: the server lets no other tokens through, and the client checks it again.

python examples/json_output.py "What is 348 + 275?"
"""

from __future__ import annotations

import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field, ValidationError
from server import connect


class Sum(BaseModel):
    """The shape that is asked for; its JSON Schema goes to the server as response_format."""

    first: int = Field(ge=0, le=9999)
    operator: Literal["+", "-"]
    second: int = Field(ge=0, le=9999)
    result: int = Field(ge=-9999, le=19998)


def main() -> None:
    """Ask, and print the checked object."""
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 348 + 275?"
    client, model = connect()
    try:
        # The thought comes first and is free; only the answer has to fit the schema.
        completion = client.chat.completions.parse(
            model=model, messages=[{"role": "user", "content": question}], response_format=Sum, temperature=0.6
        )
    except openai.LengthFinishReasonError:
        raise SystemExit("The answer was cut off by the token limit, so it is no complete JSON: raise max_tokens.") from None
    except ValidationError as error:
        raise SystemExit(f"Not of the shape that was asked for, so this server ignores response_format:\n{error}") from None

    parsed = completion.choices[0].message.parsed
    assert parsed is not None  # there was no refusal  # noqa: S101
    print(parsed.model_dump_json())
    right = parsed.first + parsed.second if parsed.operator == "+" else parsed.first - parsed.second
    print(
        "The shape is right, and so is the sum."
        if right == parsed.result
        else "The shape is right; the sum is not: a schema checks no facts."
    )


if __name__ == "__main__":
    main()
