"""`engineroom bench`: scenarios, the generator's results as recorded, and what is compared and refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from rich.table import Table

from engineroom import machine
from engineroom.api import Api
from engineroom.bench import conditions, generator, plot, report, results, scenarios, start
from engineroom.bench.generator import Generator, Target
from engineroom.bench.results import Result, Run, Step
from engineroom.bench.run import measure
from engineroom.bench.scenarios import Scenario
from engineroom.bench.targets import Subject
from engineroom.catalog import Catalog
from engineroom.cli import cli
from engineroom.errors import BadRequest, CannotRun, EngineRoomError, ServiceUnavailable, TryAgain, UnknownName

RECORDED = Path(__file__).parents[1] / "data/bench"
ANSWERED = generator.step(json.loads((RECORDED / "answered.json").read_text()))
TARGET = Target(Api("http://127.0.0.1:8000/v1"), "r1", "/models/r1")
SATURATION = scenarios.load()["saturation"]


@pytest.fixture(scope="module")
def fonts() -> None:
    """Matplotlib's list of fonts, which it makes with a program where it has none yet: before the tests, which start nothing."""
    importlib.import_module("matplotlib.font_manager")


class Recorded(Generator):
    """In place of the generator: so many tokens a second at each concurrency, or what it raises."""

    speeds: dict[int, float | BaseException]

    def run(self, target: Target, scenario: Scenario, log: Path, concurrency: int) -> Step:  # noqa: ARG002 - as the real one
        speed = self.speeds[concurrency]
        if isinstance(speed, BaseException):
            raise speed
        tokens = scenario.rounds * concurrency * scenario.output_tokens
        asked = {"concurrency": concurrency, "requests": 4, "completed": scenario.rounds * concurrency, "output_tokens": tokens}
        return ANSWERED.model_copy(update={**asked, "output_tokens_per_second": speed})


def recorded(speeds: dict[int, float | BaseException]) -> Subject:
    made = Recorded()
    made.speeds = speeds
    return Subject({"context": 4096}, TARGET, made)


def run_of(speed: float = 100, **conditions: Any) -> Run:
    """One scenario measured once, on conditions that differ from the usual by these."""
    step = ANSWERED.model_copy(update={"output_tokens_per_second": speed})
    usual = {"engine": "vllm", "release": "0.25.1", "model": "r1-7b", "gpus": ["NVIDIA H200"], "generator": "vllm bench serve 0.32.0"}
    return Run(conditions={**usual, **conditions}, results={"single": Result(scenario=scenarios.load()["single"], steps=[step])})


