"""A large upload over a line that is cut again and again goes on where the server's bytes end."""

from __future__ import annotations

import random
from concurrent.futures import Future

import pytest
import torch
from cable import Cable
from harness import RUN_ID, FakeWorker, Server, exchange_of, filled, serving, small_config, start_agent

from feddkd.bench.throttle import throttled
from feddkd.client import backoff
from feddkd.client.agent import Agent, Farewell
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, Outcome, Reply, Task
from feddkd.observability.wall_time import Link
from feddkd.tensors import Schema, Tensors, TensorSpec

SEED = 0
CUTS = 10
CHUNK_BYTES = 1 << 18
"""With the default of 1 MiB, half a chunk at each cut would be 5 % already."""

LINE = Link(4e8, 1e10, rtt_s=0.01)
"""No faster than a server reads: on a line without a limit, a window of 2 MB of unread bytes is lost at each cut."""
PATIENT = Closing(1000.0, reconnect_grace_s=1000.0, stall_timeout_s=1000.0)


def upload(address: str, cable: Cable, server: Server, model: Tensors, update: Tensors, cuts: list[int]) -> Outcome:
    """Let a client at the end of the cable upload `update`, with a cut at each of these bytes of what crosses upwards."""

    def reply(_: Task) -> Reply:
        begun.append(cable.crossed["up"])
        cable.cut_at("up", *steps)
        return Reply(update)

    begun: list[int] = []
    steps = [cut - before for before, cut in zip([0, *cuts[:-1]], cuts, strict=True)]
    agent = Agent(address, "site", FakeWorker(reply, update.schema), server._threads, retry_for_s=60)
    farewell: Future[Farewell] = start_agent(agent)
    server.wait_for("site")
    outcome = server.engine.carry_out(exchange_of(["site"], model, reply_schema=update.schema, closing=PATIENT))
    assert len(begun) == 1  # computed once
    server.wait_for("site")
    server.engine.finish(completed=True, reason="the test is over")
    assert farewell.result().completed
    return outcome


@pytest.mark.parametrize("resets", [False, True], ids=["ended", "reset"])
def test_100_mb_cut_at_10_random_bytes_cross_once(resets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What crosses again is the beginning of a chunk at each cut, and what the server had not read: less than 5 %."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    schema = Schema([TensorSpec("w", torch.float32, (25_000_000,))])
    model, update = Tensors(schema), filled(schema, 1)
    cuts = sorted(random.Random(SEED).sample(range(schema.size_bytes), CUTS))
    engine = GrpcEngine(small_config(f"transport.chunk_bytes={CHUNK_BYTES}"), RUN_ID, schema)
    with serving(engine=engine) as server, Cable(server.address, resets=resets) as cable, throttled(cable.address, [LINE]) as (address,):
        outcome = upload(address, cable, server, model, update, cuts)
        crossed = cable.crossed["up"]
    assert cable.cuts == CUTS
    assert outcome.missing == {}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == update.sha256()
    assert crossed < 1.05 * schema.size_bytes
