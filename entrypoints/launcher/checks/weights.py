"""The model: whole in its folder or in the hub's cache, or to be fetched from a hub that answers; and whose code it runs."""

from __future__ import annotations

import os

from launcher import checkpoint, hub
from launcher.checks.common import SILENT, Case, Check, gib, ok, refused, refused_by
from launcher.errors import Refused, Unavailable

ELSEWHERE = ("VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE")


def are_there(case: Case) -> Check:
    """A folder must be complete; anything else must be a hub id that is complete in the cache, or can be fetched."""
    model = case.plan.model
    if os.path.isdir(model):
        return _folder(case)
    if model.startswith(("/", "./", "../")) or not hub.ID.fullmatch(model):
        return refused(
            f"The model {model} is neither a folder in this container nor a hub id such as deepseek-ai/DeepSeek-R1-Distill-Qwen-7B.",
            "Mount the folder (docker run -v /path/on/host:/models/NAME:ro) and set LAUNCH_MODEL=/models/NAME.",
            hard=True,
        )
    return _from_hub(case)


def _folder(case: Case) -> Check:
    dummy = case.flag("load-format") == "dummy"
    foreign = case.flag("tokenizer", "tokenizer-path") or case.flag("skip-tokenizer-init") == "true"
    try:
        found = checkpoint.inspect(case.plan.model, weights=not dummy, tokenizer=not foreign)
    except Refused as error:
        return refused_by(error, hard=True)
    if dummy:
        return ok(f"{case.plan.model} describes a model; its weights are made up (--load-format dummy)")
    whole = "each as long as its header says" if found.verified else "no safetensors, so not looked into"
    return ok(f"{case.plan.model}: {found.files} file{'s' if found.files > 1 else ''} of weights, {gib(found.bytes)}, {whole}")


def _from_hub(case: Case) -> Check:
    model, env, cached = case.plan.model, case.env, case.plan.cached
    if any(env.get(name, "").lower() in hub.TRUE for name in ELSEWHERE):
        return ok(f"{model} comes from ModelScope, which is not asked here")
    if cached is None or not cached.lacks:
        return ok(f"{model} is complete in {hub.cache(env)}{_asked(case)}")
    if hub.offline(env):
        return refused(
            f"HF_HUB_OFFLINE is set, and {cached.lacks}",
            f"Unset it, or fetch the model where there is a network: `hf download {model}`, and bring the cache here.",
        )
    try:
        answer = hub.ask(model, case.flag("revision") or "main", env)
    except Unavailable as error:
        return refused_by(
            Unavailable(
                f"{error}; and {cached.lacks}\n"
                "Look at the network and at HTTPS_PROXY, or set HF_ENDPOINT to a mirror. Without a network: `hf download` elsewhere, and bring the cache here."
            )
        )
    return ok(f"{model} comes from the hub: {answer}")


def _asked(case: Case) -> str:
    return "; the hub is not asked (HF_HUB_OFFLINE=1)" if case.plan.environment.get("HF_HUB_OFFLINE") else ""


def code(case: Case) -> Check:
    """Code that comes with a model runs only when it is asked for, and then from a revision that cannot change."""
    plan = case.plan
    if not plan.command:  # a worker under Ray: the head decides
        return SILENT
    own, revision = "auto_map" in plan.config, case.flag("revision")
    if os.path.isdir(plan.model):
        pinned = "revision: a folder, which is what it is"
    elif hub.COMMIT.fullmatch(revision):
        pinned = f"revision: pinned to {revision}"
    else:
        pinned = f"revision: {revision or 'main'}, not pinned"
    if case.flag("trust-remote-code") != "true":
        return ok(f"off{', though config.json names some (auto_map): the engine must know the model itself' if own else ''}; {pinned}")
    if pinned.endswith("not pinned"):
        commit = plan.cached.commit if plan.cached else ""
        known = f" The cache has {commit}." if commit else ""
        return refused(
            f"code of {plan.model} would run (--trust-remote-code), whatever its owner puts there next; {pinned}",
            f"Set LAUNCH_ARG_REVISION to the commit that you have read; {hub.endpoint(case.env)}/{plan.model}/commits lists them.{known}",
        )
    return ok(f"on (--trust-remote-code){'' if own else ', though config.json names none'}; {pinned}")
