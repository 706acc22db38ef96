"""Audit of an image from the inside: device code, shared libraries, rights, secrets, licences. Standard library only.

Builds run this as their last step before the launcher (`python3 -m engineroom.audit RULES OUT`), so an image whose claim does
not hold never gets a name; `engineroom audit` runs the same on an image that is there. A finding is an error unless an
exception with a reason names it, and an exception that names nothing is an error too.
"""

from __future__ import annotations

import email.parser
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from engineroom import shared_objects
from engineroom.device_code import Data, Survey, opened, survey
from engineroom.shared_objects import SharedObject

LEFT_ALONE = ("proc", "sys", "dev", "run", "tmp")
SYSTEM_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64", "usr/local/cuda/lib64", "usr/local/cuda/compat")
ELF = b"\x7fELF"
SEARCHED_BYTES = 1_000_000  # a file with a secret in it is a small one
# Shapes that are secrets wherever they stand; documentation and examples do not match them. Each begins with a word that
# is looked for first, since that is a hundred times faster than a pattern.
SECRETS = (
    ("a private key", b"PRIVATE KEY-----", rb"PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"),
    ("a Hugging Face token", b"hf_", rb"\bhf_[A-Za-z]{34}\b"),
    ("a GitHub token", b"ghp_", rb"\bghp_[A-Za-z0-9]{36}\b"),
    ("a GitHub token", b"github_pat_", rb"\bgithub_pat_\w{60,}\b"),
    ("an AWS key", b"AKIA", rb"\bAKIA[0-9A-Z]{16}\b"),
    ("an NVIDIA key", b"nvapi-", rb"\bnvapi-[\w-]{60,}"),
)
SECRET_FILES = re.compile(
    r"(^|/)(\.netrc|\.pypirc|\.git-credentials|\.docker/config\.json|id_(rsa|ed25519|ecdsa)|(pip|uv)/?(pip\.conf|uv\.toml))$"
)


class Finding(NamedTuple):
    """What is wrong with a file: the check that found it, the file, what was found; for device code, the GPU it concerns."""

    check: str
    path: str
    found: str
    capability: int = 0

    def __str__(self) -> str:
        """path: what was found"""
        return f"{self.path}: {self.found}"


def audit(root: Path, rules: dict[str, Any]) -> dict[str, Any]:
    """Look at every file below `root` once. `rules`: capabilities of the GPUs, and exceptions with check, files and why.

    The result has `findings` (texts; empty when all is well), `excepted`, `device_code`, `packages` with licences.
    """
    findings: list[Finding] = []
    metadata: list[Path] = []
    objects: dict[str, SharedObject] = {}
    codes: dict[str, Survey] = {}
    for path in _paths(root):
        file = root / path
        found = file.stat()
        if path.endswith(".dist-info/METADATA"):
            metadata.append(file)
        findings += _rights(path, found.st_mode)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            with opened(file) as data:
                if data[: len(ELF)] == ELF:
                    if code := survey(data, rules["capabilities"]):
                        codes[path] = code
                    if shared := shared_objects.read(data):
                        objects[path] = shared
                elif len(data) <= SEARCHED_BYTES:
                    findings += _secrets(path, data)
    findings += list(device_code_findings(codes))
    findings += [
        Finding("shared-libraries", path, f"nothing provides {', '.join(names)}")
        for path, names in shared_objects.unresolved(objects, [str(root / folder) for folder in SYSTEM_FOLDERS])
    ]
    return {**judged(findings, rules), "device_code": _folded(codes), "packages": [*_debian_packages(root), *_python_packages(metadata)]}


def device_code_findings(codes: dict[str, Survey]) -> Iterator[Finding]:
    """Every library that holds device code must have some that runs, for each of the GPUs; bare cubins count by folder."""
    for capability in next(iter(codes.values())).usable if codes else ():
        loose: Counter[str] = Counter()
        for path, found in codes.items():
            if not found.usable[capability]:
                if path.endswith(".cubin"):
                    loose[os.path.dirname(path)] += 1
                else:
                    yield Finding("device-code", path, f"no device code for compute capability {capability}; it has {found}", capability)
        for folder, count in loose.items():
            yield Finding(
                "device-code", f"{folder or '.'}/*.cubin", f"{count} that do not run on compute capability {capability}", capability
            )


