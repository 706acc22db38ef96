"""Tool calls: the flags that switch them on, and the chat templates that tell a model of the tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engineroom import stacks
from engineroom.catalog import Catalog

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "entrypoints/launcher/chat"
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"first": 1, "second": 2}}}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]
CALLED = [*ASKED, {"role": "assistant", "content": "<think>\nHm.\n</think>I add.", "tool_calls": [CALL, CALL]}]
ANSWERED = [*CALLED, {"role": "tool", "content": "3", "tool_call_id": "1"}, {"role": "tool", "content": "3", "tool_call_id": "1"}]


def rendered(template: str, messages: list[dict[str, Any]], **more: Any) -> str:
    """A template as the engines render it, which is as transformers does: sandboxed, and blocks leave no blanks."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    source = (TEMPLATES / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(messages=messages, bos_token="<bos>", eos_token="<eos>", **more)


@pytest.mark.parametrize("template", ["deepseek.jinja", "deepseek-qwen3.jinja"])
def test_without_tools_a_prompt_is_the_checkpoints_own(template: str) -> None:
    """System text, turns, the thought left out of what was said, and the model's turn."""
    said = [*ASKED, {"role": "assistant", "content": "<think>\nHm.\n</think>3"}, {"role": "user", "content": "Sure?"}]

    assert rendered(template, said, add_generation_prompt=True) == (
        "<bos>Be brief.<｜User｜>1 + 2?<｜Assistant｜>3<eos><｜User｜>Sure?<｜Assistant｜>"
    )
    assert rendered(template, ASKED[1:]) == "<bos><｜User｜>1 + 2?"


@pytest.mark.parametrize(
    ("template", "call", "results"),
    [
        (
            "deepseek.jinja",
            "<｜tool▁calls▁begin｜>{0}\n{0}<｜tool▁calls▁end｜>".format(
                '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"first": 1, "second": 2}\n```<｜tool▁call▁end｜>'
            ),
            "<｜tool▁outputs▁begin｜>{0}\n{0}<｜tool▁outputs▁end｜>".format("<｜tool▁output▁begin｜>3<｜tool▁output▁end｜>"),
        ),
        (
            "deepseek-qwen3.jinja",
            '\n<tool_call>\n{"name": "add", "arguments": {"first": 1, "second": 2}}\n</tool_call>' * 2,
            "<｜User｜>{0}\n{0}<｜Assistant｜>".format("<tool_response>\n3\n</tool_response>"),
        ),
    ],
)
def test_tools_calls_and_results(template: str, call: str, results: str) -> None:
    """The tools follow the system text; calls and results stand as the model writes and reads them, with arguments as text or taken apart."""
    told = rendered(template, ASKED, tools=[TOOL], add_generation_prompt=True)
    system, _, turns = told.partition("<｜User｜>")
    assert system.startswith("<bos>Be brief.\n\n")
    assert json.dumps(TOOL["function"]) in system
    assert turns == "1 + 2?<｜Assistant｜>"

    whole = rendered(template, ANSWERED, add_generation_prompt=True)
    assert whole == f"<bos>Be brief.<｜User｜>1 + 2?<｜Assistant｜>I add.{call}<eos>{results}"

    as_text = {**CALL, "function": {"name": "add", "arguments": json.dumps(CALL["function"]["arguments"])}}
    said = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [as_text, as_text]}]
    assert rendered(template, said) == f"<bos>Be brief.<｜User｜>1 + 2?<｜Assistant｜>{call.lstrip()}<eos>"


def test_tools_without_a_system_text() -> None:
    """The tools begin the prompt then, and an answer after results follows them without a new turn."""
    answer = {"role": "assistant", "content": "3"}
    whole = rendered("deepseek.jinja", [*ANSWERED[1:], answer], tools=[TOOL])

    assert whole.startswith("<bos>## Functions\n")
    assert whole.endswith("<｜tool▁outputs▁end｜>3<eos>")


def test_every_stack_of_a_model_for_tools_has_them_on(catalog: Catalog) -> None:
    """In the words of its engine; a model without parsers gets no flag of theirs."""
    words = {
        "vllm": {"LAUNCH_ARG_ENABLE_AUTO_TOOL_CHOICE", "LAUNCH_ARG_TOOL_CALL_PARSER"},
        "sglang": {"LAUNCH_ARG_TOOL_CALL_PARSER"},
        "trtllm": {"LAUNCH_ARG_TOOL_PARSER"},
    }
    for name, stack in catalog.stacks.items():
        tools, engine = catalog.models[stack.model].tools, catalog.release_of(stack.image).engine
        found = stacks.compose(catalog, name)["engine_environment"]
        assert {flag for flag in found if "TOOL" in flag} == (words[engine] if tools.parsers else set()), name
        assert not tools.parsers or engine in tools.parsers, name
        assert ("LAUNCH_ARG_CHAT_TEMPLATE" in found) is bool(tools.template), name
    assert {name for name, model in catalog.models.items() if model.tools.template} == {"r1", "r1-0528-8b", "r1-0528-fp4", "v3"}


def test_parsers_and_templates_are_there(catalog: Catalog) -> None:
    """Every parser is one that an engine with a list of them has, and every template file is used."""
    choices = {
        engine: next(
            flag["choices"] for flag in json.loads((ROOT / f"images/flags/{file}.json").read_text())["flags"] if name in flag["names"]
        )
        for engine, file, name in [("sglang", "sglang-0.5.23", "--tool-call-parser"), ("trtllm", "tensorrt-llm-1.2.1", "--tool_parser")]
    }
    models = catalog.models.values()

    assert [
        model.hub for model in models for engine in choices if model.tools.parsers.get(engine, choices[engine][0]) not in choices[engine]
    ] == []
    assert {model.tools.template for model in models} - {""} == {path.name for path in TEMPLATES.iterdir()}
