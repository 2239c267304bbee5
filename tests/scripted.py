"""A scheduler whose engine follows a script: clients reply 1.0 unless it says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from harness import RUN_ID, Recorder
from torch import Tensor

from feddkd.algorithms.base import Algorithm, ClientSide, Cohort
from feddkd.config import Config
from feddkd.errors import RunError
from feddkd.exchange import Cause, Evaluation, ExampleCounts, Exchange, ExchangeKind, Missing, Outcome, Reply
from feddkd.scheduler.engine import ClientStates, Engine, OpenExchange
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord
from feddkd.scheduler.rounds import CohortLayer, Evaluator, Extensions, Scheduler
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

SCHEMA = Schema([TensorSpec("w", torch.float64, ())])


def number(value: float) -> Tensors:
    out = Tensors(SCHEMA)
    out["w"].fill_(value)
    return out


class Counting(Algorithm):
    """Adds what comes back in two exchanges, and counts its rounds in its state."""

    client_side = ClientSide

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rounds = 0
        self.states_at_start: list[int] = []
        self.models_at_start: list[float] = []

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"first": ExchangeKind(), "second": ExchangeKind()}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        self.states_at_start.append(self.rounds)
        self.models_at_start.append(float(model["w"]))
        self.rounds += 1
        model = model + cohort.exchange("first", model)
        return model + cohort.exchange("second", model)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rounds = int(state["rounds"])


class Done:
    """An exchange that is over as soon as it begins."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def outcome(self) -> Outcome:
        return self._outcome

    def acknowledge(self) -> None:
        """Nobody is told anything."""


Moment = tuple[int, int, str]
"""Round, attempt and exchange."""


class ScriptedEngine(Engine):
    """Clients reply 1.0; `lost` says who does not.

    Attributes:
        reduced: what replies come to instead of 1.0.
        cause: why a client that is lost is missing.
        gone: who was let go before the end.
    """

    def __init__(
        self,
        clients: Mapping[str, int],
        lost: Mapping[Moment, set[str]] | None = None,
        *,
        reduced: Mapping[Moment, float] | None = None,
        cause: Cause = Cause.FAILED,
    ) -> None:
        self.connected = dict(clients)
        self.lost = lost or {}
        self.reduced = reduced or {}
        self.cause = cause
        self.exchanges: list[Exchange] = []
        self.waits: list[tuple[int, float | None]] = []
        self.finished: list[tuple[bool, str]] = []
        self.gone: list[str] = []
        self.on_wait: Callable[[], bool] = lambda: True
        self.on_loss: Callable[[set[str]], object] = lambda _: None
        self.aborted: RunError | None = None

    def clients(self) -> Mapping[str, ExampleCounts]:
        self.check_aborted()
        return {client: ExampleCounts(number) for client, number in sorted(self.connected.items())}

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        self.check_aborted()
        self.waits.append((count, timeout_s))
        arrived = self.on_wait()
        self.check_aborted()
        return arrived

    def begin(self, exchange: Exchange) -> OpenExchange:
        self.check_aborted()
        self.exchanges.append(exchange)
        return Done(self.outcome_of(exchange))

    def outcome_of(self, exchange: Exchange) -> Outcome:
        moment = (exchange.id.round, exchange.id.attempt, exchange.id.name)
        lost = self.lost.get(moment, set())
        if lost:
            self.on_loss(lost)
        opinion = Evaluation(10, exchange.id.round, 5.0) if exchange.evaluate else None
        replied = [client for client in exchange.clients if client not in lost]
        replies = {client: Reply(loss=1.0, evaluation=opinion) for client in replied}
        missing = {client: Missing(self.cause, "lost") for client in sorted(lost)}
        value = number(self.reduced.get(moment, 1.0))
        reduced = value if exchange.reply_schema and replies else None
        return Outcome(reduced, replies, missing, Traffic(1, 1, 10, 100), 0.1, useful=Traffic(0, 0, 10, 100))

    def other_traffic(self) -> Traffic:
        return Traffic(0, 0, 3, 4)

    def states(self) -> ClientStates:
        return ClientStates()

    def abort(self, reason: str) -> None:
        self.aborted = RunError(reason)

    def check_aborted(self) -> None:
        if self.aborted is not None:
            raise self.aborted

    def let_go(self, clients: Collection[str], reason: str) -> None:
        self.gone += sorted(clients)
        for client in clients:
            self.connected.pop(client, None)

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        self.finished.append((completed, reason))

    def ids(self) -> list[tuple[int, str]]:
        """Round and name of each exchange."""
        return [(exchange.id.round, exchange.id.name) for exchange in self.exchanges]


class FullRecorder(Recorder):
    """Writes down the order of events.

    Attributes:
        on_event: is called with each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.on_event: Callable[[str], None] = lambda _: None

    def note(self, event: str) -> None:
        self.events.append(event)
        self.on_event(event)

    def run_started(self, run_id: str, rounds: int) -> None:
        self.note(f"run {run_id} of {rounds}")

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self.note(f"round {round_number}.{attempt} of {clients}")

    def exchange_done(self, record: ExchangeRecord) -> None:
        super().exchange_done(record)
        self.on_event(f"{record.id.name} {record.id.round}.{record.id.attempt}")

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self.note(f"model {round_number} is {float(model['w']):g}")

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        self.on_event(f"round {round_number} evaluated")

    def round_done(self, record: RoundRecord) -> None:
        super().round_done(record)
        self.note(f"round {record.round} done")

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        super().round_failed(round_number, attempt, reason)
        self.note(f"round {round_number}.{attempt} failed")

    def paused(self, reason: str) -> None:
        super().paused(reason)
        self.note("paused")


THREE = {"a": 10, "b": 20, "c": 30}


class Setup:
    def __init__(
        self,
        engine: ScriptedEngine,
        *overrides: str,
        evaluator: Evaluator | None = None,
        journal: Journal | None = None,
        layers: Sequence[CohortLayer] = (),
        linger_s: float = 0.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.engine = engine
        self.recorder = FullRecorder()
        config = Config.load(overrides=["rounds=2", *overrides])
        self.algorithm = Counting(config)
        self.scheduler = Scheduler(
            config,
            self.algorithm,
            engine,
            run_id=RUN_ID,
            observers=[self.recorder, *observers],
            evaluator=evaluator,
            extensions=Extensions(journal=journal or NoJournal(), layers=layers, linger_s=linger_s),
        )

    def run(self) -> float:
        return float(self.scheduler.run(number(0)).model["w"])
