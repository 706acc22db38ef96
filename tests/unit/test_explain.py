"""Explanations: each known cause in a real log, none in the logs of healthy servers, root causes before what follows from them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engineroom.catalog import Catalog
from engineroom.cli import cli
from launcher import explain, processes, supervise
from launcher.settings import ARG_PREFIX, SECRETS, SETTINGS

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "tests/data/logs"
SICK = sorted(LOGS.glob("*.log"))
HEALTHY = sorted(LOGS.glob("healthy/*.log"))
KNOWN = {known.name: known for known in explain.fingerprints()}


def lines(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


def cause(text: list[str], engine: str = "") -> str:
    """The name of the cause that is found."""
    found = explain.explain(text, engine)
    return found.name if found else ""


def evidence(name: str) -> str:
    """The message in its log that shows a cause."""
    found = explain.explain(lines(name))
    assert found
    return found.evidence.message


def read(text: str) -> explain.Log:
    log = explain.Log()
    for line in text.splitlines():
        log.add(line)
    return log


@pytest.mark.parametrize("file", SICK, ids=lambda file: file.stem)
def test_each_real_log_has_its_cause(file: Path) -> None:
    """The cause that a log is named for is the one that is found, for its engine alone as well as among all."""
    name = file.stem.partition("--")[0]
    text = file.read_text().splitlines()

    assert cause(text) == name
    assert cause(text, (KNOWN[name].engines or ("vllm",))[0]) == name


@pytest.mark.parametrize("file", HEALTHY, ids=lambda file: file.stem)
def test_nothing_is_found_in_healthy_logs(file: Path) -> None:
    """A healthy server has no cause of death, nor anything that looks like one, with all its ordinary warnings."""
    log = read(file.read_text())

    assert log.explanation() is None
    assert explain.report(log) == ""


def test_logs_causes_and_sources_agree() -> None:
    """Every cause has a log, every log a cause, and the source of each stands in the README."""
    sources = (LOGS / "README.md").read_text()
    files = [*(file.stem for file in SICK), *(f"healthy/{file.stem}" for file in HEALTHY)]

    assert sorted({file.stem.partition("--")[0] for file in SICK}) == sorted(KNOWN)
    assert [name for name in files if f"`{name}`" not in sources] == []
    assert (len(KNOWN) >= 35, len(HEALTHY) >= 12) == (True, True)


@pytest.mark.parametrize(
    "around",
    [
        "r1-7b-v100-1  | {}",
        "2026-11-23T02:51:21.175123456Z {}",
        "2026-11-23T02:51:21.175Z stderr F {}",
        "\x1b[36m(Worker pid=7)\x1b[0m {}",
        "  | {}",
    ],
    ids=["compose", "docker", "kubernetes", "colour", "launcher"],
)
def test_what_stands_before_a_message_does_not_matter(around: str) -> None:
    """Docker, Compose, Kubernetes, Ray and the launcher's own last lines put things before each line."""
    found = {file.stem: cause([around.format(line) for line in file.read_text().splitlines()]) for file in SICK}

    assert {stem: name for stem, name in found.items() if name != stem.partition("--")[0]} == {}


@pytest.mark.parametrize(
    "quote",
    [
        "INFO 06-05 02:10:51 [logger.py:42] Received request chatcmpl-4def: prompt: 'why {}', params: SamplingParams(n=1)",
        "INFO 06-05 02:10:51 [logger.py:42] Received request {}: prompt: '{}', params: SamplingParams(n=1)",
        "ERROR 06-05 02:10:51 [serving_chat.py:200] {}",
        "[2025-11-30 11:18:05] Receive: obj=GenerateReqInto(text='{}')",
        'INFO:     10.0.0.1:36366 - "GET /{} HTTP/1.1" 404 Not Found',
        "(APIServer pid=1) INFO 01-01 00:00:00 [loggers.py:1] answer: {}",
    ],
    ids=["prompt", "request id", "front end", "sglang", "path", "any other"],
)
def test_a_visitor_cannot_put_a_cause_into_the_log(quote: str) -> None:
    """An engine that only quotes an error has not met it."""
    found = {name: cause([quote.replace("{}", evidence(name))]) for name in KNOWN}

    assert {name for name, wrong in found.items() if wrong} == set()


def test_a_root_cause_wins_over_what_follows_from_it() -> None:
    """Whichever was written first."""
    weak = [evidence(known.name) for known in KNOWN.values() if known.weak]
    roots = [known.name for known in KNOWN.values() if not known.weak]

    assert [name for name in roots if cause([*weak, *lines(name)]) != name or cause([*lines(name), *weak]) != name] == []


