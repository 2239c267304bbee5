"""Hands what the clients send to the exchanges that they take part in."""

from __future__ import annotations

import asyncio
import logging

from feddkd.engines.grpc_exchange import GrpcExchange
from feddkd.engines.receipts import Receipts
from feddkd.exchange import ExchangeId
from feddkd.traffic import Meter
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import Holding, id_from_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Session

logger = logging.getLogger(__name__)


class ExchangeInbox:
    """Receives what the server reports; lives on its loop.

    Attributes:
        other: counts the messages that belong to no exchange.
        of_client: the open exchange that each client takes part in.
        receipts: what clients are told of those that have closed.
        joined: set whenever a client connects.
    """

    def __init__(self, run_id: str, other: Meter) -> None:
        self.other = other
        self.of_client: dict[str, GrpcExchange] = {}
        self.receipts = Receipts(run_id, other)
        self.joined = asyncio.Event()

    def connected(self, session: Session, holding: Holding | None) -> None:
        self.joined.set()
        begun = self.of_client.get(session.client_id)
        if begun is not None and begun.waits_for(session.client_id):
            if holding is not None and holding.exchange != begun.exchange.id:
                # Before the work: what a codec left out of a reply that counted is added to the next one.
                self.receipts.repeat(session, holding.exchange, begun.exchange.id)
            begun.connected(session, holding)
        elif begun is not None and holding is not None and holding.exchange == begun.exchange.id:
            begun.reconnected(session)
        elif holding is not None:
            self.receipts.ask(session, holding, self.current(session.client_id))

    def disconnected(self, session: Session) -> None:
        self.receipts.hang_up(session.client_id)
        begun = self.of_client.get(session.client_id)
        if begun is not None:
            begun.disconnected(session.client_id)

    def replied(self, session: Session, answer: pb.Answer) -> Meter:
        exchange = id_from_message(answer.id)
        begun = self.of_client.get(session.client_id)
        if begun is None or begun.exchange.id != exchange:
            self.receipts.answer(session, exchange, self.current(session.client_id))
            return self.other
        begun.replied(session, answer)
        return begun.meter

    def meter_of(self, session: Session) -> Meter:
        begun = self.of_client.get(session.client_id)
        return begun.meter if begun is not None and begun.is_sending(session.client_id) else self.other

    async def received(self, session: Session, chunk: Chunk) -> None:
        begun = self.of_client.get(session.client_id)
        if begun is not None:
            await begun.received(session, chunk)

    def failed(self, session: Session, failure: pb.Failure) -> Meter:
        exchange = id_from_message(failure.id)
        if failure.leaves:
            session.leave()
        begun = self.of_client.get(session.client_id)
        if begun is None or begun.exchange.id != exchange:
            self.receipts.answer(session, exchange, self.current(session.client_id))
            return self.other
        begun.failed(session.client_id, failure.reason)
        return begun.meter

    def lacking(self, session: Session, lacking: pb.Lacking) -> Meter:
        begun = self.of_client.get(session.client_id)
        if begun is None or begun.exchange.id != id_from_message(lacking.id):
            return self.other
        begun.lacking(session)
        return begun.meter

    def current(self, client: str) -> ExchangeId | None:
        """Return the exchange that a client takes part in."""
        begun = self.of_client.get(client)
        return begun.exchange.id if begun is not None else None
