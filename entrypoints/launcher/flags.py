"""The engine's flags: checked against the snapshot of its release, and translated where another release spells them otherwise."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.errors import Refused, did_you_mean
from launcher.facts import ImageFacts
from launcher.settings import ARG_PREFIX, Settings

TITLES = {"sglang": "SGLang", "trtllm": "TensorRT-LLM", "vllm": "vLLM"}
CHANGES = os.path.join(os.path.dirname(__file__), "flag_changes.toml")
ENGINES_OWN = ("VLLM_", "SGLANG_", "TRTLLM_")  # how variables begin that only an engine reads
SWITCH = {"true": True, "false": False}
# vLLM 0.33 pairs --enable-x with --disable-x, older releases --x with --no-x.
OPPOSITES = (("--no-", "--"), ("--disable-", "--enable-"), ("--enable-", "--disable-"))
# https://docs.vllm.ai/en/stable/cli/serve/: small letters are powers of ten, capitals of two, which take no fraction.
MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")


class Flag(NamedTuple):
    """A flag of a release, as src/engineroom/inside/snapshot.py describes it."""

    names: Sequence[str]
    kind: str
    choices: Sequence[object] | None
    default: object
    nargs: str | int | None
    off: str
    repeats: bool
    help: str = ""

    @property
    def name(self) -> str:
        """Its first long name."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


class Snapshot(NamedTuple):
    """All flags of a release by each of their names, spelt with dashes."""

    engine: str
    version: str
    flags: Mapping[str, Flag]

    @property
    def title(self) -> str:
        """Engine and release, for people."""
        return f"{TITLES.get(self.engine, self.engine)} {self.version}"

    def find(self, name: str) -> Flag | None:
        """The flag of this exact name, or of the part before the dot: vLLM takes --flag.key for a key of a flag's JSON."""
        base, dot, _ = name.partition(".")
        flag = self.flags.get(dashed(base))
        return flag if not dot or (flag and self.engine == "vllm" and "json" in flag.kind) else None


class Change(NamedTuple):
    """What became of a flag that other releases have; flag_changes.toml says what each field means."""

    flag: str
    why: str
    source: str
    since: str = ""
    until: str = ""
    switch: bool = False
    becomes: Sequence[str] = ()
    values: Mapping[str, Sequence[str]] = {}
    variable: str = ""
    drop: bool = False
    instead: str = ""

    @property
    def span(self) -> str:
        """Which releases have the flag, as far as that is said."""
        return f" (to {self.until})" if self.until else f" (from {self.since})" if self.since else ""

    def is_for(self, version: str) -> bool:
        """Whether a release is after the last that had the flag, or before the first."""
        return (not self.until or _order(version) > _order(self.until)) and (not self.since or _order(version) < _order(self.since))


class Given(NamedTuple):
    """A flag as the user wrote it (`said`) with its values. Without a name: a word that belongs to no flag."""

    said: str
    name: str
    values: tuple[str, ...]


