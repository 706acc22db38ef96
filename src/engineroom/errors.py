"""What can go wrong on the host. Each says what was found, what was wanted and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EngineRoomError(Exception):
    """An error for the user: printed without a traceback; `exit_code` as in the launcher."""

    exit_code = 70


class CatalogError(EngineRoomError):
    """A TOML file is malformed, or a row contradicts another."""

    exit_code = 78


class UnknownName(EngineRoomError):
    """No image, stack or tool has this name."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"There is no {kind} {name!r}. {hint}Known: {', '.join(known)}.")


class BadRequest(EngineRoomError):
    """What was asked for is not understood, or cannot be."""

    exit_code = 2


class CannotBuild(EngineRoomError):
    """The name is known, and known not to work."""

    exit_code = 78

    def __init__(self, name: str, reason: str, instead: str) -> None:
        super().__init__(f"{name} cannot work: {reason}\nUse {instead} instead.")


class CannotRun(EngineRoomError):
    """A stack cannot run where or as it was asked to."""

    exit_code = 78


class AuditFailed(EngineRoomError):
    """An image, wheel or folder is not what its GPU needs."""

    exit_code = 78

    def __init__(self, target: str, findings: Iterable[str]) -> None:
        shown = list(findings)
        super().__init__(f"{target}: {len(shown)} finding{'s' if len(shown) > 1 else ''}\n  " + "\n  ".join(shown))


class NotReady(EngineRoomError):
    """`doctor` found that this machine lacks what a stack needs."""

    exit_code = 78


class NotAsLocked(EngineRoomError):
    """A file is missing, or is not the one that was locked or saved."""


class NoSpace(EngineRoomError):
    """The disk has less room than what was asked for needs."""


class ServiceUnavailable(EngineRoomError):
    """Docker, a registry or the network is not there."""

    exit_code = 69


class BuildFailed(EngineRoomError):
    """`docker buildx bake` failed; the cause has been looked for in its output."""

    exit_code = 70


class TryAgain(EngineRoomError):
    """A deadline passed; nothing is broken."""

    exit_code = 75
