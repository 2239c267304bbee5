"""How signals stop a run that can go on later."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from feddkd.cli import EXIT_INTERRUPTED
from feddkd.cli.stopping import SIGNALS, StopSignals
from feddkd.errors import CommandInterruptedError, RunError, StoppedError
from feddkd.scheduler.engine import Engine


class AbortableEngine:
    """Keeps for what reason it was aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.reason = ""

    def abort(self, reason: str) -> None:
        self.reason = reason
        self.aborted.set()


@pytest.fixture
def engine() -> AbortableEngine:
    return AbortableEngine()


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def stopping(engine: AbortableEngine | None, said: io.StringIO, resumed_by: str = "feddkd run --resume record") -> StopSignals:
    signals = StopSignals(Console(file=said, width=80), Path("record"), resumed_by)
    if engine is not None:
        signals.engine_ready(cast("Engine", engine))
    return signals


@pytest.fixture
def signals(engine: AbortableEngine, said: io.StringIO) -> StopSignals:
    return stopping(engine, said)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def aborted_by(number: signal.Signals, engine: AbortableEngine) -> None:
    """Wait for the engine, as a run does."""
    os.kill(os.getpid(), number)
    assert engine.aborted.wait(60)
    assert engine.reason == f"stopped by {number.name}"
    raise RunError(engine.reason)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_aborts_the_engine_and_raises_nothing_where_it_arrives(
    number: signal.Signals, signals: StopSignals, engine: AbortableEngine, said: io.StringIO
) -> None:
    with pytest.raises(StoppedError, match=f"^stopped by {number.name}$") as stopped, signals.handled():
        aborted_by(number, engine)
    assert (stopped.value.record, stopped.value.go_on) == ("record/", "feddkd run --resume record")
    assert said.getvalue() == f"{number.name}: pausing the run. A second signal ends the process at once.\n"


class Ended(BaseException):
    """The process would have ended here."""


def test_the_second_signal_ends_the_process_at_once(signals: StopSignals, engine: AbortableEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        assert code == EXIT_INTERRUPTED
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        assert engine.aborted.wait(60)
        with pytest.raises(Ended):
            os.kill(os.getpid(), signal.SIGINT)


def test_without_an_engine_the_first_signal_interrupts(said: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), stopping(None, said).handled():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_cannot_go_on_says_so_and_is_interrupted(engine: AbortableEngine, said: io.StringIO) -> None:
    with pytest.raises(CommandInterruptedError) as ended, stopping(engine, said, "").handled():
        aborted_by(signal.SIGTERM, engine)
    assert "cannot go on later (scheduler.durability = none)" in said.getvalue()
    assert (str(ended.value), ended.value.go_on) == ("interrupted: stopped by SIGTERM; the record is in record/", "")


def test_an_interrupt_of_what_the_run_called_says_where_the_record_is(signals: StopSignals) -> None:
    with pytest.raises(CommandInterruptedError) as ended, signals.handled():
        raise KeyboardInterrupt
    assert (str(ended.value), ended.value.go_on) == ("interrupted: the record is in record/", "feddkd run --resume record")


def test_a_failure_without_a_signal_stays_what_it_is(signals: StopSignals) -> None:
    with pytest.raises(RunError, match=r"^too few clients$") as failed, signals.handled():
        raise RunError("too few clients")
    assert not isinstance(failed.value, StoppedError)


def test_a_run_that_ends_although_a_signal_came_has_ended(signals: StopSignals, engine: AbortableEngine) -> None:
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        assert engine.aborted.wait(60)
