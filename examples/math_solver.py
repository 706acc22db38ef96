#!/usr/bin/env python3
r"""Solve a problem as R1's authors recommend, and check the answer in \boxed{}.

python examples/math_solver.py "What is 348 + 275?" 623      ends with 1 when the answer is another, or none
python examples/math_solver.py "What is 348 + 275?" --tries 5      the answer that most of five tries agree on
"""

from __future__ import annotations

import argparse
from collections import Counter

from server import connect

# From the model card of DeepSeek-R1: this sentence, no system prompt, temperature 0.5 to 0.7.
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{} in a text, whose braces may nest: \boxed{\frac{1}{2}}. None without one that is closed."""
    begin = text.rfind(r"\boxed{") + len(r"\boxed{")
    depth = 1
    for end in range(begin, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0 and r"\boxed{" in text:
            return text[begin:end].strip()
    return None


def main() -> None:
    """Ask, take the answer out of its box, compare."""
    parser = argparse.ArgumentParser(description=r"Solve a problem and check the answer in \boxed{}.")
    parser.add_argument("problem")
    parser.add_argument("expected", nargs="?", help="the right answer, where it is known")
    parser.add_argument("--tries", type=int, default=1, help="how often to ask; the most frequent answer counts")
    options = parser.parse_args()

    client, model = connect()
    question = [{"role": "user", "content": f"{options.problem}\n{INSTRUCTION}"}]
    found: Counter[str] = Counter()
    for _ in range(options.tries):
        choice = client.chat.completions.create(model=model, messages=question, temperature=0.6, top_p=0.95).choices[0]
        answer = boxed(choice.message.content or "")
        print(f"answer: {answer or 'none in a box'} (ended by {choice.finish_reason})")
        if answer:
            found[answer] += 1

    best = found.most_common(1)[0][0] if found else None
    if best is None or (options.expected and best != options.expected):
        raise SystemExit(f"wrong: {best}, expected {options.expected}" if best else r"no answer in \boxed{}")
    print(f"result: {best}{' (as expected)' if options.expected else ''}")


if __name__ == "__main__":
    main()
