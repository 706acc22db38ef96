#!/usr/bin/env python3
"""Ask a server that may be busy, loading or restarting, and wait as it asks to be waited for.

    python examples/retry.py "What is 348 + 275?" --patience 300

Tried again: no connection, 429 (limit reached), 502, 503 and 504 (loading, draining, no engine behind the gateway), after `Retry-After`
where the server says it, else after 1, 2, 4 … 30 s with jitter, so that many clients do not come back together.
Not tried again: other errors, which would come back the same, and an answer that broke off after its first token: it was paid for,
the reader has seen part of it, and a second one would differ.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from typing import Any

import openai
from server import ADDRESS, KEY, unavailable

LONGEST_PAUSE = 30.0  # seconds
TEMPORARY = {429, 502, 503, 504}


def pause(error: openai.APIError, attempt: int) -> float | None:
    """Seconds until the next try after a failed one, the first being 0; None where another would fail as well."""
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in TEMPORARY:
            return None
        asked = error.response.headers.get("retry-after", "")
        if asked.isdigit():
            return float(asked)
    elif not isinstance(error, openai.APIConnectionError):
        return None
    return min(2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311 - spreads clients, protects nothing


def begin(client: openai.OpenAI, patience: float, **request: Any) -> tuple[Any, Any]:
    """Ask MODEL, or the first that the server lists, until the first chunk is there. Returns it and the stream.

    Ends the program with 75 when `patience` seconds are over.
    """
    deadline, attempt = time.monotonic() + patience, 0
    while True:
        try:
            model = os.environ.get("MODEL") or client.models.list().data[0].id
            stream = client.chat.completions.create(model=model, stream=True, **request)
            return next(iter(stream)), stream
        except openai.APIError as error:
            seconds = pause(error, attempt)
            if seconds is None:
                unavailable(error.message)
            if time.monotonic() + seconds > deadline:
                print(f"gave up after {patience:.0f} s: {error.message}", file=sys.stderr)
                raise SystemExit(75) from None
            print(f"{error.message.strip()} Trying again in {seconds:.1f} s", file=sys.stderr)
            time.sleep(seconds)
            attempt += 1


def main() -> None:
    """Ask with patience."""
    parser = argparse.ArgumentParser(description="Ask a server that may be busy, loading or restarting.")
    parser.add_argument("question")
    parser.add_argument("--patience", type=float, default=300, help="seconds until giving up (300)")
    options = parser.parse_args()

    # The package would try twice by itself, for 8 s at most each time: one loop is enough.
    client = openai.OpenAI(base_url=ADDRESS, api_key=KEY, max_retries=0)
    chunk, stream = begin(client, options.patience, messages=[{"role": "user", "content": options.question}])
    try:
        while True:
            print((chunk.choices[0].delta.content if chunk.choices else None) or "", end="", flush=True)
            chunk = next(stream)
    except StopIteration:
        print()
    except openai.APIError:
        print("\nThe answer broke off: what stands above is not all of it.", file=sys.stderr)
        raise SystemExit(70) from None


if __name__ == "__main__":
    main()
