"""`launch doctor`: what this container has and what fits it, without a model."""

from __future__ import annotations

from collections.abc import Mapping

from launcher import hardware, hub, plan, settings
from launcher.checks import gpus, machine
from launcher.checks.common import Case, Check, gib, ok, refused_by, warning
from launcher.errors import LaunchError, Refused
from launcher.facts import ImageFacts

NO_MODEL = "no/model"  # a hub id, so that nothing of a model is looked for
KNOWN_MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"  # asked for at the hub, which has it


def examine(chosen: settings.Settings, facts: ImageFacts, env: Mapping[str, str], secrets: Check) -> list[Check]:
    """Every check that needs no model, and the limits of this container. Raises Refused for settings that contradict each other."""
    found = hardware.look(env)
    case = Case(plan.make(chosen._replace(model=NO_MODEL), facts, env, found), facts, found, env)
    rows = [
        ("gpus", gpus.are_there(case)),
        ("capability", gpus.have_code(case)),
        ("images", images(facts, found)),
        ("driver", gpus.driver(case)),
        ("memory", memory()),
        ("shared memory", machine.shared_memory(case)),
        ("cache", machine.cache(case)),
        ("ports", machine.ports(case)),
        ("secrets", secrets),
        ("hub", reach(env)),
        ("development", machine.development(case)),
    ]
    return [check._replace(name=name) for name, check in rows if check.text]


def images(facts: ImageFacts, found: hardware.Hardware) -> Check:
    """Which images of ours fit the GPUs that are here."""
    kinds = sorted({gpu.capability for gpu in found.gpus})
    fitting = [f"{', '.join(gpus.images_for(facts, kind)) or 'none of ours'} for compute capability {kind}" for kind in kinds]
    return ok("; ".join(fitting) or "no GPU, so the cpu image alone")


def memory() -> Check:
    """Memory and CPUs of this container."""
    limits = hardware.limits()
    return ok(f"{gib(limits.free)} of {gib(limits.memory)} free, {limits.cpus:g} CPUs")


def read_secrets(env: Mapping[str, str]) -> tuple[Mapping[str, str], Check]:
    """The secrets, and whether all that are named can be read."""
    try:
        found = settings.read_secrets(env)
    except Refused as error:
        return {}, refused_by(error, hard=True)
    return found, ok(f"{', '.join(found)}: readable" if found else "none is set")


def reach(env: Mapping[str, str]) -> Check:
    """Whether the hub answers; a model that is here does without."""
    if hub.offline(env):
        return ok("HF_HUB_OFFLINE is set: the hub is not asked")
    try:
        return ok(hub.ask(KNOWN_MODEL, "main", env))
    except LaunchError as error:
        return warning(str(error).partition("\n")[0], "A model that is complete in its folder or in the cache is served all the same.")
