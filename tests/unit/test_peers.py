"""Head and workers over real connections on the loopback, with short times."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launcher import peers
from launcher.errors import Refused, Unavailable
from launcher.peers import Channel, Hub, Line, Member, Message, proof

HERE = "127.0.0.1"
TOKEN = "a-token-of-thirty-two-characters"
AGREED: dict[str, object] = {"launcher": "0.1.0", "ray": "2.55.1"}


class Nodes:
    """A head with its workers, and what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lost: queue.Queue[tuple[str, str]] = queue.Queue()
        self.heard: queue.Queue[Message] = queue.Queue()
        self.hub: Hub
        self.port = 0
        self.members: list[Member] = []

    def head(self, nodes: int = 2, gpus: int = 0, silence: float = 10) -> Hub:
        """A head that listens on a free port."""
        self.hub = Hub(Channel(0, TOKEN, silence, self.said.append), nodes, gpus, AGREED)
        self.hub.on_lost = lambda peer, cause: self.lost.put((peer.name, cause))
        self.hub.on_said = lambda _, message: self.heard.put(message)
        self.hub.listen(HERE, {"ip": HERE})
        self.port = self.hub.server.getsockname()[1]
        return self.hub

    def join(self, name: str = "w", seconds: float = 5, *, token: str = TOKEN, silence: float = 10, at: str = HERE, **hello: Any) -> Member:
        """A worker that has been welcomed."""
        said = {"name": name, "gpus": 0, "rank": None, **AGREED, **hello}
        self.members.append(peers.join(Channel(self.port, token, silence, self.said.append), at, said, time.monotonic() + seconds))
        return self.members[-1]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(peers, "BEAT", 0.1)
    monkeypatch.setattr(peers, "QUIET", 0.6)
    monkeypatch.setattr(peers, "BACK_OFF", (0.05, 0.1))
    found = Nodes()
    yield found
    for member in found.members:
        member.close()
    if hasattr(found, "hub"):
        found.hub.close("", asked=True)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends(member: Member) -> str:
    """How the head's words end."""
    with pytest.raises(Unavailable) as error:
        list(member.messages())
    return str(error.value)


def false_head(nodes: Nodes, answer: Callable[[Line], None]) -> None:
    """Something else on the head's port."""
    server = socket.create_server((HERE, 0))
    nodes.port = server.getsockname()[1]

    def serve() -> None:
        with server:
            while True:
                line = Line(server.accept()[0])
                with contextlib.suppress(OSError):
                    answer(line)
                line.close()

    threading.Thread(target=serve, daemon=True).start()


def test_ranks_are_kept_or_given(nodes: Nodes) -> None:
    """A worker keeps the rank of its scheduler; one without gets the lowest that is free; the stack is complete when all have joined."""
    hub = nodes.head(nodes=4)
    joined = [nodes.join("b", rank=2), nodes.join("a"), nodes.join("c")]
    assert [member.rank for member in joined] == [2, 1, 3]
    assert [peer.name for peer in hub.present()] == ["a", "b", "c"]
    assert joined[0].welcome["ip"] == joined[0].ip == HERE
    with pytest.raises(Unavailable, match=r"have 1 of 4 nodes; node 1 \(a, 127.0.0.1\) is here and has not joined yet"):
        hub.wait(time.monotonic(), 0)

    for member in joined:
        member.tell({"say": "joined"})
    hub.wait(time.monotonic(), 5)

    assert hub.state() == "have 4 of 4 nodes"


def test_a_wrong_token_is_refused_at_once(nodes: Nodes) -> None:
    """A worker with another token is refused for good, names the setting, and the head says who it was."""
    hub, began = nodes.head(), time.monotonic()

    with pytest.raises(Refused, match="its token is another.\nGive every node the same LAUNCH_CLUSTER_TOKEN"):
        nodes.join(token="another", seconds=60)

    assert time.monotonic() - began < 5
    assert "127.0.0.1 offered a wrong token and was refused" in nodes.said
    assert hub.present() == []


@pytest.mark.parametrize("own", [True, False], ids=["a proof by another token", "the worker's proof sent back"])
def test_a_head_without_the_token_is_refused(nodes: Nodes, own: bool) -> None:
    """A worker does not believe a head that cannot prove that it knows the token, and does not tell it the token either."""
    heard: list[Message] = []

    def pretend(line: Line) -> None:
        line.send({"engineroom": peers.PROTOCOL, "challenge": "0"})
        heard.append(line.receive(5))
        welcome = {"ip": HERE, "rank": 1}
        guess = proof("another", "head", heard[0]["challenge"], "0", json.dumps(welcome, sort_keys=True))
        line.send({"welcome": welcome, "proof": guess if own else heard[0]["proof"]})

    false_head(nodes, pretend)

    with pytest.raises(Refused, match="does not know the cluster's token. Check LAUNCH_HEAD and the token"):
        nodes.join()
    assert TOKEN not in json.dumps(heard)


