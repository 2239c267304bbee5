"""Hostile clients of a live server, by the dozen and from a seed.

None of their contributions is one that the server may count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random

from hostile_answers import INT64, TEXTS, UINT32
from hostile_messages import HEARTBEAT, Situation
from hostile_peers import Peer, Stream, Tally

from feddkd.transport.pb import federation_pb2 as pb

THREADS = 6
SILENT_STREAMS = 4

# What hostile peers do.


def talk(peer: Peer, name: str) -> None:
    """A client that says many things, and ends in one of many ways."""
    stream = peer.member(name)
    if stream is None:
        return
    if peer.random.random() < 0.7:
        stream.listen()
    stream.send(*peer.messages.some(peer.random.choice([5, 30, 60])))
    match peer.random.randrange(3):
        case 0:
            stream.flush()
        case 1:
            stream.half_close()
            stream.listen().wait()
        case _:
            pass  # hang up at once, whatever is on its way
    stream.hang_up()


def flood_joins(peer: Peer, name: str) -> None:
    """Joins under ids of others, ids that are none, and new ones, with odd numbers."""
    for index in range(20):
        new, other = f"{name}.{index}", f"client-{peer.random.randrange(4)}"
        client_id = peer.random.choice([new, new, other, peer.random.choice(TEXTS)])
        examples = peer.random.choice(INT64)
        peer.join(client_id, examples=examples, instance=peer.random.choice(TEXTS))


def call_with_garbage(peer: Peer, _: str) -> None:
    """Unary calls with bytes of no meaning, of other versions, and of unknown methods."""
    for _attempt in range(5):
        method = peer.random.choice(["Join", "Describe", "Participate", "Nothing", ""])
        version = pb.DescribeRequest(protocol_version=peer.random.choice(UINT32))
        size = peer.random.choice([0, 1, 40, 5000])
        messages = [peer.random.randbytes(size), version.SerializeToString()]
        peer.call(method, peer.random.choice(messages))
    if peer.random.random() < 0.05:
        peer.call("Join", bytes(5 << 20))


def knock(peer: Peer, _: str) -> None:
    """Streams that begin with anything but the greeting of a session."""
    for _attempt in range(5):
        stream = peer.stream().send(*peer.messages.some(1))
        stream.half_close()
        stream.listen().wait()
        stream.hang_up()


def come_twice(peer: Peer, name: str) -> None:
    """Two streams of one session, or two sessions of one client, that talk at the same time."""
    token = peer.join(name)
    if token is None:
        return
    first = peer.stream().greet(token).listen().send(*peer.messages.some(10))
    if peer.random.random() < 0.5:
        token = peer.join(name) or token
    second = peer.stream().greet(token).listen()
    for _ in range(5):
        first.send(*peer.messages.some(2))
        second.send(*peer.messages.some(2))
    second.flush()
    first.hang_up()
    second.hang_up()


def never_read(peer: Peer, name: str) -> None:
    """Make the server answer, and take none of its answers."""
    stream = peer.member(name)
    if stream is None:
        return
    past = peer.random.choice([*peer.situation.past, pb.ExchangeId(name=peer.random.choice(TEXTS))])
    failure = pb.ParticipateRequest(failure=pb.Failure(id=past, reason="x")).SerializeToString()
    stream.send(*[failure] * 100)
    stream.flush()
    stream.hang_up()


def beat(peer: Peer, name: str) -> None:
    """Heartbeats without end."""
    stream = peer.member(name)
    if stream is None:
        return
    stream.listen().send(*[HEARTBEAT] * 200)
    stream.flush()
    stream.hang_up()


def send_too_much(peer: Peer, name: str) -> None:
    """One message beyond any limit."""
    stream = peer.member(name)
    if stream is None:
        return
    kind = peer.random.choice([b"\x12", b"\x1a", b"\x22"])
    stream.listen().send(kind + b"\xff\xff\xff\x02" + bytes(5 << 20))
    stream.flush()
    stream.hang_up()


def bypass_grpc(peer: Peer, _: str) -> None:
    """Bytes on the port that are not HTTP/2, or stop being it."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    other_protocols = [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]
    beginnings = [b"", preface, preface + bytes(9), *other_protocols]
    for _attempt in range(5):
        rest = peer.random.randbytes(peer.random.choice([0, 9, 300]))
        peer.raw(peer.random.choice(beginnings) + rest)


BEHAVIOURS: tuple[tuple[Callable[[Peer, str], None], float], ...] = (
    (talk, 10),
    (flood_joins, 1),
    (call_with_garbage, 1),
    (knock, 1),
    (come_twice, 2),
    (never_read, 1),
    (beat, 0.5),
    (send_too_much, 0.1),
    (bypass_grpc, 0.5),
)


