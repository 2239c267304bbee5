"""The time that a client has to come back, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import RUN_ID, SCHEMA, small_config

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.intake import Intake
from feddkd.engines.upload import Progress
from feddkd.exchange import ExchangeId
from feddkd.transport.sessions import Session, Stream

CLIENT = "client-1"


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is told otherwise."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def advance_to(self, now_s: float) -> None:
        self.now_s = now_s
        self.run_until_complete(asyncio.sleep(0))


class Federation:
    """An engine in the middle of an exchange with one client, which comes and goes as the test says."""

    def __init__(self, grace_s: float, clock: Clock, executor: ThreadPoolExecutor) -> None:
        self.engine = GrpcEngine(small_config(f"scheduler.reconnect_grace_s={grace_s}"), RUN_ID, SCHEMA)
        self.session = Session(CLIENT, 1, "instance", stream=Stream())
        self.engine._server._sessions[CLIENT] = self.session
        self.intake = Intake(
            ExchangeId(RUN_ID, 1, 0, "local_train", 0),
            {CLIENT: 1.0},
            SCHEMA,
            rule=WeightedMean,
            chunk_bytes=1024,
            staging_bytes=1024,
            stall_timeout_s=1.0,
            ask_again=self.engine._ask_again,
            executor=executor,
        )
        self.engine._intake, self.engine._work = self.intake, (b"", None)  # type: ignore[assignment]
        self._clock = clock

    def lose(self, at_s: float) -> None:
        self._clock.advance_to(at_s)
        self.session.stream = None
        self._clock.call_soon(self.engine.disconnected, self.session)
        self._clock.advance_to(at_s)

    def come_back(self, at_s: float) -> None:
        self._clock.advance_to(at_s)
        self.session.stream = Stream()
        self.engine.connected(self.session)

    def progress(self, at_s: float) -> Progress:
        self._clock.advance_to(at_s)
        return self.intake.uploads[CLIENT].progress


@pytest.fixture
def federation() -> Iterator[Federation]:
    """Gives its client one second to come back."""
    clock = Clock()
    with ThreadPoolExecutor(1) as executor:
        found = Federation(1.0, clock, executor)
        yield found
        found.engine._server.stop()
    clock.close()


def test_a_client_that_does_not_come_back_in_time_is_left_out(federation: Federation) -> None:
    federation.lose(0.0)
    assert federation.progress(0.9) is Progress.AWAITED
    assert federation.progress(1.1) is Progress.LOST
    assert federation.intake.uploads[CLIENT].reason == "disconnected"


def test_a_client_that_is_back_in_time_stays(federation: Federation) -> None:
    federation.lose(0.0)
    federation.come_back(0.3)
    assert federation.progress(9.0) is Progress.AWAITED


def test_each_loss_has_its_own_time(federation: Federation) -> None:
    federation.lose(0.0)
    federation.come_back(0.3)
    federation.lose(0.9)
    assert federation.progress(1.8) is Progress.AWAITED
    assert federation.progress(2.0) is Progress.LOST
