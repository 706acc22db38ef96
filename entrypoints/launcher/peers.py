"""The nodes of one stack, talking to each other: who is there, who has gone, and why.

One TCP connection from every worker to the head, a line of JSON a message. Both sides prove that they know the cluster's token
before anything else is said; the token itself never travels. Both send a beat every two seconds, so that a node that is gone,
cut off or frozen is noticed on either side after `silence` seconds, whatever the engine, Ray or the kernel know of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from launcher.errors import LaunchError, Refused, Unavailable
from launcher.network import resolve

PROTOCOL = 1
BEAT = 2.0  # seconds between two signs of life
QUIET = 3 * BEAT  # so many seconds without one are a suspicion
HANDSHAKE = 10.0  # deadline of everything that comes before the token is proven
STRANGERS = 32  # connections at once that have proven nothing yet
MOST = 1 << 16  # bytes of a line
BACK_OFF = (0.5, 5.0)  # seconds between two tries to reach the head: at first, and at most

Message = dict[str, Any]


class Channel(NamedTuple):
    """What both ends have in common. `silence` in seconds; `say` prints a line."""

    port: int
    token: str
    silence: float
    say: Callable[[str], None]


class Line:
    """One connection: whole messages in and out. Not to be read by two threads; any may write."""

    def __init__(self, connection: socket.socket) -> None:
        """Nothing is sent yet."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.rest = b""  # what has come after the last message
        self.lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other side is gone."""
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            self.connection.sendall(data)

    def receive(self, seconds: float) -> Message:
        """Wait for one message. Raises OSError when it does not come (TimeoutError: silence) and ValueError when it is none."""
        deadline = time.monotonic() + seconds  # of the whole message: a byte now and then is no message
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            data = self.connection.recv(MOST)
            if not data or len(self.rest) > MOST:
                raise ConnectionResetError("the connection was closed")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            message = json.loads(line)
        except RecursionError:
            raise ValueError("no message") from None
        if not isinstance(message, dict):
            raise ValueError("no message")  # noqa: TRY004 - of the same kind as what json raises
        return message

    def close(self) -> None:
        """Close it; a reader in another thread wakes up."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def proof(token: str, *parts: str) -> str:
    """What only a holder of the token can say about both challenges and the message between them."""
    return hmac.new(token.encode(), "\0".join(parts).encode(), hashlib.sha256).hexdigest()


class Peer:
    """A worker as the head sees it."""

    def __init__(self, rank: int, line: Line, hello: Message, address: str) -> None:
        """As it introduced itself; `joined` once its part of the executor runs."""
        self.rank, self.line, self.address = rank, line, address
        self.name, self.gpus = str(hello.get("name", "?")), int(hello.get("gpus", 0))
        self.joined = False
        self.heard = time.monotonic()

    def silence(self) -> float:
        """Seconds since it was last heard."""
        return time.monotonic() - self.heard

    def __str__(self) -> str:
        """Its rank, name and address."""
        return f"node {self.rank} ({self.name}, {self.address})"


