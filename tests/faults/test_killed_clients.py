"""A client that is killed at any point of its program comes back, and the run ends with the same model."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from gated import ClientProcess
from harness import (
    RUN_ID,
    SCHEMA,
    EngineProxy,
    HandClient,
    Recorder,
    answer_frames,
    exchange_of,
    filled,
    run_in_process,
    serving,
    small_config,
    until,
)
from watching import WatchedEngine

from feddkd import algorithms
from feddkd.client.process import main
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import FINAL_MODEL
from feddkd.config import Config
from feddkd.exchange import Closing
from feddkd.failpoints import CLIENT_FAILPOINTS, planned
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.transport.messages import Holding, Verdict, hello_message, id_from_message

ROUNDS = 2
VISITS = 3
NAMES = ["client-0", "client-1"]
OVERRIDES = (
    f"rounds={ROUNDS}",
    "dkd.steps=2",
    "partition.clients=2",
    "partition.labels=5",
    "scheduler.wait_for_clients=2",
    "scheduler.reconnect_grace_s=60",
    "transport.chunk_bytes=8192",
)
SETTINGS = {
    "feddkd": (),
    "feddkd, frugal": ("communication.preset=frugal",),
    "feddkd, topk": ("communication.up=topk:0.1", "communication.down=int8", "dkd.start=average"),
    "feddkd, randk": ("communication.up=randk:0.1",),
    "scaffold": ("algorithm.name=scaffold",),
    "fedavg": ("algorithm.name=fedavg",),
    "fedavg, topk": ("algorithm.name=fedavg", "communication.up=topk:0.1", "rounds=3"),
}


def killed_main(plan: str, arguments: Sequence[str]) -> int:
    with planned(plan):
        return main(arguments)


class Lingering(EngineProxy):
    """Serves on when the run is over, for a client that is killed at its very end."""

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        """Leave that to the test."""


class Federation:
    """Two clients and a server; one of the clients is killed at a point of its program."""

    def __init__(self, settings: str, folder: Path, *overrides: str) -> None:
        self.config: Config = small_config(*OVERRIDES, *SETTINGS[settings], *overrides)
        self.folder = folder
        (folder / "config.toml").write_text(self.config.to_toml())
        self.recorder = Recorder()

    @contextmanager
    def client(self, address: str, index: int, plan: str = "") -> Iterator[ClientProcess]:
        arguments = [str(self.folder / "config.toml"), "--server", address, "--state", str(self.folder / "clients"), "--clients"]
        process = ClientProcess([*arguments, str(index)], start=partial(killed_main, plan))
        try:
            yield process
        finally:
            process.close()

    def run(self, plan: str, between: Callable[[], object] = lambda: None) -> RunRecord:
        """Run all rounds; client 1 follows the plan, and is started again without one when that has killed it.

        Args:
            between: what happens before it is started again.
        """
        model = build_initial(self.config).model
        engine = WatchedEngine(self.config, RUN_ID, model.schema)
        connections = 1 if plan.startswith("client.join.after") else 2
        with serving(engine=engine) as server, self.client(server.address, 0):
            scheduler = Scheduler(self.config, algorithms.build(self.config), Lingering(engine), run_id=RUN_ID, observers=[self.recorder])
            running = server.background(lambda: scheduler.run(model))
            with self.client(server.address, 1, plan) as doomed:
                assert doomed.wait() == -signal.SIGKILL
            between()
            with self.client(server.address, 1) as again:
                record = running.result()
                until(lambda: sum(client == "client-1" for client, _ in engine.holdings) >= connections)
                engine.finish(completed=True, reason="all rounds are done")
                assert again.wait() == 0
        return record

    def check(self, record: RunRecord, expected: str) -> None:
        assert record.model.sha256() == expected
        assert record.not_delivered == {}
        assert self.recorder.failures == []
        assert all(exchange.clients_missing == {} for exchange in self.recorder.exchanges)
        for name in NAMES:
            state = StateDir(self.folder / "clients" / name, name)
            delivered = state.load(FINAL_MODEL, record.model.schema, RUN_ID)
            assert delivered is not None
            assert delivered.sha256() == expected
            assert not list(state.path.glob("*.corrupt-*"))


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The hash of the model of each federation when nobody is killed; filled as needed."""
    return {}


