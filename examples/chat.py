#!/usr/bin/env python3
"""Chat with a reasoning model, its thought shown apart from its answer.

python examples/chat.py "What is 348 + 275?"      one question
python examples/chat.py                           a conversation; an empty line ends it
python examples/chat.py --as tutor                the same with a task for the model: tutor or coder
"""

from __future__ import annotations

import argparse
from typing import Any

from server import connect

# R1's authors advise against system prompts, so the task stands before the first question.
TASKS = {
    "tutor": "You are a patient tutor. Explain one step at a time, and end with a question that checks my understanding.\n\n",
    "coder": "You are a careful programmer. Answer with one complete code block, then say in two sentences how to test it.\n\n",
}
DIM, PLAIN = "\033[2m", "\033[0m"


def reply(client: Any, model: str, messages: list[dict[str, str]]) -> str:
    """Stream one answer to the terminal, the thought dimmed before it. Returns the answer alone."""
    answer, thinking = "", False
    stream = client.chat.completions.create(model=model, messages=messages, temperature=0.6, top_p=0.95, stream=True)
    for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        # Servers differ in the field's name, and the package knows neither: vLLM and TensorRT-LLM, then SGLang and DeepSeek's own.
        thought = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None)
        if thought:
            print(thought if thinking else f"{DIM}Thought: {thought.lstrip()}", end="", flush=True)
            thinking = True
        if delta.content:
            text = delta.content if answer else f"{PLAIN}\nAnswer: {delta.content.lstrip()}"
            print(text, end="", flush=True)
            answer += delta.content
    print(PLAIN)
    return answer


def main() -> None:
    """Ask once, or until an empty line."""
    parser = argparse.ArgumentParser(description="Chat with a reasoning model, its thought shown apart from its answer.")
    parser.add_argument("question", nargs="?", help="without it: a conversation, which an empty line ends")
    parser.add_argument("--as", dest="task", choices=TASKS, help="give the model a task")
    options = parser.parse_args()

    client, model = connect()
    task, messages = TASKS.get(options.task, ""), list[dict[str, str]]()
    while question := options.question or input("> "):
        messages.append({"role": "user", "content": task + question})
        answer = reply(client, model, messages)
        # The thought is not sent back: the model was trained without earlier ones, and they would fill its context.
        messages.append({"role": "assistant", "content": answer})
        task = ""
        if options.question:
            return


if __name__ == "__main__":
    main()
