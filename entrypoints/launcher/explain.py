"""Why an engine died, from what it wrote: its lines against the causes of fingerprints.toml.

A pattern has to match from the beginning of a message, after the process, time and logger that stand before it. So text that an engine only quotes, such as a
visitor's prompt in the log of a request, is never taken for a cause.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Iterable
from typing import NamedTuple

FILE = os.path.join(os.path.dirname(__file__), "fingerprints.toml")
LONGEST = 2000  # so many characters of a line are read
NOTED = 20  # so many lines that look like a cause are kept
SHOWN = 5  # and so many of them shown, where the cause is not known,
WIDTH = 300  # each as far as this
RESTART = re.compile(
    r'INFO \[launch\] image |\{"time": "[^"]*", "level": "INFO", "event": "image"'
)  # the launcher's first line: what came before it belongs to an earlier life of the container

COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
# What stands before a message: any of these, in any order.
HEAD = re.compile(
    r"""(?:\s+
    | [\w.-]*\s*\|\s                                                              # Docker Compose; the launcher's own last lines
    | \[?\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-][\d:]+)\]?\s(?:std(?:out|err)\s[FP]\s)?  # times of Docker and Kubernetes
    | \w+\s+\d+\s\d\d:\d\d:\d\d\s\S+\s[^\s:]+:\s | \[\s*\d+\.\d+\]\s              # syslog, dmesg
    | \((?:raylet|[^()]*\bpid=\d+[^()]*)\)\s? | \[[Rr]ank\s?\d+\]:?\s?            # processes of vLLM, Ray and torch
    | (?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s[\d-]+\s[\d:.,]+\s\[?[\w./-]+:\d+\]\s?  # vLLM
    | (?:DEBUG|INFO|WARNING|ERROR|CRITICAL):\s+                                   # Uvicorn
    | \[[\d-]+\s[\d:]+(?:\s[A-Z]{2}\d+)*\]\s                                      # SGLang
    | \[[\d/]+-[\d:]+\]\s | \[TRT-LLM\]\s | \[RANK\s\d+\]\s | \[[A-Z]\]\s | \[TensorRT-LLM\]\[\w+\]\s  # TensorRT-LLM
    | \[[IWEF]\d*\s[^\]]*\]\s | [IWEF]\d{4}\s[\d:.]+\s\d+\s\S+\]\s                # torch
    | \[[\d-]+\s[\d:,]+\s[A-Z]\s\d+\s\d+\]\s | \w+\.(?:cc|h):\d+:\s+ | [\d-]+\s[\d:,]+\s+[A-Z]+\s\w+\.py:\d+\s--\s  # Ray
    | [\d-]+\s[\d:,.]+\s-\s\w+\s-\s                                               # logging of Python
    | [\w.-]+:\d+:\d+\s\[\d+\]\s(?:[\w/]+\.\w+:\d+\s)?                            # NCCL
    | [^|\[\]]{0,80}\|[^|]*\|\s[^\[\]]*\[[^\[\]]*(?:it/s|s/it|B/s)\]              # a progress bar, which ends no line
    )*""",
    re.VERBOSE,
)
# What stands between that and what went wrong.
RAISED = re.compile(
    r"""(?:[\w.]*(?:Error|Exception)(?:\([\w.]+\))?(?::\s|\()[('"]* | Value\serror,\s | [\w./-]+\.py:\d+:\s\w*Warning:\s
    | (?:Scheduler|EngineCore)\shit\san\sexception:\s | Exception\sin\sworker\s\w+\swhile\sprocessing\smethod\s\w+:\s | Worker\sfailed\swith\serror\s'
    )*""",
    re.VERBOSE,
)
# Loggers and messages that repeat what a visitor sent.
QUOTED = re.compile(
    r"[\[/ ](?:logger|serving\w*|protocol|chat_utils)\.py:\d+\]|\b(?:Received|Added|Aborted|Finished) request|(?:Receive|Finish): obj=|HTTP/1\.\d"
)
CALM = re.compile(r"\b(?:DEBUG|INFO|WARNING)\b|\[[IWD]\d*[\] ]")
INDENTED = re.compile(r"(?:^|[^:\s])\s{2,}$")  # the code lines of a traceback
SUSPECT = re.compile(r"(?i)error|exception|fatal|critical|\babort|segmentation fault|core dumped|\bkilled|\bdied")
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)(?:\([\w.]+\))?(?:: |$)")
# Speaks of a cause and does not say it.
ECHO = re.compile(r"(?i).*(?:stack ?trace|root cause|traceback)|Process \w+:|EngineCore (?:failed|encountered)")


class Fingerprint(NamedTuple):
    """A known cause. `also` has to be in the log as well. A `weak` one counts only where no other is found: it often follows from one, or kills nobody."""

    name: str
    cause: str
    fix: str
    source: str
    pattern: re.Pattern[str]
    also: re.Pattern[str] | None
    engines: tuple[str, ...]
    weak: bool


class Clue(NamedTuple):
    """A message of the log and the number of its line, from 1."""

    line: int
    message: str


class Explanation(NamedTuple):
    """Why an engine died, and the line that says so. `more` are other lines to look at where the cause is a weak one."""

    name: str
    cause: str
    fix: str
    evidence: Clue
    more: tuple[Clue, ...]


class Found(NamedTuple):
    """The longest match of a cause so far."""

    length: int
    match: re.Match[str]
    clue: Clue


@functools.cache
def fingerprints() -> tuple[Fingerprint, ...]:
    """All known causes, from the file."""
    with open(FILE, "rb") as file:
        rows = tomllib.load(file)
    return tuple(
        Fingerprint(
            name=name,
            cause=row["cause"],
            fix=row["fix"],
            source=row["source"],
            pattern=re.compile(row["pattern"]),
            also=re.compile(row["also"]) if "also" in row else None,
            engines=tuple(row.get("engines", ())),
            weak=row.get("weak", False),
        )
        for name, row in rows.items()
    )


class Log:
    """What an engine wrote, line by line. Of a log of any length it keeps what an explanation needs."""

    def __init__(self, engine: str = "") -> None:
        """For the causes of one engine (a name as in image.json), or of all."""
        self.known = [known for known in fingerprints() if not (engine and known.engines) or engine in known.engines]
        patterns = (part.pattern for known in self.known for part in (known.pattern, known.also) if part)
        self.any = re.compile("|".join(re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern in patterns))
        self.number = 0
        self._forget()

    def _forget(self) -> None:
        self.found: dict[str, Found] = {}  # by the name of the cause
        self.also: set[str] = set()  # causes whose second pattern was there
        self.unsaid = ""  # an exception that has said nothing yet
        self.noted: dict[str, int] = {}  # messages that look like a cause, and where they came first

    def add(self, line: str) -> None:
        """Read the next line."""
        self.number += 1
        line = COLOUR.sub("", line[:LONGEST]).rstrip()
        start = _end(HEAD, line, 0)
        begin = _end(RAISED, line, start)
        if RESTART.match(line, start):
            self._forget()
        elif self.any.match(line, begin) and not QUOTED.search(line):
            self._match(line, start, begin)
        if self.unsaid and line[start:].strip():  # an exception whose text begins on its next line
            self.noted[f"{self.unsaid} {line[start:].strip()}"] = self.number
            self.unsaid = ""
        if line.endswith(":") and EXCEPTION.fullmatch(f"{line[start:]} "):
            self.unsaid = line[start:]
        elif SUSPECT.search(line, start) and not (CALM.search(line, 0, start) or INDENTED.search(line[:start]) or QUOTED.search(line)):
            self.noted.setdefault(line[start:], self.number)
            if len(self.noted) > NOTED:
                del self.noted[next(iter(self.noted))]

    def _match(self, line: str, start: int, begin: int) -> None:
        for known in self.known:
            match = known.pattern.match(line, begin)
            if match and (known.name not in self.found or len(match[0]) > self.found[known.name].length):
                self.found[known.name] = Found(len(match[0]), match, Clue(self.number, line[start:]))
            if known.also and known.also.match(line, begin):
                self.also.add(known.name)

    def explanation(self) -> Explanation | None:
        """The cause, if it is a known one: rather one that is not weak, then the one that more of a line matches, then the first."""
        likely = [known for known in self.known if known.name in self.found and (not known.also or known.name in self.also)]
        if not likely:
            return None

        def weight(known: Fingerprint) -> tuple[bool, int, bool, int]:
            found = self.found[known.name]
            return (not known.weak, found.length, bool(known.also), -found.clue.line)

        best = max(likely, key=weight)
        found = self.found[best.name]
        values = found.match.groupdict()
        more = [clue for clue in self.clues() if clue.message != found.clue.message and not ECHO.match(clue.message)] if best.weak else []
        return Explanation(best.name, best.cause.format(**values), best.fix.format(**values), found.clue, tuple(more))

    def clues(self) -> list[Clue]:
        """What looks most like a cause where none is known: exceptions that say something, else whatever complains."""
        telling = {text: line for text, line in self.noted.items() if not ECHO.match(text)} or self.noted
        raised = {text: line for text, line in telling.items() if EXCEPTION.match(text)} or telling
        return [Clue(line, text) for text, line in list(raised.items())[:SHOWN]]


def explain(lines: Iterable[str], engine: str = "") -> Explanation | None:
    """The known cause that these lines of an engine's log point to, or None."""
    log = Log(engine)
    for line in lines:
        log.add(line)
    return log.explanation()


def report(log: Log, *, numbered: bool = False) -> str:
    """An explanation for people; an honest one where the cause is not known; empty where nothing looks like a cause."""

    def shown(clue: Clue) -> str:
        text = "".join(letter if letter.isprintable() else " " for letter in clue.message)
        text = text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
        return f"line {clue.line}: {text}" if numbered else text

    known = log.explanation()
    if known:
        lines = [f"Cause: {known.cause}", f"Fix: {known.fix}", f"Seen in: {shown(known.evidence)}"]
        clues, title = known.more, "It may follow from another failure, and these lines may say more:"
    else:
        lines, clues = [], tuple(log.clues())
        title = "The cause is not one that is known here; these are the lines that look like it:"
    return "\n".join([*lines, *([title] if clues else []), *(f"  {shown(clue)}" for clue in clues)])


def _end(pattern: re.Pattern[str], line: str, start: int) -> int:
    match = pattern.match(line, start)
    return match.end() if match else start
