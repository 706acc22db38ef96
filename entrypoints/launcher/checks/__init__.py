"""Checks before weights load. All of them run, so that one screen shows all that is wrong, each with what to type."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.checks import gpus, machine, memory, weights
from launcher.checks.common import Case, Check, refused_by
from launcher.errors import LaunchError, Refused

# Name on the screen, and the check; in the order in which an engine would stumble.
CHECKS = (
    ("gpus", gpus.are_there),
    ("capability", gpus.have_code),
    ("driver", gpus.driver),
    ("precision", gpus.precision),
    ("model", weights.are_there),
    ("model code", weights.code),
    ("memory", memory.fits),
    ("shared memory", machine.shared_memory),
    ("cache", machine.cache),
    ("ports", machine.ports),
    ("graphs", machine.eager),
    ("development", machine.development),
)


def run(case: Case, mode: str) -> list[Check]:
    """Every check's result. With mode `warn`, refusals become warnings, except for what cannot work."""
    found = []
    for name, check in CHECKS:
        try:
            result = check(case)
        except LaunchError as error:
            result = refused_by(error)
        if result.text:
            found.append(result._replace(name=name))
    if mode == "warn":
        found = [check._replace(status="warning") if check.status == "refused" and not check.hard else check for check in found]
    return found


def conclude(found: Sequence[Check]) -> None:
    """Raises an error that lists every refusal: Unavailable when a service is all that is missing, else Refused."""
    wrong = [check for check in found if check.status == "refused"]
    if not wrong:
        return
    texts = [f"{check.text}\n{check.fix}".rstrip() for check in wrong]
    if len(texts) > 1:
        items = [f"{number}. {text}".replace("\n", "\n   ") for number, text in enumerate(texts, 1)]
        texts = [f"{len(texts)} checks refuse this start.", *items]
    if not any(check.hard for check in wrong):
        texts.append("LAUNCH_CHECKS=warn starts all the same.")
    error = Refused if any(check.error is Refused for check in wrong) else wrong[0].error
    raise error("\n".join(texts))


def lines(found: Sequence[Check]) -> list[str]:
    """The screen: a line for each check, and its fix below one that does not pass."""
    shown = []
    for check in found:
        mark = "" if check.status == "ok" else f"{check.status.upper()} "
        shown.append(f"check     {mark}{check.name}: {check.text}")
        if check.status != "ok":
            shown += [f"            {line}" for line in check.fix.splitlines()]
    return shown


__all__ = ["Case", "Check", "conclude", "lines", "run"]
