"""What every target of the Makefile stands on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    """Whatever the first run leaves behind when it is interrupted, the next one begins again; a finished one is used."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    script, count = tmp_path / "scripts/venv", tmp_path / "count"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\necho >>count\nmkdir -p .venv/bin\ntouch .venv/bin/python\n[ $(wc -l <count) -gt 1 ] && touch .venv/made\n"
    )
    script.chmod(0o755)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()

    statuses = [subprocess.run(["make", "-C", tmp_path, ".venv"], capture_output=True, check=False).returncode for _ in range(3)]

    assert [bool(status) for status in statuses] == [True, False, False]
    assert len(count.read_text()) == 2
    assert "touch .venv/made" in (ROOT / "scripts/venv").read_text().splitlines()[-1]