def check_killed(settings: str, point: str, folder: Path, undisturbed: dict[str, str]) -> None:
    federation = Federation(settings, folder)
    if settings not in undisturbed:
        undisturbed[settings] = run_in_process(federation.config, folder / "reference").model.sha256()
    name, visit = point.split("@")
    federation.check(federation.run(f"{name}=kill@{visit}"), undisturbed[settings])


def points(settings: str) -> Iterator[str]:
    """Every point that a client of this federation comes to, at its first visits."""
    for name in CLIENT_FAILPOINTS:
        visits = VISITS
        if name.startswith("client.teacher"):
            visits = ROUNDS if settings.startswith("feddkd") else 0
        elif name == "client.join.after" or (name == "client.outbox.before_remove" and settings.endswith(("topk", "randk"))):
            visits = 1  # what leaves something over is not removed; the delivery leaves nothing
        yield from (f"{name}@{visit}" for visit in range(1, visits + 1))


@pytest.mark.parametrize(
    "point", [*(f"{name}@1" for name in CLIENT_FAILPOINTS), "client.receipt.before_settle@3", "client.reply.before_send@9"]
)
def test_a_client_that_is_killed_at_any_point_costs_no_bit(point: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """With error feedback and steps, so that teacher, leftovers, replica and reply are all at stake."""
    check_killed("feddkd, topk", point, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "point"), [(settings, point) for settings in SETTINGS for point in points(settings)])
def test_whatever_the_algorithm_and_the_codec(settings: str, point: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    check_killed(settings, point, tmp_path, undisturbed)


def test_a_client_that_lost_its_state_directory_takes_part_again_from_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no teacher for the rest of this round, and says so."""
    monkeypatch.setattr("feddkd.transport.sessions.ID_HOLD_S", 0.0)
    federation = Federation("feddkd", tmp_path, "scheduler.min_clients=1")
    record = federation.run("client.task.before_compute=kill@2", between=lambda: shutil.rmtree(tmp_path / "clients" / "client-1"))
    missing = {(each.id.name, each.id.round): dict(each.clients_missing) for each in federation.recorder.exchanges}
    assert missing == {
        ("local_train", 1): {},
        ("dkd_step", 1): {"client-1": "ClientError: no teacher of round 1: this client did not train in it"},
        ("local_train", 2): {},
        ("dkd_step", 2): {},
        ("deliver", 2): {},
    }
    assert record.not_delivered == {}


def test_a_client_hears_what_became_of_its_reply_before_it_gets_more_work() -> None:
    """It may have died between the receipt and what it makes of it, and what it sends next depends on that."""
    closing = Closing(60.0, reconnect_grace_s=60.0)
    with serving(small_config("transport.chunk_bytes=1024")) as server:
        with HandClient(server.address) as before:
            before.connect()
            first = server.begin(exchange_of(["hand"], filled(SCHEMA, 1), closing=closing))
            work, _ = before.work()
            before.send(*answer_frames(work, filled(SCHEMA, 2)))
            assert list(first.result().replies) == ["hand"]
        second = server.begin(exchange_of(["hand"], filled(SCHEMA, 3), closing=closing, round_number=2))
        until(lambda: server.engine.waiting_for() == ["hand"])
        with HandClient(server.address) as after:
            holding = Holding(id_from_message(work.id), work.payload.digest, work.payload.size_bytes)
            after.open_with(hello_message(after.join().session_token, holding))
            receipt = after.receipt()
            assert (receipt.id, receipt.verdict, receipt.current.round) == (work.id, Verdict.VERDICT_OK, 2)
            after.send(*answer_frames(after.work()[0], filled(SCHEMA, 4)))
            assert list(second.result().replies) == ["hand"]
