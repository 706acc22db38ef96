"""Where the examples ask: the server, and the model that it serves. Every setting has a default that fits a stack on this machine."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import openai

ADDRESS = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")  # a stack without gateway asks for none, and the package wants one


def connect(**options: Any) -> tuple[openai.OpenAI, str]:
    """A client, and the model to ask for: MODEL, or the first that the server lists.

    `options` go to the client. Ends the program with 69 and what to check where no server answers.
    """
    client = openai.OpenAI(base_url=ADDRESS, api_key=KEY, **options)
    try:
        return client, os.environ.get("MODEL") or client.models.list().data[0].id
    except openai.APIConnectionError:
        unavailable("nothing answers there. Is a stack up (docker compose ps)? OPENAI_BASE_URL says where to ask.")
    except openai.AuthenticationError:
        unavailable("the key is not accepted. OPENAI_API_KEY says which to send.")
    except openai.APIStatusError as error:
        unavailable(f"{error.status_code}: {error.message.strip()[:300]}")
    except IndexError:
        unavailable("it lists no model. MODEL says which to ask for.")


def unavailable(why: str) -> NoReturn:
    """End the program: the server cannot be used."""
    print(f"{ADDRESS}: {why}", file=sys.stderr)
    raise SystemExit(69)