class Hub:
    """The head's side. `on_lost(peer, cause)` and `on_said(peer, message)` are called from threads of its own."""

    def __init__(self, channel: Channel, nodes: int, gpus: int, agreed: Mapping[str, object]) -> None:
        """`nodes` counts the head; `gpus` are wanted on each node; workers must say the same as `agreed`."""
        self.channel, self.nodes, self.gpus, self.agreed, self.say = channel, nodes, gpus, dict(agreed), channel.say
        self.peers: dict[int, Peer] = {}
        self.gone: dict[int, tuple[str, float]] = {}  # who was here once, and until when
        self.changed = threading.Condition()
        self.welcome: Message = {}
        self.complete = False
        self.closed = False
        self.on_lost: Callable[[Peer, str], None] = lambda _peer, _cause: None
        self.on_said: Callable[[Peer, Message], None] = lambda _peer, _message: None
        self.strangers = threading.Semaphore(STRANGERS)

    def listen(self, ip: str, welcome: Message) -> None:
        """Take connections from now on. Raises Refused when the port is taken."""
        self.welcome = welcome
        try:
            self.server = socket.create_server((ip, self.channel.port), backlog=64)
        except OSError as error:
            raise Refused(
                f"{ip}:{self.channel.port} cannot be used by the nodes of this stack: {os.strerror(error.errno or 0)}.\n"
                "Stop what listens there (`ss -ltnp`), or set LAUNCH_CLUSTER_PORT on every node to another."
            ) from None
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, message: Message) -> None:
        """Say something to all workers."""
        for peer in self.present():
            with contextlib.suppress(OSError):
                peer.line.send(message)

    def present(self) -> list[Peer]:
        """Workers that are connected, by rank."""
        with self.changed:
            return [self.peers[rank] for rank in sorted(self.peers)]

    def wait(self, began: float, seconds: float) -> None:
        """Return when every node has joined with the GPUs that are wanted.

        Raises Unavailable `seconds` after `began` (of the monotonic clock), naming who is missing.
        """
        deadline, next_word = began + seconds, time.monotonic() + 5
        with self.changed:
            while self._missing():
                now = time.monotonic()
                if now >= deadline:
                    raise Unavailable(
                        f"The stack is not complete after {seconds:g} s: {self.state()}.\n"
                        "Start the missing workers with LAUNCH_HEAD at this node, or set LAUNCH_JOIN_SECONDS to wait longer."
                    )
                if now >= next_word:
                    self.say(f"waiting for nodes: {self.state()}")
                    next_word = now + 15
                self.changed.wait(min(deadline, next_word) - now)
            self.complete = True

    def state(self) -> str:
        """Who is there and who is not: "have 1 of 2 nodes, 4 of 8 GPUs; missing node 1 (never seen)"."""
        here = [peer for peer in list(self.peers.values()) if peer.joined]
        text = f"have {1 + len(here)} of {self.nodes} nodes"
        if self.gpus:
            text += f", {self.gpus + sum(min(peer.gpus, self.gpus) for peer in here)} of {self.gpus * self.nodes} GPUs"
        return "; ".join([text, *(reason for reason in self._missing() if reason)])

    def silent(self) -> str:
        """The worker that has missed several beats, and for how long; empty when none has."""
        return next((f"{peer}: no sign of life for {peer.silence():.0f} s" for peer in self.present() if peer.silence() > QUIET), "")

    def _missing(self) -> list[str]:
        reasons = []
        for rank in range(1, self.nodes):
            peer = self.peers.get(rank)
            if peer is None:
                name, when = self.gone.get(rank, ("", 0.0))
                seen = f"last seen {time.monotonic() - when:.0f} s ago as {name}" if name else "never seen"
                reasons.append(f"missing node {rank} ({seen})")
            elif not peer.joined:
                reasons.append(f"{peer} is here and has not joined yet")
            elif peer.gpus < self.gpus:
                reasons.append(f"{peer} has {peer.gpus} GPUs, wanted {self.gpus}")
        return reasons

    def close(self, cause: str, *, asked: bool) -> None:
        """Tell the workers that this is the end, and why; `asked` when somebody wanted it."""
        self.closed = True
        self.tell({"say": "end", "cause": cause, "asked": asked})
        with contextlib.suppress(AttributeError, OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which would keep the port
            self.server.close()
        for peer in self.present():
            peer.line.close()

    def _accept(self) -> None:
        while not self.closed:
            try:
                connection, (ip, *_) = self.server.accept()
            except OSError:
                time.sleep(0.1)
                continue
            if self.strangers.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(connection, ip), daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket, ip: str) -> None:
        line, peer = Line(connection), None
        try:
            peer = self._admit(line, ip)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            line.close()  # it has proven nothing: not worth a word
        finally:
            self.strangers.release()
        if peer:
            self._follow(peer)

    def _admit(self, line: Line, ip: str) -> Peer | None:
        mine = secrets.token_hex(16)
        connection_deadline = time.monotonic() + HANDSHAKE
        line.connection.settimeout(HANDSHAKE)
        line.send({"engineroom": PROTOCOL, "challenge": mine})
        answer = line.receive(max(0.1, connection_deadline - time.monotonic()))
        hello, theirs = answer["hello"], str(answer["challenge"])
        wanted = proof(self.channel.token, "worker", mine, theirs, json.dumps(hello, sort_keys=True))
        if not hmac.compare_digest(wanted, str(answer["proof"])):
            self.say(f"{ip} offered a wrong token and was refused")
            line.send({"refused": "token"})
            line.close()
            return None
        with self.changed:
            peer, reason, final = self._place(line, hello, ip)
            if peer:
                welcome = {**self.welcome, "rank": peer.rank}
                line.send(
                    {"welcome": welcome, "proof": proof(self.channel.token, "head", theirs, mine, json.dumps(welcome, sort_keys=True))}
                )
                self.peers[peer.rank] = peer
                self.changed.notify_all()
        if peer:
            self.say(f"{peer} is here")
            return peer
        self.say(f"{hello.get('name', '?')} ({ip}) was refused: {reason}")
        line.send({"refused": reason, "final": final})
        line.close()
        return None

    def _place(self, line: Line, hello: Message, ip: str) -> tuple[Peer | None, str, bool]:
        """A rank for a newcomer, or why not, and whether another try is useless."""
        differs = [f"{key} {hello.get(key)} here, {value} at the head" for key, value in self.agreed.items() if hello.get(key) != value]
        if differs:
            return None, "the nodes must be alike: " + "; ".join(differs), True
        free = [rank for rank in range(1, self.nodes) if rank not in self.peers]
        rank = hello.get("rank")
        if rank is None:
            back = [peer.rank for peer in self.peers.values() if peer.name == hello.get("name") and peer.silence() > QUIET]
            rank = next(iter(back or free), None)
        if self.complete or rank is None:
            return None, "the stack is complete without this node", False
        if not isinstance(rank, int) or not 0 < rank < self.nodes:
            return None, f"it calls itself node {rank} of {self.nodes}", True
        if rank in self.peers:
            if self.peers[rank].silence() <= QUIET:
                return None, f"{self.peers[rank]} has that rank already", False
            self.peers[rank].line.close()  # cut off or frozen, and started again since
        return Peer(rank, line, hello, ip), "", False

    def _follow(self, peer: Peer) -> None:
        """Listen to a worker until it is gone."""
        cause = "its connection was closed"
        try:
            while True:
                message = peer.line.receive(self.channel.silence)
                peer.heard = time.monotonic()
                word = message.get("say")
                if word == "joined":
                    with self.changed:
                        peer.joined = True
                        self.changed.notify_all()
                elif word == "end":
                    cause = str(message.get("cause"))
                    break
                elif word != "beat":
                    self.on_said(peer, message)
        except TimeoutError:
            cause = f"no sign of life for {self.channel.silence:g} s"
        except (OSError, ValueError):
            pass
        peer.line.close()
        with self.changed:
            mine = self.peers.get(peer.rank) is peer
            if mine:
                del self.peers[peer.rank]
                self.gone[peer.rank] = (f"{peer.name}, {peer.address}", time.monotonic())
                self.changed.notify_all()
        if mine and not self.closed:
            self.on_lost(peer, cause)

    def _beat(self) -> None:
        while not self.closed:
            self.tell({"say": "beat"})
            time.sleep(BEAT)


