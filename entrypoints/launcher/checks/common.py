"""What every check starts from, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launcher.engines.common import flag_value
from launcher.errors import LaunchError, Refused, Unavailable
from launcher.facts import ImageFacts
from launcher.hardware import Hardware
from launcher.plan import LaunchPlan


class Check(NamedTuple):
    """The result of a check: `status` is ok, warning or refused; `text` says what was found and wanted, `fix` what to type.

    A `hard` refusal cannot work, so that LAUNCH_CHECKS=warn does not lift it. A check that has nothing to say has no text.
    """

    status: str
    text: str
    fix: str = ""
    hard: bool = False
    error: type[LaunchError] = Refused
    name: str = ""

    def shown(self) -> dict[str, str]:
        """For programs."""
        return {"name": self.name, "status": self.status, "text": self.text, "fix": self.fix}


class Case(NamedTuple):
    """What is checked: a plan, the image that it is for, the hardware under it, and the engine's whole environment."""

    plan: LaunchPlan
    facts: ImageFacts
    hardware: Hardware
    env: Mapping[str, str]

    @property
    def processes(self) -> int:
        """The engine's processes on this node: one for each GPU that it takes, or each share of a CPU."""
        nodes = self.plan.cluster.nodes if self.plan.cluster else 1
        return max(self.plan.tp * self.plan.pp * self.plan.copies // nodes, 1)

    @property
    def capability(self) -> int:
        """The lowest compute capability among the GPUs that are taken; 0 when there is none."""
        return min((gpu.capability for gpu in self.hardware.gpus[: self.processes]), default=0)

    def flag(self, *names: str) -> str:
        """The value of an engine flag in the engine's command line, as `flag_value` reads it."""
        return flag_value(self.plan.line, *names)


def ok(text: str) -> Check:
    """Passed."""
    return Check("ok", text)


def warning(text: str, fix: str = "") -> Check:
    """Worth knowing; starts all the same."""
    return Check("warning", text, fix)


def refused(text: str, fix: str, *, hard: bool = False) -> Check:
    """Does not start."""
    return Check("refused", text, fix, hard)


def refused_by(error: LaunchError, *, hard: bool = False) -> Check:
    """An error as a check's result; its first line says what, the others what to type."""
    text, _, fix = str(error).partition("\n")
    return Check("refused", text, fix, hard, Unavailable if isinstance(error, Unavailable) else Refused)


def gib(size: float) -> str:
    """Bytes for people: GiB, or MiB below one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


SILENT = Check("ok", "")
