"""Keeps the sessions of the clients that have joined."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from feddkd.exchange import ExampleCounts
from feddkd.transport.outbox import Outgoing
from feddkd.transport.stream import Stream

__all__ = ["Outgoing", "Owner", "Session", "Sessions", "Stream"]

CONNECT_TIMEOUT_S = 10.0
"""Seconds a client that has joined has to open its stream; then its session makes room."""

ID_HOLD_S = 35.0
"""Seconds after a client's last message during which no other process gets its id."""

EXPIRED_AT_ONCE = 8
"""Expired sessions removed in one step, so that no step is long."""


class Owner(NamedTuple):
    """Proves that a process is the same client after a restart. Stores hashes, never the secret.

    Attributes:
        instance: SHA-256 of its instance id; None if it gave none.
        certificate: SHA-256 of its TLS certificate; None if it showed none.
        name: SHA-256 of its client id, where its certificate names that; None where it need not.
    """

    instance: bytes | None = None
    certificate: bytes | None = None
    name: bytes | None = None

    @classmethod
    def of(cls, instance_id: str, certificate: bytes | None, name: str | None = None) -> Self:
        """Hash what a client showed; `name` is its client id where its certificate names that."""
        return cls(_sha256(instance_id) if instance_id else None, certificate, _sha256(name) if name is not None else None)

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Read what `text` wrote. Raises ValueError."""
        known = dict.fromkeys(cls._fields, b"")
        for part in text.split():
            name, _, digits = part.partition(":")
            if name not in known or known[name] or len(digits) != 2 * hashlib.sha256().digest_size:
                raise ValueError(f"{text!r} does not name the owner of a client id")
            known[name] = bytes.fromhex(digits)
        return cls(*(known[name] or None for name in cls._fields))

    @property
    def text(self) -> str:
        """The hashes by their names, for instance "instance:2c26b4...": for a record that outlives the process."""
        return " ".join(f"{name}:{value.hex()}" for name, value in self._asdict().items() if value is not None)

    def is_also(self, other: Owner) -> bool:
        """Return whether both are one client: they share the instance id, the certificate, or a certified name.

        A renewed certificate is another one of the same name.
        """
        pairs = zip(self, other, strict=True)
        return any(mine is not None and mine == theirs for mine, theirs in pairs)


NOBODY = Owner()
NO_EXAMPLES = ExampleCounts(0)


@dataclass(slots=True, eq=False)
class Session:
    """A client that has joined; its stream comes and goes.

    Attributes:
        token: SHA-256 of the token that opens the stream.
        heard_at: when the client was heard last, on the loop's clock, if it has no stream.
        lost_at: when its last stream ended, on the loop's clock, if it has none.
        has_connected: the client, under this owner, has opened a stream before.
        lacks_constants: the client said that it does not hold the run's constants, and was not sent them since.
        leaves: the client said that it takes part no more until it joins again.
    """

    client_id: str
    counts: ExampleCounts
    owner: Owner = NOBODY
    token: bytes = b""
    heard_at: float = 0.0
    lost_at: float = 0.0
    has_connected: bool = False
    stream: Stream | None = None
    lacks_constants: bool = False
    leaves: bool = False

    def send(self, outgoing: Outgoing) -> None:
        """Write short messages when the client takes them; dropped if it is not connected."""
        if self.stream is not None:
            self.stream.send(outgoing)

    def send_work(self, outgoing: Outgoing) -> None:
        """Write a broadcast, in place of one that still waits; dropped if not connected."""
        if self.stream is not None:
            self.stream.send_work(outgoing)

    def leave(self) -> None:
        """Take in that the client takes part no more; its stream ends when what was sent before is written."""
        self.leaves = True
        if self.stream is not None:
            self.stream.close()

    def flush(self) -> None:
        """Write what was left to linger, if anything."""
        if self.stream is not None:
            self.stream.outbox.flush()

    def silent_s(self, now: float) -> float:
        """Return the seconds since the client was heard. From any thread."""
        stream = self.stream
        return now - self.heard_at if stream is None else stream.silent_s(now)

    @property
    def hold_s(self) -> float:
        """Seconds of silence after which another process may take the id over."""
        return ID_HOLD_S if self.has_connected or self.stream is not None else CONNECT_TIMEOUT_S


class Sessions:
    """All sessions, found by id and by token. No step of a join or of a stream looks at all.

    A session that never had a stream expires. When the table is full, one whose client has been
    away for long makes room, unless a certificate is bound to its id.

    After a restart of the server an id is reserved for its owner of before: as if that had been heard when the
    server began to listen, and was away since.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}
        self._by_token: dict[bytes, Session] = {}
        self._connected: dict[str, Session] = {}
        # Oldest first:
        self._never_connected: OrderedDict[str, Session] = OrderedDict()
        self._away: OrderedDict[str, Session] = OrderedDict()
        self._lost: OrderedDict[str, Session] = OrderedDict()
        self._of_certificate: Counter[bytes] = Counter()
        self._reserved: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, client_id: str) -> Session | None:
        return self._by_id.get(client_id)

    def reserve(self, owners: Mapping[str, Owner], now: float) -> None:
        """Take in who owned which id in an earlier process of the server."""
        for client_id, owner in owners.items():
            self._reserved[client_id] = Session(client_id, NO_EXAMPLES, owner, heard_at=now, has_connected=True)

    def holder(self, client_id: str) -> Session | None:
        """Return the session of an id, or that which it is reserved for."""
        return self._by_id.get(client_id) or self._reserved.get(client_id)

    def owners(self) -> dict[str, Owner]:
        """Return who owns the ids of clients that have opened a stream, or are expected back. From any thread."""
        sessions = [*list(self._reserved.values()), *list(self._by_id.values())]
        known = {session.client_id: session.owner for session in sessions if session.has_connected}
        return {client_id: owner for client_id, owner in sorted(known.items()) if owner != NOBODY}

    def of_token(self, token: str) -> Session | None:
        """Return the session that a token opens. A look-up of its hash: timing tells nothing."""
        return self._by_token.get(_sha256(token))

    def all(self) -> list[Session]:
        """Return all sessions in client order. From any thread: the copy is one step."""
        return _in_client_order(list(self._by_id.values()))

    def connected(self) -> list[Session]:
        """Return the sessions with a stream in client order. From any thread."""
        return _in_client_order(list(self._connected.values()))

    def present(self, since: float) -> list[Session]:
        """Return the sessions that have a stream, or lost it after `since`, in client order; none that leaves.

        Looks at no other session. On the loop only.
        """
        present = list(self._connected.values())
        for session in reversed(self._lost.values()):
            if session.lost_at <= since:
                break
            present.append(session)
        return _in_client_order([session for session in present if not session.leaves])

    def held_by(self, certificate: bytes) -> int:
        """Return how many ids are bound to a certificate."""
        return self._of_certificate[certificate]

    def add(
        self,
        client_id: str,
        counts: ExampleCounts,
        owner: Owner,
        now: float,
    ) -> tuple[Session, str]:
        """Add a session, in place of the one of this id. Returns it and its token."""
        token = secrets.token_hex(16)
        session = Session(client_id, counts, owner, _sha256(token), now, now)
        if (holder := self.holder(client_id)) is not None:
            session.has_connected = holder.has_connected and holder.owner.is_also(owner)
        if (previous := self._by_id.get(client_id)) is not None:
            self._remove(previous)
        self._reserved.pop(client_id, None)
        self._by_id[client_id] = self._by_token[session.token] = session
        if owner.certificate is not None:
            self._of_certificate[owner.certificate] += 1
        self._park(session)
        return session, token

    def connect(self, session: Session, stream: Stream) -> None:
        """Note that the client has opened a stream."""
        self._never_connected.pop(session.client_id, None)
        self._away.pop(session.client_id, None)
        self._lost.pop(session.client_id, None)
        self._connected[session.client_id] = session
        session.stream = stream
        session.has_connected = True

    def disconnect(self, session: Session, now: float) -> None:
        """Note that the client's stream is gone."""
        session.heard_at = now - session.silent_s(now)
        session.lost_at = now
        session.stream = None
        del self._connected[session.client_id]
        self._park(session)

    def expire(self, now: float) -> None:
        """Remove some of the sessions that never had a stream and are too old."""
        for _ in range(EXPIRED_AT_ONCE):
            oldest = next(iter(self._never_connected.values()), None)
            if oldest is None or oldest.silent_s(now) < CONNECT_TIMEOUT_S:
                return
            self._remove(oldest)

    def make_room(self, client_id: str, limit: int, now: float) -> bool:
        """Return whether a client may join, after removing a session or a reservation if that helps.

        A place is reserved for who took part before a restart of the server, as if that were away.
        """
        if client_id in self._by_id or client_id in self._reserved:
            return True
        if self._num_places >= limit:
            away = next(iter(self._away.values()), None), self._reserved_without_certificate()
            long_away = next((session for session in away if session is not None and session.silent_s(now) >= ID_HOLD_S), None)
            if long_away is not None:
                self._give_up(long_away)
        return self._num_places < limit

    @property
    def _num_places(self) -> int:
        return len(self._by_id) + len(self._reserved)

    def _reserved_without_certificate(self) -> Session | None:
        return next((session for session in self._reserved.values() if session.owner.certificate is None), None)

    def _give_up(self, session: Session) -> None:
        if self._reserved.pop(session.client_id, None) is None:
            self._remove(session)

    def _park(self, session: Session) -> None:
        """Note a session without a stream as the newest of its kind."""
        if not session.has_connected:
            self._never_connected[session.client_id] = session
            return
        self._lost[session.client_id] = session
        if session.owner.certificate is None:
            self._away[session.client_id] = session

    def _remove(self, session: Session) -> None:
        del self._by_id[session.client_id]
        del self._by_token[session.token]
        for place in (self._connected, self._never_connected, self._away, self._lost):
            place.pop(session.client_id, None)
        if (certificate := session.owner.certificate) is not None:
            self._of_certificate[certificate] -= 1
            if not self._of_certificate[certificate]:
                del self._of_certificate[certificate]


def _in_client_order(sessions: list[Session]) -> list[Session]:
    return sorted(sessions, key=lambda session: session.client_id)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
