"""A server stays for clients that were away when the final model was delivered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness import RUN_ID
from scripted import THREE, Moment, ScriptedEngine, Setup

from feddkd.config import Config
from feddkd.exchange import DELIVER, ExchangeId
from feddkd.scheduler import lingering
from feddkd.scheduler.events import DeliveredLate
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.recovery import Spent, new_journal, resume
from feddkd.scheduler.state import RunState, fold
from feddkd.traffic import Traffic

WIRE = Traffic(0, 0, 10, 100)
"""Of each exchange."""

OTHER = ScriptedEngine(THREE).other_traffic()

UNDISTURBED = 5 * WIRE.wire_bytes + OTHER.wire_bytes

LINGER_S = 60.0


def late(number: int) -> Moment:
    return (2, number, DELIVER)


class Clock:
    """Goes on whenever somebody waits for clients."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lingering, "time", clock)
    return clock


class Waiting(ScriptedEngine):
    """Nobody comes while it waits, unless `arrivals` says so.

    Attributes:
        arrivals: what happens in the waits, one after another.
    """

    def __init__(self, clock: Clock, lost: dict[Moment, set[str]], *arrivals: Callable[[], object]) -> None:
        super().__init__(THREE, lost)
        self.clock = clock
        self.arrivals = list(arrivals)

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        if timeout_s is not None:
            self.clock.now_s += timeout_s
            if self.arrivals:
                self.arrivals.pop(0)()
        return super().wait_for_clients(count, timeout_s)

    def asked_late(self) -> list[tuple[int, list[str]]]:
        """Attempt and clients of each delivery but the first."""
        return [(exchange.id.attempt, sorted(exchange.clients)) for exchange in self.exchanges if exchange.id.attempt]


def run(folder: Path, engine: ScriptedEngine) -> Setup:
    with closing(new_journal(folder, RUN_ID, Config.load(overrides=["rounds=2"]))) as journal:
        setup = Setup(engine, journal=journal, linger_s=LINGER_S)
        setup.run()
    return setup


def go_on(folder: Path, engine: ScriptedEngine, *overrides: str, spent: Spent | None = None) -> Setup:
    with closing(resume(folder, Config.load(overrides=["rounds=2", *overrides]), spent)) as journal:
        setup = Setup(engine, *overrides, journal=journal, linger_s=LINGER_S)
        setup.run()
    return setup


def state_of(folder: Path) -> RunState:
    return fold([entry for entry, _ in read_journal(folder)[1]], RUN_ID, quorum=1)


def test_a_client_that_fails_the_late_delivery_is_tried_once_and_lingering_ends_in_time(tmp_path: Path, clock: Clock) -> None:
    engine = Waiting(clock, {late(0): {"b"}, late(1): {"b"}})
    setup = run(tmp_path, engine)
    assert engine.asked_late() == [(1, ["b"])]
    assert clock.now_s == pytest.approx(1000.0 + LINGER_S)
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {"b": "lost"}
    assert engine.finished == [(True, lingering.OVER)]
    # What it took is in the totals.
    assert state_of(tmp_path).traffic.wire_bytes == UNDISTURBED + WIRE.wire_bytes


def test_lingering_ends_when_all_have_the_model(tmp_path: Path, clock: Clock) -> None:
    engine = Waiting(clock, {late(0): {"b", "c"}, late(1): {"c"}}, lambda: None, lambda: engine.connected.update(d=4))
    setup = run(tmp_path, engine)
    # Who comes for the first time gets the model, too; c was tried and cannot be tried again.
    assert engine.asked_late() == [(1, ["b", "c"]), (2, ["d"])]
    assert engine.gone == ["a", "b", "d"]
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {"c": "lost"}


def test_it_is_over_at_once_where_the_only_client_that_missed_it_comes(tmp_path: Path, clock: Clock) -> None:
    engine = Waiting(clock, {late(0): {"b"}})
    setup = run(tmp_path, engine)
    assert clock.now_s == 1000.0
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {}


def test_an_abort_while_it_lingers_ends_the_run_as_completed(tmp_path: Path, clock: Clock) -> None:
    engine = Waiting(clock, {late(0): {"b"}, late(1): {"b"}}, lambda: engine.abort("stopped by SIGTERM"))
    setup = run(tmp_path, engine)
    assert engine.finished == [(True, lingering.OVER)]
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {"b": "lost"}
    assert state_of(tmp_path).ended is not None


class Dying(Waiting):
    """Dies in the wait that comes after the late deliveries."""

    def __init__(self, clock: Clock, lost: dict[Moment, set[str]]) -> None:
        super().__init__(clock, lost, self._die)

    def _die(self) -> None:
        raise KeyboardInterrupt


def test_a_process_that_goes_on_lingers_for_those_alone_who_do_not_have_it_and_counts_each_delivery_once(
    tmp_path: Path, clock: Clock
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Dying(clock, {late(0): {"b", "c"}, late(1): {"c"}}))
    engine = Waiting(clock, {})
    engine.connected = {"c": 30}
    setup = go_on(tmp_path, engine, spent=Spent(ExchangeId(RUN_ID, 2, 1, DELIVER, 0), WIRE, OTHER))
    assert engine.asked_late() == [(2, ["c"])]
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {}
    assert setup.recorder.run.lost_traffic == Traffic()
    assert state_of(tmp_path).traffic.wire_bytes == UNDISTURBED + OTHER.wire_bytes + 2 * WIRE.wire_bytes


def test_bytes_of_a_late_delivery_that_no_process_ended_are_lost(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Dying(clock, {late(0): {"b", "c"}, late(1): {"c"}}))
    setup = go_on(tmp_path, Waiting(clock, {late(2): {"c"}}), spent=Spent(ExchangeId(RUN_ID, 2, 2, DELIVER, 0), WIRE, OTHER))
    assert setup.recorder.run is not None
    assert setup.recorder.run.lost_traffic == WIRE
    assert state_of(tmp_path).traffic.wire_bytes == UNDISTURBED + OTHER.wire_bytes + 3 * WIRE.wire_bytes


def test_a_late_delivery_is_not_one_of_a_run_that_was_extended(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, Waiting(clock, {late(0): {"b"}}))
    before = state_of(tmp_path).traffic.wire_bytes
    away = Waiting(clock, {(3, 0, DELIVER): {"b"}, (3, 1, DELIVER): {"b"}})
    # The mark of the process that finished it is still there, and names what it did last.
    setup = go_on(tmp_path, away, "rounds=3", spent=Spent(ExchangeId(RUN_ID, 2, 1, DELIVER, 0), WIRE, OTHER))
    assert away.asked_late() == [(1, ["b"])]
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {"b": "lost"}
    assert setup.recorder.run.lost_traffic == Traffic()
    assert state_of(tmp_path).traffic.wire_bytes == before + OTHER.wire_bytes + 4 * WIRE.wire_bytes


def test_a_finished_run_is_served_again_to_those_who_missed_it(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, Waiting(clock, {late(0): {"b"}, late(1): {"b"}}))
    engine = Waiting(clock, {})
    engine.connected = {"b": 20}
    setup = go_on(tmp_path, engine)
    assert engine.asked_late() == [(2, ["b"])]
    assert setup.recorder.run is not None
    assert setup.recorder.run.not_delivered == {}
    late_ones = [entry.event for entry, _ in read_journal(tmp_path)[1] if isinstance(entry.event, DeliveredLate)]
    assert [(event.exchange.attempt, event.clients) for event in late_ones] == [(1, ()), (2, ("b",))]
