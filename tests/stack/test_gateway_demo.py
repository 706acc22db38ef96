"""The demo behind the gateway: the profile, the real engine, the real page."""

from __future__ import annotations

import json

import pytest
from demo import Demo
from gateways import Door

pytestmark = pytest.mark.containers


def key(demo: Demo) -> str:
    """The key that the gateway made, as its log says to read it."""
    assert "docker compose exec demo-cpu-gateway cat /data/keys" in demo.compose("logs", "demo-cpu-gateway").stdout
    return demo.compose("exec", "-T", "demo-cpu-gateway", "cat", "/data/keys").stdout.strip().partition(":")[2]


def test_the_openai_client_streams_through_it(demo: Demo, door: Door) -> None:
    """The official client, with the gateway's address and key, streams thought and answer in many pieces; without the key it gets nothing."""
    import openai  # a second, which runs without containers need not wait for

    def client(api_key: str) -> openai.OpenAI:
        plain = openai.DefaultHttpxClient(verify=False, trust_env=False)
        return openai.OpenAI(base_url=f"https://localhost:{door.port}/v1", api_key=api_key, http_client=plain, max_retries=0)

    with pytest.raises(openai.AuthenticationError, match="No valid key"):
        client("not-the-key").models.list()
    friend = client(key(demo))
    assert friend.models.list().data[0].id == "demo-r1"
    question = {"role": "user", "content": "What is 348 + 275?"}
    pieces = list(friend.chat.completions.create(model="demo-r1", messages=[question], stream=True))  # type: ignore[call-overload]
    answer = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)

    assert r"\boxed{623}" in answer
    assert len(pieces) > 10
    with pytest.raises(openai.NotFoundError, match="does not exist"):  # the engine's own words pass
        friend.chat.completions.create(model="no-such-model", messages=[question])  # type: ignore[list-item]
    assert door.ask("GET /metrics", key(demo)).body.startswith("<!")  # the page's answer, not the engine's
    assert door.ask("GET /v1/load", key(demo)).status == 404


def test_the_page_and_its_web_socket_pass(demo: Demo, door: Door) -> None:
    """The page comes, and its socket opens from its own origin and from no other, whatever name and port the gateway is reached by."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    socket = "GET /ws/socket.io/?EIO=4&transport=websocket"

    assert "Open WebUI" in door.ask("GET /").body
    assert json.loads(door.ask("GET /api/config").body)["status"] is True
    assert door.ask(socket, seconds=2, **upgrade, Origin=f"https://localhost:{door.port}").status == 101
    assert door.ask(socket, seconds=2, **upgrade, Origin="https://evil.example").status == 403


def test_it_alone_is_published(demo: Demo, door: Door) -> None:
    """Engine and page stay on 127.0.0.1; the gateway has the address that was asked for."""
    published = {
        service: [
            binding["HostIp"] for port in json.loads(demo.inspect(service))[0]["HostConfig"]["PortBindings"].values() for binding in port
        ]
        for service in ("demo-cpu", "demo-cpu-engine", "demo-cpu-gateway")
    }

    assert published == {"demo-cpu": ["127.0.0.1"], "demo-cpu-engine": ["127.0.0.1"], "demo-cpu-gateway": ["127.0.0.1"]}