def test_a_proof_cannot_be_used_twice(nodes: Nodes) -> None:
    """What one worker has said to the head is worth nothing on the next connection."""
    hub = nodes.head()
    first = shake_hands(nodes, "w")
    wait_for(lambda: len(hub.present()) == 1)

    with socket.create_connection((HERE, nodes.port), 5) as again:
        again.sendall(first.spoken)
        assert b'{"refused": "token"}' in read_all(again)


class Hands(Line):
    """A worker's connection by hand: what follows the handshake is the test's business."""

    spoken = b""


def shake_hands(nodes: Nodes, name: str, **hello: Any) -> Hands:
    line = Hands(socket.create_connection((HERE, nodes.port)))
    said = {"name": name, "gpus": 0, "rank": None, **AGREED, **hello}
    signed = proof(TOKEN, "worker", line.receive(5)["challenge"], "0", json.dumps(said, sort_keys=True))
    line.spoken = json.dumps({"hello": said, "challenge": "0", "proof": signed}).encode() + b"\n"
    line.connection.sendall(line.spoken)
    return line


def read_all(connection: socket.socket) -> bytes:
    """What still comes until the other side hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


def test_different_releases_are_refused(nodes: Nodes) -> None:
    """Nodes that differ in what they must share are refused for good, with both values."""
    nodes.head()

    with pytest.raises(Refused, match=r"the nodes must be alike: ray 2.9.0 here, 2.55.1 at the head\.$"):
        nodes.join(ray="2.9.0", seconds=60)


@pytest.mark.parametrize("rank", [0, 2, -1, "1"])
def test_a_rank_that_cannot_be_is_refused(nodes: Nodes, rank: object) -> None:
    """A worker that counts otherwise than the head is refused for good."""
    nodes.head()

    with pytest.raises(Refused, match=f"it calls itself node {rank} of 2"):
        nodes.join(rank=rank, seconds=60)


@pytest.mark.parametrize(("rank", "reason"), [(None, "complete without this node"), (1, "node 1 .first, .* has that rank already")])
def test_a_full_stack_is_tried_again(nodes: Nodes, rank: int | None, reason: str) -> None:
    """A worker for whom there is no room yet tries until its deadline, and gets in when there is."""
    nodes.head()
    first = nodes.join("first", rank=rank)
    with pytest.raises(Unavailable, match=rf"was not joined in \d s: the head .* refuses this node: .*{reason}"):
        nodes.join("second", 0.3, rank=rank)

    threading.Timer(0.3, first.close).start()

    assert nodes.join("second", rank=rank).rank == 1


def test_a_complete_stack_stays_as_it_is(nodes: Nodes) -> None:
    """Once the engine may run, even a lost worker cannot come back: the stack ends as a whole."""
    hub = nodes.head()
    first = nodes.join()
    first.tell({"say": "joined"})
    hub.wait(time.monotonic(), 5)
    first.close()
    nodes.lost.get(timeout=5)

    with pytest.raises(Unavailable, match="the stack is complete without this node"):
        nodes.join(seconds=0.2)


def test_a_head_that_is_not_there_is_named(nodes: Nodes) -> None:
    """At the deadline a worker names the address that it tried, and why."""
    with socket.create_server((HERE, 0)) as unused:
        nodes.port = unused.getsockname()[1]

    with pytest.raises(Unavailable, match=rf"head 127.0.0.1, port {nodes.port}, was not joined in \d s: .*Connection refused") as error:
        nodes.join(seconds=0.2)

    assert "LAUNCH_JOIN_SECONDS" in str(error.value)
    assert [line for line in nodes.said if "the head is not there yet" in line] == nodes.said[:1]  # once, not at every try


def test_the_heads_name_is_looked_up_anew(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that gets its address late, or another one, is found."""
    answers = iter(["", "127.0.0.2", HERE])

    def resolve(name: str) -> str:
        if ip := next(answers):
            return ip
        raise Unavailable(f"the name {name} cannot be looked up")

    monkeypatch.setattr(peers, "resolve", resolve)
    nodes.head()

    assert nodes.join(at="head.example").ip == HERE
    assert "the name head.example cannot be looked up" in nodes.said[0]
    assert f"head.example (127.0.0.2) port {nodes.port}: Connection refused" in nodes.said[1]


