import logging
from collections.abc import Callable

import pytest

from feddkd.errors import StateError
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


class Listener(Observer):
    """Writes down what it hears into a list that several share, and raises if it is told to."""

    def __init__(self, name: str, heard: list[str], error: BaseException | None = None) -> None:
        self.name = name
        self.heard = heard
        self.error = error

    def paused(self, reason: str) -> None:
        self.heard.append(f"{self.name} {reason}")
        if self.error is not None:
            raise self.error

    def run_failed(self, reason: str) -> None:
        self.paused(f"failed: {reason}")


class Essential(Listener):
    essential = True


def pause(reason: str) -> Callable[[Observer], None]:
    return lambda observer: observer.paused(reason)


def test_an_observer_that_shows_is_dropped_when_it_raises_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    observers = Observers([Listener("a", heard, BrokenPipeError("gone\x1b[2J")), Listener("b", heard)])
    observers.tell(pause("1"))
    observers.tell(pause("2"))
    assert heard == ["a 1", "b 1", "b 2"]
    assert caplog.messages == ["Listener failed and is switched off for the rest of this run: BrokenPipeError: gone\\x1b[2J"]


def test_the_traceback_of_an_observer_is_there_for_who_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Observers([Listener("a", [], ZeroDivisionError())]).tell(pause("1"))
    assert [record.exc_info is not None for record in caplog.records] == [False, True]


def test_what_an_essential_observer_raises_ends_the_run_before_anybody_shows_it() -> None:
    heard: list[str] = []
    observers = Observers([Listener("a", heard), Essential("ledger", heard, StateError("full")), Listener("b", heard)])
    with pytest.raises(StateError, match="full"):
        observers.tell(pause("1"))
    assert heard == ["ledger 1"]


def test_every_observer_hears_that_the_run_failed_whoever_raises(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    observers = Observers([Essential("ledger", heard, StateError("full")), Listener("a", heard, OSError(5, "I/O")), Listener("b", heard)])
    observers.tell_failure("full")
    assert heard == ["ledger failed: full", "a failed: full", "b failed: full"]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_no_failure_of_an_observer(stop: type[BaseException]) -> None:
    with pytest.raises(stop):
        Observers([Listener("a", [], stop())]).tell(pause("1"))


def test_one_that_was_dropped_stays_dropped_in_whatever_tells_next() -> None:
    heard: list[str] = []
    observers = Observers([Listener("a", heard, OSError())])
    observers.tell(pause("1"))
    Observers.of(observers).tell(pause("2"))
    assert heard == ["a 1"]
    Observers.of([Listener("b", heard)]).tell(pause("3"))
    assert heard == ["a 1", "b 3"]


def test_a_run_that_somebody_stopped_has_not_failed() -> None:
    heard: list[str] = []
    is_stopped = False

    class Both(Listener):
        def run_stopped(self, reason: str) -> None:
            heard.append(f"stopped: {reason}")

    observers = Observers([Both("a", heard), Listener("b", heard)], lambda: is_stopped)
    observers.tell_failure("too few")
    is_stopped = True
    observers.tell_failure("SIGTERM")
    assert heard == ["a failed: too few", "b failed: too few", "stopped: SIGTERM", "b failed: SIGTERM"], "b knows no difference"
