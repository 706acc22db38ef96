"""The gateway's start script, without a container: settings, keys, what it writes for nginx."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway import start

ROOT = Path(__file__).parents[2]
ENGINE = {"GATEWAY_ENGINES": "127.0.0.1:8000"}
GOOD = "k" * 32
KEY = st.from_regex(start.KEY, fullmatch=True)


def written(**settings: str) -> str:
    """settings.conf for one key and these settings."""
    found = start.read_settings({**ENGINE, **settings})
    return start.configuration(found, {GOOD: "alice"}, start.Certificate(Path("/a.pem"), Path("/b.pem")), start.Addresses())


def test_defaults_are_whole() -> None:
    """Every setting has a value, an empty one counts as none, and other programs' variables are left alone."""
    found = start.read_settings({**ENGINE, "GATEWAY_BODY_MIB": "", "PATH": "/bin"})

    assert set(found) == set(start.SETTINGS)
    assert found["GATEWAY_BODY_MIB"] == "16"


def test_every_setting_of_a_stack_is_one() -> None:
    """Compose sets no variable that the gateway does not know, and passes on each that a person would set."""
    used = {name for file in ROOT.glob("compose/*.yaml") for name in re.findall(r"^ +(GATEWAY_\w+):", file.read_text(), re.MULTILINE)}

    assert used == set(start.SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GATEWAY_ENGINES": ""}, "GATEWAY_ENGINES is empty"),
        ({"GATEWAY_ENGINES": "engine"}, "write host:port"),
        ({"GATEWAY_ENGINES": "a:1; deny all"}, "write host:port"),
        ({"GATEWAY_KEY_RATE": "0"}, "whole number from 1"),
        ({"GATEWAY_ANSWER_SECONDS": "1h"}, "whole number from 1"),
        ({"GATEWAY_ORIGINS": "*"}, "write https://name"),
        ({"GATEWAY_ORIGINS": 'https://a" b;'}, "write https://name"),
        ({"GATEWAY_LISTEN": "8443 default_server; include /etc/shadow"}, "write a port, or address:port"),
        ({"GATEWAY_LISTEN": "99999"}, "a port is a number from 1 to 65535"),
        ({"GATEWAY_LISTEN": ":::8443"}, "write a port, or address:port"),
        ({"GATEWAY_PAGE": "page:0"}, "a port is a number from 1 to 65535"),
        ({"GATEWAY_ENGINES": "a:70000"}, "a port is a number from 1 to 65535"),
        ({"GATEWAY_NAMES": "a,DNS:b"}, "write a name or an address"),
        ({"GATEWAY_KEYSFILE": "x"}, "Did you mean GATEWAY_KEYS_FILE"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, str], message: str) -> None:
    """The setting is named, and nothing gets into nginx's configuration but what has its form."""
    with pytest.raises(start.Refused, match=re.escape(message)):
        start.read_settings({**ENGINE, **settings})


def test_a_name_that_can_be_none_has_no_address() -> None:
    """What Python's own code for names refuses is like a name that nobody knows."""
    assert start.Addresses().of("a..b:80") == start.Addresses().of(f"{'a' * 64}:80") == []


def test_an_origin_stands_once() -> None:
    """Its map compares without regard to case, and refuses a word that stands twice."""
    assert written(GATEWAY_ORIGINS="https://A.example https://a.example").count("a.example") == 1


def test_keys_have_names() -> None:
    """Comments and empty lines are passed over; a name may have two keys."""
    text = f"# team\n\nalice: {GOOD}1\nalice:{GOOD}2\r\n bob:{GOOD}3\n"

    assert start.parse_keys(text, "keys") == {f"{GOOD}1": "alice", f"{GOOD}2": "alice", f"{GOOD}3": "bob"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key"),
        ("alice", "line 1: wanted name:key"),
        (f"a b:{GOOD}", "line 1: wanted name:key"),
        (f'a";b:{GOOD}', "line 1: wanted name:key"),
        ("alice:short-secret", "line 1: a key is 20 to 200"),
        (f"alice:{GOOD}$host", "line 1: a key is 20 to 200"),
        (f"alice:{GOOD}\nbob:{GOOD}", "line 2: this key stands above already"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(text: str, message: str) -> None:
    """The line's number and what was wanted; never what is in it."""
    with pytest.raises(start.Refused, match=message) as error:
        start.parse_keys(text, "keys")

    assert "short-secret" not in str(error.value)
    assert GOOD not in str(error.value)


@hypothesis_settings(max_examples=100)
@given(KEY)
def test_a_key_matches_itself_alone(key: str) -> None:
    """The pattern in nginx's map takes this key and no other, whatever signs it has."""
    found = start.read_settings(ENGINE)
    text = start.configuration(found, {key: "alice"}, start.Certificate(Path("/a"), Path("/b")), start.Addresses())
    (pattern,) = re.findall(r'"~(.*)" "alice";', text)

    assert re.search(pattern, f"Bearer {key}")
    assert re.search(pattern, f"bearer {key}")
    assert not re.search(pattern, f"Bearer {key}x")
    assert not re.search(pattern, f"Bearer x{key}")
    assert not re.search(pattern, f"Bearer {key.swapcase()}") or key == key.swapcase()


def test_limits_and_pages_are_written() -> None:
    """What is set arrives in nginx's words; without a page no path leads to one."""
    text = written(GATEWAY_KEY_RATE="7", GATEWAY_KEY_STREAMS="3", GATEWAY_BODY_MIB="2", GATEWAY_ANSWER_SECONDS="90")

    for line in ("rate=7r/s;", "burst=14 nodelay;", "limit_conn streams 3;", "client_max_body_size 2m;", "proxy_read_timeout 90s;"):
        assert line in text
    assert "default no;" in text
    assert "default yes;" in written(GATEWAY_PAGE="127.0.0.1:8080")
    assert '"https://a.example" $http_origin;' in written(GATEWAY_ORIGINS="https://a.example")


def test_a_name_server_that_is_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses stay while nobody answers, and go when the name is known to be gone."""
    known = start.Addresses()
    rows = [(socket.AF_INET, 1, 6, "", ("10.0.0.2", 80)), (socket.AF_INET6, 1, 6, "", ("fd00::2", 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    assert known.of("engine:80") == ["10.0.0.2:80", "[fd00::2]:80"]

    for number, expected in ((socket.EAI_AGAIN, 2), (socket.EAI_NONAME, 0)):
        error = socket.gaierror(number, "no")

        def fail(*_: object, error: socket.gaierror = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        assert len(known.of("engine:80")) == expected
    assert "server 127.0.0.1:1 down;" in start.upstream("engine", ["engine:80"], known)