@pytest.mark.parametrize(
    ("banner", "error", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", Unavailable, "does not answer as a head does"),
        (b"", Unavailable, "does not answer as a head does .the connection was closed"),
        (b"{}\n", Refused, "is no head of this release: it speaks protocol None, this is 1"),
        (b'{"engineroom": 2, "challenge": ""}\n', Refused, "is no head of this release: it speaks protocol 2, this is 1"),
        (b'{"engineroom": 1}\n', Unavailable, "does not answer as a head does"),
    ],
)
def test_something_else_at_the_heads_port(nodes: Nodes, banner: bytes, error: type[Exception], message: str) -> None:
    """Another program or another release at the head's address is named."""
    false_head(nodes, lambda line: line.connection.sendall(banner))

    with pytest.raises(error, match=message):
        nodes.join(seconds=0.1)


def test_missing_nodes_are_named(nodes: Nodes) -> None:
    """At its deadline the head says how many are there, and of each missing node whether it was ever seen."""
    hub = nodes.head(nodes=3, gpus=1)
    nodes.join("gone", rank=2, gpus=1).close()
    nodes.lost.get(timeout=5)

    with pytest.raises(Unavailable, match=r"have 1 of 3 nodes, 1 of 3 GPUs; missing node 1 \(never seen\); ") as error:
        hub.wait(time.monotonic(), 0.1)

    assert "missing node 2 (last seen " in str(error.value)
    assert "s ago as gone, 127.0.0.1)" in str(error.value)
    assert "LAUNCH_HEAD" in str(error.value)
    assert "LAUNCH_JOIN_SECONDS" in str(error.value)


def test_too_few_gpus_are_named(nodes: Nodes) -> None:
    """A node with fewer GPUs than the others does not complete the stack."""
    hub = nodes.head(gpus=4)
    nodes.join(gpus=2).tell({"say": "joined"})
    wait_for(lambda: hub.present()[0].joined)

    with pytest.raises(Unavailable, match=r"have 2 of 2 nodes, 6 of 8 GPUs; node 1 \(w, 127.0.0.1\) has 2 GPUs, wanted 4"):
        hub.wait(time.monotonic(), 0.1)


def test_signs_of_life_keep_both_sides(nodes: Nodes) -> None:
    """Beats alone hold a connection open for longer than the silence that would end it."""
    hub = nodes.head(silence=1)
    member = nodes.join(silence=1)
    threading.Timer(2, hub.tell, [{"say": "ready"}]).start()

    assert next(member.messages()) == {"say": "ready"}
    assert nodes.lost.empty()


def test_a_silent_worker_is_noticed(nodes: Nodes) -> None:
    """A worker whose connection stands and who says nothing is lost."""
    hub = nodes.head(silence=0.3)
    nodes.join("frozen").closed = True  # no more beats

    assert nodes.lost.get(timeout=5) == ("frozen", "no sign of life for 0.3 s")
    assert hub.present() == []


def test_a_worker_that_misses_beats_is_suspected(nodes: Nodes) -> None:
    """Long before a silent worker counts as lost it can be named as the one to blame."""
    hub = nodes.head()
    nodes.join("frozen").closed = True  # no more beats

    wait_for(lambda: hub.silent().startswith("node 1 (frozen, 127.0.0.1): no sign of life for"))
    assert len(hub.present()) == 1


def test_a_silent_head_is_noticed(nodes: Nodes) -> None:
    """A head whose connection stands and which says nothing is lost."""
    hub = nodes.head()
    member = nodes.join(silence=0.3)
    hub.closed = True  # no more beats

    assert ends(member) == "no sign of life from the head at 127.0.0.1 for 0.3 s"


def test_a_connection_that_breaks_is_noticed_on_both_sides(nodes: Nodes) -> None:
    """The end of a process closes its connections: the other side knows at once."""
    hub = nodes.head()
    nodes.join("first").line.close()
    assert nodes.lost.get(timeout=5) == ("first", "its connection was closed")

    second = nodes.join("second")
    hub.present()[0].line.close()
    assert ends(second) == "the head at 127.0.0.1 has gone without a word"


def test_a_worker_that_comes_back_replaces_itself(nodes: Nodes) -> None:
    """A node that was cut off and starts again before its end was noticed gets its old rank, and nobody counts it as lost."""
    hub = nodes.head(nodes=3)
    before = nodes.join("same")
    nodes.join("other")
    before.closed = True  # no more beats
    wait_for(lambda: hub.silent() != "")

    after = nodes.join("same")

    assert after.rank == before.rank == 1
    assert "has gone without a word" in ends(before)
    assert [peer.name for peer in hub.present()] == ["same", "other"]
    assert nodes.lost.empty()
    after.tell({"say": "joined"})
    wait_for(lambda: hub.peers[1].joined)