class Translation(NamedTuple):
    """Settings whose `args` are words of this release's command line; variables to set; what was translated, and what is doubtful."""

    snapshot: Snapshot | None
    settings: Settings
    variables: Mapping[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def load(path: str) -> Snapshot | None:
    """Read the snapshot of an engine's flags; None where there is none. Raises Refused for a file that is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return snapshot(found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(f"{path} is no snapshot of an engine's flags: {error!r}.") from None


def snapshot(found: Mapping[str, Any]) -> Snapshot:
    """A snapshot from its JSON. Raises KeyError, TypeError or AttributeError for JSON of another kind."""
    every = [Flag(**row) for row in found["flags"]]
    flags = {dashed(name): flag for flag in every for name in (*flag.names, flag.off) if name}
    if "--optimization-level" in flags:  # vLLM's parser replaces -O before argparse sees it
        flags.setdefault("-O", flags["--optimization-level"])
    return Snapshot(found["engine"], found["version"], flags)


def dashed(name: str) -> str:
    """A flag's name spelt with dashes: vLLM takes both, TensorRT-LLM has underscores, the user may write either."""
    return name.replace("_", "-")


def whole_number(text: str) -> int:
    """A whole number as vLLM reads it: 8192, 8K (8192), 8k (8000), 25.6k. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)([kmgtKMGT])\s*", text)
    if match is None:
        return int(text)
    number, unit = match.groups()
    return int(float(number) * MULTIPLES[unit]) if unit.islower() else int(number) * MULTIPLES[unit]


def translate(settings: Settings, facts: ImageFacts, env: Mapping[str, str]) -> Translation:
    """The user's flags in the words of the image's release, and the word without a flag as the model.

    Raises Refused with every flag that the release does not have, and every value that it does not take.
    """
    known = load(os.path.join(os.path.dirname(settings.image), "flags.json"))
    warnings = tuple(stale_variables(facts.engine, facts.version, env))
    if known is None:
        count = 1 if settings.extra and not _is_flag(settings.extra[0]) else 0  # without a snapshot, only the first word is surely no value
        settings = _with_model(settings, settings.extra[:count])._replace(extra=settings.extra[count:])
        unchecked = f"there is no flags.json beside {settings.image}: the engine's flags are not checked"
        return Translation(None, settings, {}, (), (*warnings, unchecked))
    translator = _Translator(known)
    words: list[str] = []
    args: dict[str, tuple[str, ...]] = {}
    for given in itertools.chain(_from_variables(settings.args), read(known, settings.extra)):
        if not given.name:
            words.append(given.said)
            continue
        for flag, key, line in translator.words(given):
            args[key] = (*args.get(key, ()), *line) if flag.repeats or key.endswith("+") else line
    if translator.problems:
        raise Refused("\n".join(translator.problems))
    settings = _with_model(settings, words)._replace(args=args, extra=())
    return Translation(known, settings, translator.variables, tuple(translator.notes), warnings)


def check(known: Snapshot | None, command: Sequence[str]) -> None:
    """Raises Refused with all that a release does not take of an engine's final command line."""
    if known and (found := list(problems(known, command))):
        raise Refused("\n".join(found))


def problems(known: Snapshot, command: Sequence[str]) -> Iterator[str]:
    """What a release does not take of a command line, from its first `--name` on."""
    for given in read(known, list(itertools.dropwhile(lambda word: not word.startswith("--"), command))):
        flag = known.find(given.name)
        if flag is None and given.name:
            yield f"{known.title} has no {given.name}."
        elif flag and flag.kind == "bool" and given.values:
            yield f"{given.name} takes no value."
        elif flag and flag.kind != "bool":
            yield from wrong_values(known, flag, given)


def read(known: Snapshot, words: Iterable[str]) -> Iterator[Given]:
    """Words of a command line as flags with their values; words that belong to no flag have no name."""
    left = list(words)
    while left:
        word = left.pop(0)
        if not _is_flag(word):
            yield Given(word, "", ())
            continue
        name, equals, value = word.partition("=")
        if equals:
            yield Given(word, name, (value,))
        elif known.engine == "vllm" and re.match(r"-O[^.]", word):  # -O3
            yield Given(word, "-O", (word[2:],))
        else:
            most = _most_values(known, name)
            count = next((index for index, word in enumerate(left) if index == most or _is_flag(word)), len(left))
            if not most and left and left[0].lower() in SWITCH:  # releases to vLLM 0.8.4 took --flag False
                count = 1
            values, left = left[:count], left[count:]
            yield Given(" ".join((word, *values)), name, tuple(values))


def wrong_values(known: Snapshot, flag: Flag, given: Given) -> Iterator[str]:
    """What is wrong with the values of a flag that takes some."""
    about = f" It is: {flag.help}" if flag.help else ""
    if not given.values and flag.nargs not in ("?", "*"):
        yield f"{given.name} wants a value.{about}"
    for value in given.values:
        if "." not in given.name and (wanted := _wanted(known, flag, value)):
            yield f"{given.name} {value}: not {wanted}.{about}"


def stale_variables(engine: str, version: str, env: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable in the environment that this release of the engine no longer reads, or does not read yet."""
    if not any(name.startswith(ENGINES_OWN) and _mentions(name) for name in env):
        return
    for row in _table().get("variable", ()):
        name, until, since = row["name"], row.get("until"), row.get("since")
        if row["engine"] != engine or not env.get(name):
            continue
        if (until and _order(version) > _order(until)) or (since and _order(version) < _order(since)):
            when = " ".join(part for part in (since and f"from {since}", until and f"to {until}") if part)
            yield f"{name} does nothing in {TITLES[engine]} {version}: releases {when} read it. {row['instead']}"


@functools.cache
def changes(engine: str) -> tuple[Change, ...]:
    """What is known of an engine's flags in other releases."""
    return tuple(Change(**row) for row in _table().get(engine, ()))


def find_change(known: Snapshot, name: str, value: str = "") -> Change | None:
    """What became of a flag that this release does not have, or of a value that it spells otherwise."""
    for change in changes(known.engine) if _mentions(name) else ():
        if dashed(change.flag) == dashed(name) and change.is_for(known.version) and (not known.find(name) or value in change.values):
            return change
    return None


def _mentions(name: str) -> bool:
    """Whether the file has a row for a flag or variable, by its text alone: to parse it takes 10 ms, which most starts do without."""
    return any(f'= "{spelling}"' in _text() for spelling in (name, dashed(name), "--" + name[2:].replace("-", "_")))


@functools.cache
def _text() -> str:
    with open(CHANGES, encoding="utf-8") as file:
        return file.read()


@functools.cache
def _table() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(_text())


class _Translator:
    """Turns flags as given into words of this release, and collects what there is to say about them."""

    def __init__(self, known: Snapshot) -> None:
        self.known = known
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.variables: dict[str, str] = {}

    def words(self, given: Given) -> Iterator[tuple[Flag, str, tuple[str, ...]]]:
        """Each flag that it becomes: its row, its name without dashes, and its words on the command line."""
        flag, value = self.known.find(given.name), " ".join(given.values)
        if change := find_change(self.known, given.name, value):
            yield from self._changed(given, change, value)
        elif flag is None:
            yield from self._unknown(given)
        elif flag.kind == "bool":
            yield from self._switched(given, flag)
        else:
            self.problems += [self._by_whom(given) + line for line in wrong_values(self.known, flag, given)]
            _, *key = given.name.partition(".")
            name = "".join((flag.name, *key))
            attached = len(given.values) == 1 and given.values[0].startswith("-")
            yield flag, dashed(flag.name[2:]) + "".join(key), (f"{name}={given.values[0]}",) if attached else (name, *given.values)

    def _switched(self, given: Given, flag: Flag) -> Iterator[tuple[Flag, str, tuple[str, ...]]]:
        on = dashed(given.name) != flag.off
        if given.values:
            if given.values[0].lower() not in SWITCH:
                self.problems.append(f"{self._by_whom(given)}{given.name} is on or off: {given.values[0]} is neither true nor false.")
                return
            on = on == SWITCH[given.values[0].lower()]
        word = flag.name if on else flag.off
        if not on and not flag.off and flag.default:
            self.problems.append(f"{self._by_whom(given)}{self.known.title} cannot switch {flag.name} off.")
        elif given.values and not given.said.startswith(_variable(given.name)):  # LAUNCH_ARG_X=false is how a variable says it
            has = f"{self.known.title} has {word}" if word else f"left out, since {flag.name} is off unless given"
            self.notes.append(f"{given.said}: {has}")
        yield flag, dashed(flag.name[2:]), (word,) if word else ()

    def _changed(self, given: Given, change: Change, value: str) -> Iterator[tuple[Flag, str, tuple[str, ...]]]:
        off = change.switch and value.lower() == "false"
        if off or change.drop:
            self.notes.append(f"{given.said}: left out, since {self.known.title} has no {change.flag}{change.span}. {change.why}")
        elif change.variable and value in change.values:
            (self.variables[change.variable],) = change.values[value]
            self.notes.append(f"{given.said}: {self.known.title} has the variable {change.variable}={self.variables[change.variable]}")
        elif change.becomes or value in change.values:
            line = [word for part in change.values.get(value, change.becomes) for word in (given.values if part == "{}" else (part,))]
            has = " ".join(line)
            self.notes.append(f"{given.said}: " + (f"{self.known.title} has {has}" if has else f"left out. {change.why}"))
            for replaced in read(self.known, line):
                yield from self.words(replaced._replace(said=given.said))
        else:
            what = f"{given.name} {value}" if change.values else given.name
            reason = f"{change.why} {change.instead}".rstrip()
            self.problems.append(f"{self._by_whom(given)}{self.known.title} has no {what}{change.span}. {reason}")

    def _unknown(self, given: Given) -> Iterator[tuple[Flag, str, tuple[str, ...]]]:
        if twin := _twin(self.known, given.name):
            value = "true" if "".join(given.values).lower() == "false" else "false"
            yield from self.words(given._replace(name=twin, values=(value,)))
            return
        near = did_you_mean(given.name, list(dict.fromkeys(name for flag in self.known.flags.values() for name in flag.names)))
        self.problems.append(f"{self._by_whom(given)}{self.known.title} has no {given.name}.{near}")

    def _by_whom(self, given: Given) -> str:
        """The variable that gave the flag; a flag on the command line is named by itself."""
        return f"{given.said.partition('=')[0]}: " if given.said.startswith(ARG_PREFIX) else ""


def _from_variables(args: Mapping[str, Any]) -> Iterator[Given]:
    for flag, value in args.items():
        yield Given(f"{_variable(flag)}{value}", f"--{flag}", (str(value),))


def _variable(flag: str) -> str:
    return f"{ARG_PREFIX}{flag.lstrip('-').upper().replace('-', '_')}="


def _with_model(settings: Settings, words: Sequence[str]) -> Settings:
    """The word without a flag is the model, as after `vllm serve`. Raises Refused for two models."""
    named = list(dict.fromkeys((*words, *([settings.model] if settings.model and words else []))))
    if len(named) > 1:
        raise Refused(
            f"Only one model can be served, and {' and '.join(named)} are given. A flag's value stands after its flag; LAUNCH_MODEL is a model too."
        )
    return settings._replace(model=named[0]) if named else settings


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not NEGATIVE.fullmatch(word)


def _most_values(known: Snapshot, name: str) -> int | None:
    """How many words after a flag are its values at most; None for any number. One for an unknown flag."""
    flag = known.find(name)
    if flag:
        return 0 if flag.kind == "bool" else None if flag.nargs in ("+", "*") else 1
    change = find_change(known, name)
    if change and list(change.becomes[1:]) == ["{}"]:
        return _most_values(known, change.becomes[0])
    return 0 if (change and change.switch) or _twin(known, name) else 1


def _twin(known: Snapshot, name: str) -> str:
    """The switch that does the opposite of one that this release does not have, or nothing."""
    for prefix, other in OPPOSITES:
        twin = other + dashed(name).removeprefix(prefix)
        flag, change = known.find(twin), find_change(known, twin)
        if dashed(name).startswith(prefix) and ((flag and flag.kind == "bool") or (change and change.switch)):
            return twin
    return ""


def _wanted(known: Snapshot, flag: Flag, value: str) -> str:
    """What a value should have been, or nothing if it will do."""
    vllm = known.engine == "vllm"
    if flag.choices is not None:
        return "" if value in map(str, flag.choices) else f"one of {', '.join(map(str, flag.choices))}"
    if vllm and flag.default is None and value in ("", "None"):
        return ""
    if flag.kind == "int-or-auto" and value.lower() == "auto":
        return ""
    kinds: dict[str, tuple[Any, str]] = {
        "int": (whole_number if vllm else int, "a whole number"),
        "int-or-auto": (whole_number, "a whole number or auto"),
        "float": (float, "a number"),
        "json": (json.loads, "JSON"),
    }
    convert, wanted = kinds.get(flag.kind, (str, ""))
    try:
        convert(value)
    except (ValueError, RecursionError):
        return wanted
    except OverflowError:
        return "a finite number"
    return ""


def _order(version: str) -> tuple[int, ...]:
    """A release as numbers that compare: 0.8.5.post1 is (0, 8, 5, 1), 0.32.0+cpu is (0, 32, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