@dataclass(frozen=True)
class Member:
    """A hostile client that the server takes into the next round."""

    peer: Peer
    token: str
    stream: Stream

    def answer(self, situation: Situation) -> bool:
        """Answer an exchange in ways that cannot be counted; whether the server asked for it."""
        peer = self.peer
        peer.situation = peer.messages.situation = situation
        # Only in its first exchange does a round ask a client that has not trained in it.
        expected = situation.exchange.name in ("local_train", "deliver")
        asked = expected and self.stream.next("work") is not None
        if asked:
            peer.random.choice([self._talk, self._come_back, self._fail])(situation)
        self.stream.hang_up()
        peer.close()
        return asked

    def _talk(self, situation: Situation) -> None:
        """Send an answer, other messages, and the answer again; read all that comes."""
        upload = self.peer.messages.upload(situation.exchange)
        self.stream.send(*upload, *self.peer.messages.some(5), *upload)
        self.stream.half_close()
        while self.stream.next("receipt") is not None:
            pass

    def _come_back(self, situation: Situation) -> None:
        """Lose the connection in the middle of an answer; come back with it, or with another."""
        random, upload = self.peer.random, self.peer.messages.upload(situation.exchange)
        self.stream.send(*upload[: random.randrange(len(upload) + 1)]).flush()
        self.stream.hang_up()
        for _ in range(3):
            stream = self.peer.stream().greet(self.token).listen()
            rest = upload[random.randrange(len(upload)) :]
            another = self.peer.messages.upload(situation.exchange)
            stream.send(*random.choice([upload, rest, upload[:1] + rest, another])).flush()
            stream.hang_up()

    def _fail(self, situation: Situation) -> None:
        """Say in odd words that it cannot be done."""
        for _ in range(3):
            failure = pb.Failure(id=situation.exchange, reason=self.peer.random.choice(TEXTS))
            self.stream.send(pb.ParticipateRequest(failure=failure).SerializeToString())
        self.stream.flush()


class Horde:
    """Hostile clients that attack one exchange after another.

    Attributes:
        works: how often the server asked one of them to compute.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.tally = Tally()
        self.works = 0
        self._address = address
        self._seed = seed
        self._phase = 0
        self._members: list[Member] = []

    def attack(self, situation: Situation, messages: int) -> None:
        """Send so many messages while an exchange is open, then close all connections."""
        until = self.tally.sent + messages
        with self._silent_streams(situation), ThreadPoolExecutor(THREADS) as threads:
            members, self._members = self._members, []
            self.works += sum(threads.map(lambda member: member.answer(situation), members))
            scripts = iter(range(1 << 62))
            play = partial(self._play, scripts, situation, until)
            for playing in [threads.submit(play) for _ in range(THREADS)]:
                playing.result()

    def _play(self, scripts: Iterator[int], situation: Situation, until: int) -> None:
        """Play one script after another; each has its own seed."""
        behaviours, weights = zip(*BEHAVIOURS, strict=True)
        while self.tally.sent < until:
            name = f"hostile-{self._phase}-{next(scripts)}"  # one step of the interpreter
            peer = self._peer(name, situation)
            (behaviour,) = peer.random.choices(behaviours, weights)
            behaviour(peer, name)
            peer.close()

    def _peer(self, name: str, situation: Situation) -> Peer:
        return Peer(self._address, Random(f"{self._seed}/{name}"), situation, self.tally)

    @contextmanager
    def _silent_streams(self, situation: Situation) -> Iterator[None]:
        """Streams that never say whose they are."""
        peer = self._peer("silent", situation)
        streams = [peer.stream() for _ in range(SILENT_STREAMS)]
        yield
        for stream in streams:
            stream.hang_up()
        peer.close()

    def enlist(self, situation: Situation, members: int) -> None:
        """Connect members; returns when the server has them."""
        self._phase += 1
        for index in range(members):
            name = f"member-{self._phase}-{index}"
            peer = self._peer(name, situation)
            if (token := peer.join(name)) is None:
                peer.close()
                continue
            self._members.append(Member(peer, token, peer.stream().greet(token).listen()))
        stranger = pb.Failure(id=pb.ExchangeId(run_id="none"), reason="hello")
        for member in self._members:
            member.stream.send(pb.ParticipateRequest(failure=stranger).SerializeToString())
        for member in self._members:
            member.stream.next("receipt")  # now its stream is open

    def close(self) -> None:
        """Hang up."""
        for member in self._members:
            member.stream.hang_up()
            member.peer.close()