class Member:
    """A worker's side: one connection to the head."""

    def __init__(self, line: Line, welcome: Message, ip: str, silence: float) -> None:
        """Connected and welcomed; `ip` is where the head was found."""
        self.line, self.welcome, self.ip, self.silence = line, welcome, ip, silence
        self.rank = int(welcome["rank"])
        self.deaf = False
        self.closed = False
        threading.Thread(target=self._beat, daemon=True).start()

    def messages(self) -> Iterator[Message]:
        """What the head says, until it goes. Raises Unavailable with the cause when it goes without a word."""
        while True:
            try:
                message = self.line.receive(self.silence)
            except TimeoutError:
                raise Unavailable(f"no sign of life from the head at {self.ip} for {self.silence:g} s") from None
            except (OSError, ValueError):
                raise Unavailable(f"the head at {self.ip} has gone without a word") from None
            if message.get("say") != "beat":
                yield message

    def tell(self, message: Message) -> None:
        """Say something to the head, or note that it takes nothing any more; a beat finds that out within seconds."""
        try:
            self.line.send(message)
        except OSError:
            self.deaf = True

    def close(self, cause: str = "") -> None:
        """Hang up, with a last word if there is one."""
        self.closed = True
        if cause:
            self.tell({"say": "end", "cause": cause})
        self.line.close()

    def _beat(self) -> None:
        while not self.closed:
            self.tell({"say": "beat"})
            time.sleep(BEAT)


