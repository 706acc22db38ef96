"""What a bundle blanks, and what it leaves."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from engineroom import bundle

SECRET = 'a"b\\c/d e-f+1'


@pytest.mark.parametrize(
    "text",
    [
        f"key: {SECRET}",
        '{"key": "a\\"b\\\\c/d e-f+1"}',  # as JSON writes it
        "https://host/?token=a%22b%5Cc%2Fd%20e-f%2B1",
    ],
)
def test_a_known_secret_goes_in_every_form(text: str) -> None:
    """A secret is found as it is, in JSON and in an address."""
    cleaned = bundle.Redactor([SECRET]).clean(text)

    assert bundle.BLANK in cleaned
    assert "e-f" not in cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Authorization: Bearer abc.DEF-123", "Authorization: Bearer ********"),
        ("index https://me:pass@mirror.example/simple", "index https://********@mirror.example/simple"),
        ("proxy http://me:p@ss@proxy:3128", "proxy http://********@proxy:3128"),
        ("token hf_AbCdEfGhIjKlMn", "token ********"),
        ("key sk-proj-0123456789", "key ********"),
        ("cookie eyJhbGciOi.eyJzdWIi.c2ln", "cookie ********"),
        ("vllm serve --api-key opensesame --port 1", "vllm serve --api-key ******** --port 1"),
        ("user first@example.com signed in", "user ******** signed in"),
        ("request cmpl-1: prompt: 'my illness', params: S()", "request cmpl-1: prompt: ********, params: S()"),
    ],
)
def test_what_looks_secret_goes(text: str, cleaned: str) -> None:
    """Forms of secrets, people's addresses and visitors' prompts are blanked without being known."""
    assert bundle.Redactor([]).clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "INFO [launch] ready after 41 s: port 8000",
        "engineroom:cpu-vllm0.32.0@sha256:88200866dfff",
        "http://demo-cpu-engine:8000/v1",
        "vllm serve /models/x --max-model-len 2048 --reasoning-parser deepseek_r1",
        "Avg generation throughput: 10.0 tokens/s, GPU KV cache usage: 0.0%",
    ],
)
def test_the_rest_stays(text: str) -> None:
    """What a report is read for is left as it was."""
    assert bundle.Redactor(["short"]).clean(text) == text


def test_settings_are_blanked_by_name() -> None:
    """A setting whose name says secret loses its value; one that names a file, or counts tokens, keeps it."""
    config = {
        "environment": {
            "OPENAI_API_KEY": "x",
            "HF_TOKEN": "y",
            "HF_TOKEN_FILE": "/run/secrets/hf_token",
            "MAX_TOKENS": "5",
            "EMPTY_KEY": "",
        }
    }

    assert bundle.blanked([config]) == [
        {"environment": {**config["environment"], "OPENAI_API_KEY": bundle.BLANK, "HF_TOKEN": bundle.BLANK}}
    ]


def test_an_old_bundle_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    """An interrupt leaves what was there; the new file is its owner's alone, whatever the old one was."""
    file = tmp_path / "report.tar.gz"
    file.write_text("old")
    file.chmod(0o644)

    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle._pack(file, {"a.txt": lambda: "a", "b.txt": interrupted}, bundle.Redactor([]))
    assert ([path.name for path in tmp_path.iterdir()], file.read_text()) == (["report.tar.gz"], "old")

    bundle._pack(file, {"a.txt": lambda: "a"}, bundle.Redactor([]))
    assert ([path.name for path in tmp_path.iterdir()], file.stat().st_mode & 0o777) == (["report.tar.gz"], 0o600)
    with tarfile.open(file) as archive:
        assert archive.getnames() == ["report/a.txt"]