def test_the_more_specific_cause_wins() -> None:
    """Memory that ran out is explained by what was done meanwhile; the first line that says it is the evidence."""
    oom = lines("cuda-oom")
    frame = '(EngineCore_DP0 pid=556790) ERROR 12-24 08:50:35 [core.py:866]   File "/x/vllm/v1/worker/gpu_model_runner.py", line 7, in {}'
    found = explain.explain([*oom, *oom, frame.format("profile_run")])

    assert found
    assert (found.name, found.evidence.line) == ("cuda-oom-warmup", 3)
    assert cause([*oom, frame.format("load_model")]) == "cuda-oom-loading"
    assert cause([*oom, "ERROR 12-24 08:50:35 [core.py:866] EngineCore encountered a fatal error."]) == "cuda-oom-serving"
    assert cause(oom) == "cuda-oom"


def test_of_equal_causes_the_first() -> None:
    """Two ranks of which one is out of memory and the other finds no file: the longer match; twice the same: the first line."""
    text = [
        "(Worker_TP0 pid=7) ValueError: No available memory for the cache blocks",
        "(Worker_TP1 pid=8) ValueError: No available memory for the cache blocks",
    ]
    found = explain.explain(text)

    assert found
    assert found.evidence.line == 1


def test_a_cause_of_another_engine_is_not_looked_for() -> None:
    """Several engines word things alike and mean others."""
    assert cause(lines("sglang-no-memory-for-kv-cache"), "vllm") == ""


def test_values_of_the_log_are_in_the_fix() -> None:
    """The number to type is the one that the engine has calculated."""
    found = explain.explain(lines("kv-cache-too-small"))

    assert found
    assert "LAUNCH_MAX_MODEL_LEN=5632 or less" in found.fix


def test_a_weak_cause_comes_with_what_else_was_said() -> None:
    """A worker that died is hardly the cause: the exception beside it may be."""
    text = explain.report(read("ERROR 11-08 11:01:28 [w.py:1] ValueError: boom\n" + "\n".join(lines("worker-died"))))

    assert text.startswith("Cause: A worker process")
    assert text.endswith("these lines may say more:\n  ValueError: boom")


def test_an_unknown_cause_is_not_guessed() -> None:
    """What looks like the cause is shown as no more than that: the exceptions that say something, not those that speak of others."""
    log = read(
        "INFO 01-01 00:00:00 [api_server.py:1] error handling is on\n"
        "(EngineCore_DP0 pid=7) ERROR 01-01 00:00:01 [core.py:7] Traceback (most recent call last):\n"
        '(EngineCore_DP0 pid=7) ERROR 01-01 00:00:01 [core.py:7]   File "/x/core.py", line 7, in run\n'
        '(EngineCore_DP0 pid=7) ERROR 01-01 00:00:01 [core.py:7]     raise KeyError("layers.7")\n'
        "(EngineCore_DP0 pid=7) ERROR 01-01 00:00:01 [core.py:7] KeyError: 'layers.7'\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )

    assert explain.report(log, numbered=True) == (
        "The cause is not one that is known here; these are the lines that look like it:\n  line 5: KeyError: 'layers.7'"
    )


def test_only_the_last_life_of_a_container_counts() -> None:
    """`docker logs` goes back to before a restart."""
    text = [*lines("port-in-use"), "r1-7b-v100-1  | INFO [launch] image     v100-half: vllm 0.9.2", *lines("worker-died")]

    assert cause(text) == "worker-died"


def test_every_setting_in_a_fix_exists(catalog: Catalog) -> None:
    """What a fix says to type is something that the launcher or an engine reads, and the images it names are in the catalog."""
    settings = {setting.variable for setting in SETTINGS} | {f"{secret}{end}" for secret in SECRETS for end in ("", "_FILE")}
    snapshots = [json.loads(file.read_text()) for file in ROOT.glob("images/flags/*.json")]
    flags = {name.lstrip("-").replace("_", "-") for snapshot in snapshots for flag in snapshot["flags"] for name in flag["names"]}
    text = " ".join(known.cause + known.fix for known in KNOWN.values())
    typed = set(re.findall(r"\bLAUNCH_[A-Z_]+", text))

    assert {name for name in typed if not name.startswith(ARG_PREFIX)} - settings == set()
    assert {name.removeprefix(ARG_PREFIX).lower().replace("_", "-") for name in typed if name.startswith(ARG_PREFIX)} - flags == set()
    assert set(re.findall(r"`([a-z]+\d+-\w+)`", text)) - set(catalog.images) == set()


def command(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments], input=stdin)


def test_the_command_explains_a_file_and_standard_input() -> None:
    """Exit status 0, the cause, the fix and the line."""
    file = LOGS / "kv-cache-too-small.log"
    found = command(str(file))

    assert (found.exit_code, found.output) == (0, command(stdin=file.read_text()).output)
    assert "Seen in: line 5: ValueError: To serve" in found.output


