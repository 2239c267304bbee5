"""What clients are told of exchanges that have closed: once by a receipt, and again when they ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from feddkd.engines.collection import Judgement
from feddkd.exchange import ExchangeId
from feddkd.traffic import Meter
from feddkd.transport.messages import Holding, Verdict, receipt_message
from feddkd.transport.outbox import nothing
from feddkd.transport.sessions import Outgoing, Session


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a client is told when its exchange is acknowledged.

    Attributes:
        counted: the exchange has counted the message.
    """

    client: str
    exchange: ExchangeId
    judgement: Judgement
    message: bytes
    counted: bool


@dataclass(slots=True)
class _Told:
    """What a client was last told of a reply.

    Attributes:
        owed_bytes: of a receipt that its exchange has counted, and that the client has not been sent; or 0.
    """

    exchange: ExchangeId
    judgement: Judgement
    owed_bytes: int = 0


COUNTED = (Verdict.VERDICT_OK, Verdict.VERDICT_DUPLICATE)
"""Verdicts that say that a reply counts."""


class Receipts:
    """The last receipt of every client, the last one for a reply that counted, and the clients that ask for one.

    Lives on the server's loop.
    """

    def __init__(self, run_id: str, other: Meter) -> None:
        """Begin with clients that have been told nothing.

        Args:
            other: counts the answers to those who ask.
        """
        self._run_id = run_id
        self._other = other
        self._told: dict[str, _Told] = {}
        self._counted: dict[str, _Told] = {}
        self._questions: dict[str, Holding] = {}
        self._has_begun = False

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        """Take in the last exchange that each client's reply counted in, in an earlier process of the server."""
        for client, exchange in counted.items():
            self._counted[client] = _Told(exchange, Judgement(Verdict.VERDICT_OK))

    def send(self, receipt: Receipt, session: Session | None, on_written: Callable[[], None] = nothing) -> None:
        """Send a receipt, at the latest when its session is flushed; keep what it says for a client that is away and will ask."""
        told = self._told[receipt.client] = _Told(receipt.exchange, receipt.judgement)
        if receipt.judgement.verdict in COUNTED:
            self._counted[receipt.client] = told
        if session is not None and session.stream is not None:
            # With the next work, where that comes soon: until a client hears of its reply, it keeps it.
            meter = Meter() if receipt.counted else self._other
            session.send(Outgoing((receipt.message,), meter, on_written=on_written, lingers=True))
        elif receipt.counted:
            told.owed_bytes = len(receipt.message)

    def begin(self, clients: Iterable[str]) -> dict[str, Holding]:
        """Take in that an exchange begins; returns what its clients asked about before, and hear by taking part."""
        self._has_begun = True
        return {client: self._questions.pop(client) for client in clients if client in self._questions}

    def pause(self) -> None:
        """Take in that what was open has no outcome: another process of the server may open it again."""
        self._has_begun = False

    def ask(self, session: Session, holding: Holding, current: ExchangeId | None) -> None:
        """Answer a client that connects with a broadcast of an exchange that is not open, now or later."""
        if not self.answer(session, holding.exchange, current):
            self._questions[session.client_id] = holding

    def hang_up(self, client: str) -> None:
        """Take in that a client has gone: it will ask again."""
        self._questions.pop(client, None)

    def answer_questions(self, session_of: Callable[[str], Session | None], current_of: Callable[[str], ExchangeId | None]) -> None:
        """Answer those that asked, as far as the answer is known by now.

        Args:
            current_of: the exchange that is open for a client.
        """
        for client, holding in list(self._questions.items()):
            session = session_of(client)
            if session is not None and self.answer(session, holding.exchange, current_of(client)):
                del self._questions[client]

    def repeat(self, session: Session, exchange: ExchangeId, current: ExchangeId) -> None:
        """Say again what became of a reply, if it is the last one that this client was told of.

        Args:
            current: the exchange that is open for this client.
        """
        if self._find(session.client_id, exchange) is not None:
            self.answer(session, exchange, current)

    def answer(self, session: Session, exchange: ExchangeId, current: ExchangeId | None) -> bool:
        """Say what became of a reply to an exchange that is not open.

        Args:
            current: the exchange that is open for this client.

        Returns:
            Whether that is known: before the first exchange, and after an abort, one that was open may open again in
            this process of the server or a later one.
        """
        told = self._find(session.client_id, exchange)
        if told is None:
            if exchange.run_id == self._run_id and not self._has_begun:
                return False
            told = _Told(exchange, Judgement(Verdict.VERDICT_FAILED_PRECONDITION, f"{exchange} is closed"))
        message = receipt_message(exchange, told.judgement.verdict, told.judgement.reason, current)
        if told.owed_bytes:
            session.send(Outgoing((message,), Meter()))
            self._other.down(len(message) - told.owed_bytes)
            told.owed_bytes = 0
        else:
            session.send(Outgoing((message,), self._other))
        return True

    def _find(self, client: str, exchange: ExchangeId) -> _Told | None:
        """Find what a client was told of an exchange: of the last one, and of the last one that its reply counted in."""
        candidates = (self._told.get(client), self._counted.get(client))
        return next((told for told in candidates if told is not None and told.exchange == exchange), None)
