"""A live server with an honest client, which nothing that another client sends may disturb."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from harness import SCHEMA, FakeWorker, HandClient, Server, answering, exchange_of, filled, serving

from feddkd.exchange import Outcome, Reply, Task
from feddkd.tensors import Schema

HONEST = filled(SCHEMA, 1)
OURS = filled(SCHEMA, 2)
MODEL = filled(SCHEMA, 0)


class Scene:
    """The server, the honest client, and the exchanges among its clients."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.round = 0

    def begin(
        self,
        *clients: str,
        reply_schema: Schema | None = SCHEMA,
        evaluate: bool = False,
    ) -> Future[Outcome]:
        """Carry out an exchange in the background."""
        self.round += 1
        exchange = exchange_of(
            clients,
            MODEL,
            round_number=self.round,
            reply_schema=reply_schema,
        )
        return self.server.begin(dataclasses.replace(exchange, evaluate=evaluate))

    def hand(self, client_id: str = "hand") -> HandClient:
        """A client whose messages are put together by hand."""
        return HandClient(self.server.address, client_id)

    @contextmanager
    def slow(self) -> Iterator[Callable[[], None]]:
        """Another honest client, "slow", that replies, and so lets an exchange end, when told to."""
        release = threading.Event()

        def respond(_: Task) -> Reply:
            release.wait()
            return Reply(HONEST)

        self.server.agent("slow", FakeWorker(respond))
        try:
            yield release.set
        finally:
            release.set()

    def check_alive(self) -> None:
        """Carry out an exchange with the honest client alone."""
        outcome = self.begin("honest").result()
        assert list(outcome.replies) == ["honest"]
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == HONEST.sha256()


@contextmanager
def live_scene() -> Iterator[Scene]:
    """A server to which the honest client is connected."""
    with serving() as server:
        server.agent("honest", answering(HONEST))
        server.wait_for("honest")
        yield Scene(server)


NOISE = ("ExecuteBatchError raised in core", "PollerCompletionQueue._handle_events")
"""What gRPC says when a client hangs up while a status is being sent, or a loop has ended; not about us."""


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What went wrong behind the scenes, as where a handler raised what it should not."""
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    return [message for message in errors if not any(noise in message for noise in NOISE)]


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """How a call is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value  # also a grpc.Call
    return error.code(), error.details()