def test_two_workers_of_one_name_are_two(nodes: Nodes) -> None:
    """Machines that are all called localhost do not push each other out."""
    hub = nodes.head(nodes=3)
    ranks = {nodes.join("localhost").rank for _ in range(2)}

    assert ranks == {1, 2}
    assert len(hub.present()) == 2


@pytest.mark.parametrize("asked", [True, False])
def test_the_heads_last_word_arrives(nodes: Nodes, asked: bool) -> None:
    """A worker learns that the head ends, why, and whether somebody wanted it."""
    hub = nodes.head()
    messages = nodes.join().messages()

    hub.close("its engine died", asked=asked)

    assert next(messages) == {"say": "end", "cause": "its engine died", "asked": asked}
    assert nodes.lost.empty()


def test_the_workers_words_arrive(nodes: Nodes) -> None:
    """The head hears what a worker says, and its last word is the cause of the loss."""
    nodes.head()
    member = nodes.join()
    member.tell({"say": "stopping"})
    member.close("Ray's raylet was killed by SIGKILL")

    assert nodes.heard.get(timeout=5) == {"say": "stopping"}
    assert nodes.lost.get(timeout=5) == ("w", "Ray's raylet was killed by SIGKILL")


def test_a_port_in_use_is_named(nodes: Nodes) -> None:
    """A head that cannot listen names the address and the setting."""
    nodes.head()

    with pytest.raises(Refused, match=f"127.0.0.1:{nodes.port} cannot be used .*Address already in use.*\n.*LAUNCH_CLUSTER_PORT"):
        Hub(Channel(nodes.port, TOKEN, 1, print), 2, 0, AGREED).listen(HERE, {})


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        b"\x00\xff\xfe" * 100 + b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"[]\n",
        b"{}\n",
        b"[" * 60000 + b"\n",
        b"x" * (1 << 17),
        b'{"hello": 1, "challenge": 2, "proof": "\xc3\xa9"}\n',
        b'{"hello": {"gpus": "many"}, "challenge": {}, "proof": null}\n',
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_garbage_does_no_harm(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, garbage: bytes) -> None:
    """Whatever a stranger sends, it is cut off without a traceback, and a worker joins afterwards."""
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda thread: broken.append(thread.exc_type))
    nodes.head()
    with socket.create_connection((HERE, nodes.port), 2) as stranger:
        with contextlib.suppress(OSError):  # cut off before it has said all of it
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
        read_all(stranger)

    assert nodes.join().rank == 1
    assert broken == []


def test_a_worker_that_dies_in_the_handshake_leaves_no_ghost(nodes: Nodes) -> None:
    """The rank of a worker that was gone before its welcome is free."""
    hub = nodes.head()
    with hub.changed:  # the head waits with its welcome
        line = shake_hands(nodes, "ghost", rank=1)
        line.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(line.connection.detach())  # with a reset

    assert nodes.join("real", 1, rank=1).rank == 1
    assert [peer.name for peer in hub.present()] == ["real"]


@pytest.mark.parametrize("said", [b"", b'{"hello"'], ids=["idle", "half a line"])
def test_strangers_do_not_keep_a_worker_out(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """A hundred connections that prove nothing are dropped at their deadline, and a worker gets in."""
    monkeypatch.setattr(peers, "HANDSHAKE", 0.5)
    nodes.head()
    strangers = [socket.create_connection((HERE, nodes.port), 5) for _ in range(100)]
    for stranger in strangers:
        try:
            stranger.sendall(said)
        except OSError:
            continue  # one of those for whom there was no room

    assert nodes.join(seconds=10).rank == 1

    for stranger in strangers:
        stranger.close()


def test_slow_strangers_do_not_keep_a_worker_out(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of the handshake is one for all of it: a byte now and then does not move it."""
    monkeypatch.setattr(peers, "HANDSHAKE", 1.0)
    monkeypatch.setattr(peers, "STRANGERS", 2)
    nodes.head()
    strangers = [socket.create_connection((HERE, nodes.port), 5) for _ in range(2)]
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.1):
            for stranger in strangers:
                try:
                    stranger.sendall(b"x")
                except OSError:
                    continue

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        assert nodes.join(seconds=4).rank == 1
    finally:
        done.set()
        thread.join()
        for stranger in strangers:
            stranger.close()
