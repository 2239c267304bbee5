"""Engines, rules and clocks that let a test see and decide when things happen in an exchange."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import OnePass, until
from torch import Tensor

from feddkd.aggregator.rule import Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.engines.grpc import GrpcEngine
from feddkd.tensors import Segment
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import Holding
from feddkd.transport.sessions import Session


class WatchedEngine(GrpcEngine):
    """Says what its clients do.

    Attributes:
        chunks: chunks of replies that have been taken in, by client.
        holdings: each client that connected, with what it said it had, in order.
        losses: released once for every connection that is lost.
        on_chunk: called on the server's loop after each chunk, with the client.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chunks: Counter[str] = Counter()
        self.holdings: list[tuple[str, Holding | None]] = []
        self.losses = threading.Semaphore(0)
        self.on_chunk: Callable[[str], object] = lambda _: None

    def connected(self, session: Session, holding: Holding | None) -> None:
        self.holdings.append((session.client_id, holding))
        super().connected(session, holding)

    def disconnected(self, session: Session) -> None:
        super().disconnected(session)
        self.losses.release()

    async def received(self, session: Session, chunk: Chunk) -> None:
        await super().received(session, chunk)
        self.chunks[session.client_id] += 1
        self.on_chunk(session.client_id)

    def wait_for_chunks(self, **chunks: int) -> None:
        """Return once so many chunks of each client have been taken in."""
        until(lambda: all(self.chunks[client] >= count for client, count in chunks.items()))


@dataclass(frozen=True, eq=False)
class WatchedMean:
    """The weighted mean; says when it has reduced its first block, and may wait there.

    Attributes:
        begun: set when the first block is reduced.
        go_on: set this to let it go on.
    """

    passes: int = 1
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def held(cls) -> WatchedMean:
        """One that waits after its first block."""
        return cls()

    @classmethod
    def free(cls) -> WatchedMean:
        """One that does not wait."""
        rule = cls()
        rule.go_on.set()
        return rule

    def start(self, clients: Sequence[str]) -> _Watched:
        return _Watched(self)


class _Watched(OnePass):
    def __init__(self, rule: WatchedMean) -> None:
        self._rule = rule
        self._mean = WeightedMean().start()

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        self._mean.reduce(block, rows, out)
        self._rule.begun.set()
        self._rule.go_on.wait()


class Clock:
    """The time that exchanges go by. It stands still until a test moves it.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, engine: GrpcEngine, seconds: float) -> None:
        """Let time pass for the engine's open exchanges."""
        self.now += seconds

        async def wake() -> None:
            for begun in list(engine._open):
                begun._changed.set()

        engine._server.call(wake()).result()
