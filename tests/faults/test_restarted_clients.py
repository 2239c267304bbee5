"""What a client must remember from round to round survives the end of its process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gated import StartClient
from harness import RUN_ID, EngineProxy, Recorder, run_in_process, serving, small_config

from feddkd import algorithms
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Exchange, Outcome
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine, Keep
from feddkd.scheduler.rounds import Scheduler

NAMES = ["client-0", "client-1", "client-2"]


class RestartingEngine(EngineProxy):
    """Calls a function before the first exchange of some rounds."""

    def __init__(self, engine: Engine, rounds: set[int], restart: Callable[[], None]) -> None:
        super().__init__(engine)
        self.rounds = rounds
        self.restart = restart

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        if exchange.id.round in self.rounds:
            self.rounds.remove(exchange.id.round)
            self.restart()
        return super().carry_out(exchange, keep)


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "moon"])
def test_a_client_that_restarts_between_rounds_goes_on_as_if_it_had_not(algorithm: str, tmp_path: Path, start_client: StartClient) -> None:
    config = small_config(
        f"algorithm.name={algorithm}",
        "rounds=3",
        "partition.clients=3",
        "partition.labels=4",
        "scheduler.wait_for_clients=3",
    )
    expected = run_in_process(config, tmp_path / "reference").model.sha256()
    (tmp_path / "config.toml").write_text(config.to_toml())
    model, recorder = build_initial(config).model, Recorder()
    with serving(engine=GrpcEngine(config, RUN_ID, model.schema)) as server:
        start_client(server.address, [0, 2])
        running = [start_client(server.address, [1])]

        def restart() -> None:
            running.pop().kill()
            server.wait_for("client-0", "client-2")
            running.append(start_client(server.address, [1]))
            server.wait_for(*NAMES)

        engine = RestartingEngine(server.engine, {2, 3}, restart)
        scheduler = Scheduler(config, algorithms.find(algorithm)(config), engine, run_id=RUN_ID, observers=[recorder])
        record = server.background(lambda: scheduler.run(model)).result()
    assert engine.rounds == set()
    assert all(exchange.clients_missing == {} for exchange in recorder.exchanges)
    assert record.model.sha256() == expected


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "moon"])
def test_what_a_client_remembers_makes_a_difference(algorithm: str, tmp_path: Path) -> None:
    """Without this the test above would pass for a client that remembers nothing."""
    config = small_config(f"algorithm.name={algorithm}", "rounds=2")
    remembering = run_in_process(config, tmp_path / "kept").model.sha256()

    class ForgetfulEngine(EngineProxy):
        def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
            for file in (tmp_path / "lost" / "clients").rglob("*.safetensors"):
                file.unlink()
            return super().carry_out(exchange, keep)

    assert run_in_process(config, tmp_path / "lost", around=ForgetfulEngine).model.sha256() != remembering