def text(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_guides_scenarios_are_there() -> None:
    """1 x 1000 in, 500 out; 32 at once; a context of 100,000; saturation."""
    found = {name: (row.concurrency, row.input_tokens, row.output_tokens) for name, row in scenarios.load().items()}

    assert found == {"single": (1, 1000, 500), "concurrent": (32, 1000, 500), "long": (1, 100_000, 500), "saturation": (8, 1000, 500)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[a", "no TOML"),
        ("a = 1", "a: Input should be"),
        ("[a]\ninput_tokens = 0", "a.input_tokens: Input should be greater"),
        ("[a]\nrepeats = 3", "a.repeats: Extra inputs"),
        (b"\xff", "no TOML"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str | bytes, says: str) -> None:
    """What is wrong is named, with its place."""
    file = tmp_path / "mine.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(BadRequest, match=says):
        scenarios.load(file)


def test_a_scenario_that_is_none() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'single'"):
        scenarios.load(names=("singel",))


def test_a_short_context_shortens_or_skips() -> None:
    """Input and output shrink alike; what would then measure something else is left out, and both are said."""
    rows = scenarios.load()

    assert scenarios.fitted(rows["single"], 2048) == (rows["single"], "")
    assert scenarios.fitted(rows["long"], None) == (rows["long"], "")
    short, said = scenarios.fitted(rows["single"], 1024)
    assert short
    assert (short.input_tokens, short.output_tokens) == (672, 336)
    assert "shortened to 672 in, 336 out" in said
    assert scenarios.fitted(rows["long"], 2048) == (None, "skipped: it wants 100,500 tokens, and the server's context has 2,048")


def test_a_recorded_result() -> None:
    """What vLLM 0.32.0's generator wrote of the demo: 4 requests of 64 tokens in and 8 out, 2 at once."""
    assert (ANSWERED.concurrency, ANSWERED.requests, ANSWERED.completed, ANSWERED.failed) == (2, 4, 4, 0)
    assert (ANSWERED.input_tokens, ANSWERED.output_tokens, ANSWERED.errors) == (256, 32, {})
    assert ANSWERED.output_tokens_per_second == pytest.approx(32 / ANSWERED.seconds)
    assert 0 < ANSWERED.tpot["p50"] <= ANSWERED.tpot["p90"] <= ANSWERED.tpot["p99"]
    assert ANSWERED.ttft["p50"] + 7 * ANSWERED.tpot["p50"] == pytest.approx(ANSWERED.latency["p50"], rel=0.5)


def test_a_recorded_refusal() -> None:
    """Requests that the server refused are counted, and told by their reason."""
    refused = generator.step(json.loads((RECORDED / "refused.json").read_text()))

    assert (refused.completed, refused.failed, refused.errors) == (0, 3, {"Not Found": 3})


def test_commands() -> None:
    """The same questions from a program and from a container, which joins the engine's network and reads its volumes."""
    asked = generator.arguments(TARGET, scenarios.load()["concurrent"], 32, "x.step")
    options = dict(zip(asked[2::2], asked[3::2], strict=False))
    contained = Generator(image="engineroom:cpu", beside="abc", volumes_from="abc").command(asked, Path("/made"), "name")

    assert Generator(program="/opt/vllm").command(asked, Path("/made"), "name") == ["/opt/vllm", *asked, "--result-dir", "/made"]
    assert (options["--num-prompts"], options["--max-concurrency"], options["--endpoint"]) == ("128", "32", "/v1/completions")
    assert "--ignore-eos" in asked
    assert {"container:abc", "abc:ro", "--volume=/made:/out"} < set(contained)
    assert not any("SSL_CERT_FILE" in word for word in contained)


@pytest.mark.parametrize(
    ("speeds", "levels", "says"),
    [
        ({8: 100, 16: 180, 32: 185}, [8, 16, 32], "saturated: from 16 at once to 32, tokens a second changed by +3%"),
        ({8: 100, 16: 60}, [8, 16], "from 8 at once to 16, tokens a second changed by -40%"),
        ({8: 100, 16: 200}, [8, 16], "still growing at 16 at once"),
    ],
)
def test_saturation(tmp_path: Path, speeds: dict[int, float | BaseException], levels: list[int], says: str) -> None:
    """The concurrency doubles until tokens a second grow by less than the scenario wants, or to its end."""
    run = Run(conditions={})
    scenario = SATURATION.model_copy(update={"most": max(levels)}) if "still" in says else SATURATION
    measure(run, {"saturation": scenario}, recorded(speeds), tmp_path / "run.json", lambda _: None)

    assert [step.concurrency for step in run.results["saturation"].steps] == levels
    assert says in run.results["saturation"].note


@pytest.mark.parametrize("end", [KeyboardInterrupt(), TryAgain("not measured within 60 minutes"), EngineRoomError("it ended with 1")])
def test_what_was_measured_is_kept(tmp_path: Path, end: BaseException) -> None:
    """An interrupt, a deadline or a failure later on: the file has what came before, and why it ended."""
    file, run = tmp_path / "run.json", Run(conditions={})
    with pytest.raises(type(end)):
        measure(run, {"long": scenarios.load()["long"], "saturation": SATURATION}, recorded({8: 100, 16: end}), file, lambda _: None)
    kept = results.read(file)

    assert [step.concurrency for step in kept.results["saturation"].steps] == [8]
    assert kept.ended == (str(end) or "interrupted")
    assert list(report.notes(kept)) == [f"long: {kept.results['long'].note}", f"ended early: {kept.ended}"]
    assert "100.0" in text(report.table(kept))


def test_answers_that_were_too_short(tmp_path: Path) -> None:
    """A server that ends answers before their length is said to."""
    run, subject = Run(conditions={}), recorded({1: 50})
    ask: Callable[..., Step] = subject.generator.run
    subject.generator.run = lambda *args: ask(*args).model_copy(update={"output_tokens": 4990})  # type: ignore[method-assign]
    measure(run, {"single": scenarios.load()["single"]}, subject, tmp_path / "run.json", lambda _: None)

    assert run.results["single"].note == "10 tokens fewer than asked for came at 1 at once"


def test_ratios() -> None:
    """Runs of the same are compared; what else changed is said."""
    old, new = run_of(100, command="vllm serve"), run_of(350, command="vllm serve --quantization fp8")

    assert "3.50" in text(report.compare(old, new, anyway=False))
    assert report.differences(old, new) == []
    assert list(report.changed(old, new)) == ["command: vllm serve\n  then vllm serve --quantization fp8"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("engine", "sglang", "engine: vllm, then sglang"),
        ("release", "0.9.2", "release: 0.25.1, then 0.9.2"),
        ("model", "r1-32b", "model: r1-7b, then r1-32b"),
        ("gpus", ["NVIDIA H200"] * 2, "GPUs: NVIDIA H200, then NVIDIA H200, NVIDIA H200"),
        ("generator", "vllm bench serve 0.25.1", "generator: "),
        ("root", "/models/r1-32b", "model's root: not known, then /models/r1-32b"),
    ],
)
def test_what_cannot_be_compared(field: str, value: object, says: str) -> None:
    """Another engine, model or machine is refused, with what differs and what to type."""
    old, new = run_of(), run_of(**{field: value})

    with pytest.raises(CannotRun, match=says) as refused:
        report.compare(old, new, anyway=False)
    assert refused.value.exit_code == 78
    assert "--anyway" in str(refused.value)
    assert "1.00" in text(report.compare(old, new, anyway=True))


def test_machines_that_are_not_known_are_not_the_same() -> None:
    """Of servers elsewhere nobody told the GPUs: another address may be another machine. With them, or for stacks, it is only said."""
    there, here = ({"url": f"https://{name}/v1"} for name in ("v100.example", "h200.example"))

    with pytest.raises(CannotRun, match="machine, with GPUs that are not known"):
        report.compare(run_of(gpus=[], **there), run_of(gpus=[], **here), anyway=False)
    assert "1.00" in text(report.compare(run_of(**there), run_of(**here), anyway=False))
    assert list(report.changed(run_of(**there), run_of(**here))) == ["url: https://v100.example/v1\n  then https://h200.example/v1"]


@pytest.mark.usefixtures("fonts")
def test_requests_that_failed_are_seen_beside_the_ratio(tmp_path: Path) -> None:
    """Who answers eight of 128 is not faster for it."""
    old, new = run_of(), run_of()
    new.results["single"].steps[0] = ANSWERED.model_copy(update={"completed": 2, "errors": {"503": 8}})
    said: list[str] = []
    for folder, run in (("old", old), ("new", new)):
        (tmp_path / folder).mkdir()
        run.write(tmp_path / folder / "r1.json")

    start.compare(tmp_path / "old/r1.json", tmp_path / "new/r1.json", tmp_path / "both.png", said.append, anyway=False)

    assert f"{ANSWERED.completed} of {ANSWERED.requests}, then 2 of {ANSWERED.requests}" in text(report.compare(old, new, anyway=False))
    assert f"{tmp_path / 'new/r1.json'}: single, {ANSWERED.concurrency} at once: 8 x 503" in said
    assert (tmp_path / "both.png").exists()


def test_another_scenario_cannot_be_compared() -> None:
    """The same name with another length is another scenario; with nothing in common there is nothing to compare."""
    old, new, none = run_of(), run_of(), Run(conditions=run_of().conditions)
    new.results["single"].scenario = new.results["single"].scenario.model_copy(update={"input_tokens": 500})

    with pytest.raises(CannotRun, match="scenario single: input_tokens 1000, then 500"):
        report.compare(old, new, anyway=False)
    with pytest.raises(CannotRun, match="no measured scenario in common"):
        report.compare(old, none, anyway=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"conditions": {}, "results": {"single": {}}}'])
def test_a_result_that_is_none(tmp_path: Path, content: bytes) -> None:
    """Any other file is refused without a traceback, with 2."""
    file = tmp_path / "x.json"
    file.write_bytes(content)

    with pytest.raises(BadRequest, match="no result of"):
        results.read(file)


@pytest.mark.usefixtures("fonts")
def test_a_plot_for_light_and_dark_pages(tmp_path: Path) -> None:
    """No background; every colour in it stands out from white and from a dark page."""
    plot.draw({"old": run_of(100), "new": run_of(350)}, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        points = picture.convert("RGBA").getcolors(1 << 24) or []
    seen = {colour[:3] for _, colour in points if colour[3] == 255}

    assert points
    assert max(points)[1][3] == 0
    assert seen
    assert all(contrast(colour, page) >= 3 for colour in seen for page in ((255, 255, 255), (13, 17, 23)))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast of two colours; 3 is the least for graphics: https://www.w3.org/TR/WCAG21/#non-text-contrast."""

    def light(colour: tuple[int, ...]) -> float:
        parts = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="nothing to draw"):
        plot.draw({"a": Run(conditions={})}, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("bench demo-cpu --url http://x/v1", "not both"),
        ("bench --scenario single", "Name a stack"),
        ("bench --url ftp://x", "no http"),
        ("bench demo-cpu --tokenizer /x", "go with --url"),
        ("bench demo-cpu --note x", "no KEY=VALUE"),
        ("bench demo-cpu --scenarios /nowhere", "does not exist"),
        ("bench compare /nowhere /nowhere", "does not exist"),
        ("bench demo-cpu --to run.png", "run.json"),
    ],
)
def test_command_lines_that_are_refused(line: str, says: str) -> None:
    """Exit 2, with what is wrong."""
    found = CliRunner().invoke(cli, line.split())

    assert found.exit_code == 2
    assert says in found.output


def test_a_container_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said why, where its engine and GPUs would stand."""
    monkeypatch.setattr(machine, "inside", lambda *_, **__: machine.Answer(False, "", "container 1 is not running"))
    container: Any = SimpleNamespace(name="demo-cpu-engine-1", attrs={"Config": {"Env": []}})

    with pytest.raises(
        ServiceUnavailable, match="demo-cpu-engine-1 does not say what it runs: container 1 is not running\nType: make status"
    ):
        conditions.of_stack(Catalog(Path(__file__).parents[2]), "demo-cpu", container)