def judged(findings: Iterable[Finding], rules: dict[str, Any]) -> dict[str, Any]:
    """Sort findings into those that an exception names, with its reason, and the rest; exceptions that name none are findings."""
    rest, excepted = list(findings), []
    for rule in rules["exceptions"]:
        named = [finding for finding in rest if _names(rule, finding)]
        rest = [finding for finding in rest if finding not in named]
        if named:
            shown = sorted({finding.path for finding in named})
            excepted.append({"check": rule["check"], "files": shown, "why": rule["why"]})
        else:
            rest.append(Finding(rule["check"], ", ".join(rule["files"]), "an exception that nothing needs: remove it from engines.toml"))
    return {"findings": [str(finding) for finding in rest], "excepted": excepted}


def _names(rule: dict[str, Any], finding: Finding) -> bool:
    wanted = rule["capabilities"]
    return (
        rule["check"] == finding.check
        and (not wanted or finding.capability in wanted)
        and any(fnmatch(finding.path, f"*{pattern}") for pattern in rule["files"])
    )


def _paths(root: Path) -> Iterator[str]:
    """Every regular file and folder below the root, relative to it, in order; other file systems and links are left alone."""
    device = root.stat().st_dev
    for folder, folders, names in os.walk(root):
        here = os.path.relpath(folder, root)
        left_alone = LEFT_ALONE if here == "." else ()
        folders[:] = sorted(name for name in folders if name not in left_alone and os.lstat(os.path.join(folder, name)).st_dev == device)
        for name in (*folders, *sorted(names)):
            mode = os.lstat(os.path.join(folder, name)).st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                yield os.path.normpath(os.path.join(here, name))


def _rights(path: str, mode: int) -> Iterator[Finding]:
    """A folder that anyone may write is allowed when it is sticky, as /tmp is; set-gid on a folder only hands down its group."""
    folder = stat.S_ISDIR(mode)
    if mode & stat.S_IWOTH and not (folder and mode & stat.S_ISVTX):
        yield Finding("rights", path, "anyone may write it")
    if mode & (stat.S_ISUID | stat.S_ISGID) and not folder:
        yield Finding("rights", path, "it runs with its owner's rights (set-uid or set-gid)")


def _secrets(path: str, data: Data) -> Iterator[Finding]:
    """Never shows the secret itself."""
    if SECRET_FILES.search(path):
        yield Finding("secrets", path, "a file that holds credentials")
    for what, word, shape in SECRETS:
        if data.find(word) >= 0 and re.search(shape, data):
            yield Finding("secrets", path, f"what looks like {what}")


def _folded(codes: dict[str, Survey]) -> dict[str, Any]:
    """The device code by file. Bare cubins, of which a package may have thousands, are summed up by folder."""
    whole = {path: found for path, found in codes.items() if not path.endswith(".cubin")}
    loose = Counter((os.path.dirname(path), str(found)) for path, found in codes.items() if path not in whole)
    shown: dict[str, Any] = {
        path: {**found.pieces, "fat_binaries": found.fat_binaries, "usable": found.usable} for path, found in whole.items()
    }
    return shown | {f"{folder}/*.cubin": f"{count} of {text}" for (folder, text), count in loose.items()}


def _python_packages(metadata: Iterable[Path]) -> list[dict[str, str]]:
    found = []
    for file in metadata:
        fields = email.parser.HeaderParser().parsestr(file.read_text(encoding="utf-8", errors="replace"))
        classified = [text.rsplit(" :: ", 1)[-1] for text in fields.get_all("Classifier", []) if text.startswith("License ::")]
        # The field is a name or, in older packages, the whole text: then its first line.
        named = str(fields.get("License-Expression") or fields.get("License") or ", ".join(classified) or "not stated").strip()
        found.append(
            {"name": str(fields["Name"]), "version": str(fields["Version"]), "licence": named.splitlines()[0][:80] if named else ""}
        )
    return sorted(found, key=lambda package: package["name"].lower())


def _debian_packages(root: Path) -> list[dict[str, str]]:
    status = root / "var/lib/dpkg/status"
    if not status.exists():
        return []
    blocks = (email.parser.HeaderParser().parsestr(block) for block in status.read_text(errors="replace").split("\n\n") if block.strip())
    return [
        {"name": str(block["Package"]), "version": str(block["Version"]), "licence": f"/usr/share/doc/{block['Package']}/copyright"}
        for block in blocks
        if block["Status"] == "install ok installed"
    ]


def main() -> None:
    """RULES OUT: audit the whole file system, write the result, and fail with every finding."""
    rules, out = (Path(name) for name in sys.argv[1:3])
    result = {"image": json.loads(rules.read_text())["image"], **audit(Path("/"), json.loads(rules.read_text()))}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for finding in result["findings"]:
        print(f"audit: {finding}")
    sys.exit(1 if result["findings"] else 0)


if __name__ == "__main__":
    main()
