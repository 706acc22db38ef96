"""What can go wrong, with the exit code that tells an orchestrator what to do about it."""

from __future__ import annotations


class LaunchError(Exception):
    """An error for the user: says what was found, what was wanted and what to type."""

    exit_code = 70


class BadUsage(LaunchError):
    """The command line is wrong."""

    exit_code = 2


class Unavailable(LaunchError):
    """A peer or service is not there."""

    exit_code = 69


class EngineDied(LaunchError):
    """The engine ended, or stopped answering, though nobody asked it to."""

    exit_code = 70


class StartTimeout(LaunchError):
    """The engine did not become ready in time; another try may work."""

    exit_code = 75


class Refused(LaunchError):
    """The configuration cannot work: refused before anything started."""

    exit_code = 78


def did_you_mean(word: str, known: list[str]) -> str:
    """A sentence that names the nearest known word, or nothing."""
    import difflib  # only needed when something is wrong

    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""
