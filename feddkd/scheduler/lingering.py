"""Delivers the final model to clients that missed its delivery."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from feddkd.errors import RunError, StateError
from feddkd.exchange import DELIVER, ExchangeId
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.events import DeliveredLate
from feddkd.scheduler.plan import ExchangePlan
from feddkd.tensors import Tensors

LOOK_S = 1.0
"""Seconds between two looks at who is there."""

OVER = "all rounds are done"


def deliver_late(
    engine: Engine,
    plan: ExchangePlan,
    last: ExchangeId,
    model: Tensors,
    missed: Collection[str],
    linger_s: float,
) -> Iterator[DeliveredLate]:
    """Deliver the model again and again to those who come, for `linger_s` seconds.

    Each client is tried once; a client that has the model may leave. Ends early when all clients that missed the
    model have it; if none is known, it serves every client that comes. An abort ends it, too: the run is over without these clients.

    Args:
        last: the newest delivery, whose clients are in the journal.
    """
    until, tried, done = time.monotonic() + linger_s, set[str](), set[str]()
    while (not missed or not done.issuperset(missed)) and (left_s := until - time.monotonic()) > 0:
        try:
            clients = [client for client in engine.clients() if client not in tried]
            if not clients:
                engine.wait_for_clients(len(engine.clients()) + 1, min(left_s, LOOK_S))
                continue
            identity = ExchangeId(last.run_id, last.round, last.attempt + 1, DELIVER, 0)
            outcome = engine.carry_out(plan.describe(identity, dict.fromkeys(clients, 1.0), model, evaluate=False))
            engine.let_go(list(outcome.replies), OVER)
        except StateError:
            raise
        except RunError:
            return
        last = identity
        tried.update(clients)
        done.update(outcome.replies)
        yield DeliveredLate(identity, tuple(outcome.replies), outcome.traffic)
