"""Watches a run for the command line: the record on disk, the console, and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from feddkd.cli.output import error_console, is_said_in_log
from feddkd.cli.progress import ConsoleProgress
from feddkd.cli.publishing import Publishing
from feddkd.config import Config
from feddkd.observability.event_log import EventLog
from feddkd.observability.ledger import Ledger
from feddkd.observability.status_file import StatusFile
from feddkd.observability.trackers.tracker import tracker_of
from feddkd.observability.trackers.tracking import Tracking
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


@contextlib.contextmanager
def observe(
    config: Config,
    out: Path,
    publishing: Publishing,
    *,
    was_stopped: Callable[[], bool] = bool,
    again: bool = False,
    run_id: str | None = None,
    status: StatusFile | None = None,
) -> Iterator[Observers]:
    """The ledger in `out`, the console, what is published, and `status.json`.

    They hear of any failure before it goes on.

    Args:
        publishing: where other programs can watch.
        was_stopped: says of a run that ended early whether somebody stopped it; by default it failed.
        again: `out` may hold the record of this run already.
        run_id: the run, where it is known by now.
        status: beside the journal of the run; None for a run without one.
    """
    console = error_console()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(out, config, again=again, run_id=run_id)
        stack.callback(ledger.close)
        found: list[Observer] = [ledger]
        found += publishing.begin(config, resumed=again)
        if status is not None:
            found.append(stack.enter_context(status))
        found.append(EventLog())
        if not is_said_in_log():
            found.append(stack.enter_context(ConsoleProgress(config, console, resumed=again)))
        # Last: at its end one may wait for its tracker.
        found += [Tracking(name, tracker_of(name), config, out) for name in publishing.endpoints.trackers]
        observers = Observers(found, was_stopped)
        with observers.told_of_failure():
            yield observers