def join(channel: Channel, head: str, hello: Message, deadline: float) -> Member:
    """Find the head and be welcomed, trying again with a growing, random pause until `deadline` (of the monotonic clock).

    The name is looked up anew at each try. Raises Unavailable at the deadline and Refused when trying again is useless.
    """
    began, pause, said = time.monotonic(), BACK_OFF[0], ""
    while True:
        try:
            ip = resolve(head)
            return _introduce(channel, head, ip, hello)
        except Unavailable as error:
            problem = str(error)
        now = time.monotonic()
        if now >= deadline:
            raise Unavailable(
                f"The head {head}, port {channel.port}, was not joined in {now - began:.0f} s: {problem}.\n"
                "Start the head, check the name and that the port is open between the nodes, or set LAUNCH_JOIN_SECONDS to wait longer."
            )
        if problem != said:
            channel.say(f"the head is not there yet: {problem}; trying again for {deadline - now:.0f} s")
            said = problem
        time.sleep(min(pause * random.uniform(0.5, 1), max(0.0, deadline - now)))  # noqa: S311 - spreads the tries of many workers
        pause = min(pause * 2, BACK_OFF[1])


def _introduce(channel: Channel, head: str, ip: str, hello: Message) -> Member:
    token = channel.token
    where = f"{head} ({ip}) port {channel.port}" if ip != head else f"{ip} port {channel.port}"
    try:
        line = Line(socket.create_connection((ip, channel.port), timeout=HANDSHAKE))
    except OSError as error:
        raise Unavailable(f"{where}: {error.strerror or error}") from None
    try:
        first = line.receive(HANDSHAKE)
        if first.get("engineroom") != PROTOCOL:
            raise Refused(f"{where} is no head of this release: it speaks protocol {first.get('engineroom')}, this is {PROTOCOL}.")
        mine, theirs = secrets.token_hex(16), str(first["challenge"])
        said = json.dumps(hello, sort_keys=True)
        line.send({"hello": hello, "challenge": mine, "proof": proof(token, "worker", theirs, mine, said)})
        answer = line.receive(HANDSHAKE)
        if answer.get("refused") == "token":
            raise Refused(
                f"The head {where} refuses this node: its token is another.\n"
                "Give every node the same LAUNCH_CLUSTER_TOKEN, or LAUNCH_CLUSTER_TOKEN_FILE with the same content."
            )
        if "refused" in answer:
            problem = f"the head {where} refuses this node: {answer['refused']}"
            raise Refused(f"{problem[0].upper()}{problem[1:]}.") if answer.get("final") else Unavailable(problem)
        welcome = answer["welcome"]
        if not hmac.compare_digest(proof(token, "head", mine, theirs, json.dumps(welcome, sort_keys=True)), str(answer["proof"])):
            raise Refused(f"Who answers at {where} does not know the cluster's token. Check LAUNCH_HEAD and the token.")
        return Member(line, welcome, ip, channel.silence)
    except LaunchError:
        line.close()
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        line.close()
        raise Unavailable(f"{where} does not answer as a head does ({error})") from None