def test_the_command_for_programs() -> None:
    """The same as JSON; without a known cause there are clues."""
    found = json.loads(command("--json", str(LOGS / "ray-version-mismatch.log")).output)
    unknown = json.loads(command("--json", stdin="ValueError: boom\n").output)

    assert (found["name"], found["evidence"]["line"]) == ("ray-version-mismatch", 1)
    assert unknown == {
        "name": None,
        "cause": None,
        "fix": None,
        "evidence": None,
        "clues": [{"line": 1, "message": "ValueError: boom"}],
        "lines": 1,
    }


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (
            "ValueError: boom\n",
            "The cause is not one that is known here; these are the lines that look like it:\n  line 1: ValueError: boom\n",
        ),
        ("all is well\n", "Nothing in these 1 lines looks like a failure.\n"),
        ("", "Nothing in these 0 lines looks like a failure.\n"),
        ("x" * 200_000 + "RuntimeError: No CUDA GPUs are available\n", "Nothing in these 1 lines looks like a failure.\n"),
        (
            "ValueError: \x1b]0;owned\x07boom\n",
            "The cause is not one that is known here; these are the lines that look like it:\n  line 1: ValueError:  ]0;owned boom\n",
        ),
    ],
    ids=["unknown", "healthy", "empty", "a long line", "control characters"],
)
def test_the_command_without_a_cause(stdin: str, said: str) -> None:
    """Exit status 1, and no more is said than is known."""
    found = command(stdin=stdin)

    assert (found.exit_code, found.output) == (1, said)


@pytest.mark.parametrize("file", ["/no/such/log", "/"])
def test_the_command_with_a_bad_file(file: str) -> None:
    """A file that cannot be read is named."""
    found = command(file)

    assert (found.exit_code, file in found.output, isinstance(found.exception, SystemExit)) == (2, True, True)


def test_the_command_takes_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A log may hold anything."""
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00\n\xc3RuntimeError\nRuntimeError: No CUDA GPUs are available\n")

    assert command(str(tmp_path / "log")).exit_code == 0


def test_a_long_line_is_kept_from_its_beginning() -> None:
    """The launcher cuts a logged prompt behind, not in front: else what a visitor wrote could stand where the engine's own words begin."""
    child = supervise.Child([], {}, quiet=True, death=re.compile(rb"RuntimeError"))
    out, into = os.pipe()
    with os.fdopen(into, "wb") as pipe:
        pipe.write(b"INFO Received request: '" + b"RuntimeError " * 4000 + b"'\nnext\n")
    with os.fdopen(out, "rb") as stream:
        child._pump(stream)

    assert [line[:30] for line in child.kept] == [b"INFO Received request: 'Runtim", b"next"]
    assert (len(child.kept[0]), child.last_words) == (supervise.KEPT_BYTES, None)


@pytest.mark.parametrize("size", [10, 3990, 5000])
def test_the_termination_log_begins_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Kubernetes shows 4096 bytes: the cause is not cut away by the last lines, and the last of them are the newest."""
    file = tmp_path / "termination-log"
    file.write_text("older and longer " * 1000)
    monkeypatch.setattr(supervise, "TERMINATION_LOG", str(file))
    head, output = "c" * size, "\n".join(f"  | line {number}" for number in range(1000))
    supervise._last_words(head, output)
    text = file.read_text()

    assert text.startswith(head[: supervise.TERMINATION_SIZE])
    assert len(text) <= supervise.TERMINATION_SIZE + 1
    assert text.endswith("line 999") or size > 3980


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("files", "count"),
    [
        (["low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n"], 1),
        (["", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"], 7),
        (["no count"], None),
        ([], None),
    ],
    ids=["cgroup v2", "cgroup v1", "unknown", "none"],
)
def test_fault_34_the_kernels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], count: int | None) -> None:
    """The count of processes killed for want of memory, of either kind of cgroup."""
    for number, text in enumerate(files):
        (tmp_path / str(number)).write_text(text)
    monkeypatch.setattr(processes, "OOM_COUNTS", (str(tmp_path / "0"), str(tmp_path / "1")))

    assert processes.oom_kills() == count


def test_an_exception_that_speaks_on_its_next_line() -> None:
    """Its text is shown with it, and not its name alone."""
    log = explain.Log()
    for line in (
        "(APIServer pid=7) RuntimeError: ",
        "(APIServer pid=7) ",
        "(APIServer pid=7)         An attempt has been made to start",
        "x",
    ):
        log.add(line)

    assert [clue.message for clue in log.clues()] == ["RuntimeError: An attempt has been made to start"]
