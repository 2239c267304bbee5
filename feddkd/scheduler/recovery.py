"""Restores the journal of a run to its newest undamaged state, so that another process can resume it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feddkd.config import Config, read_tables
from feddkd.config.resuming import settings_that_stay
from feddkd.config.table import flatten
from feddkd.errors import ConfigError, StateError
from feddkd.exchange import ExchangeId
from feddkd.scheduler.blobs import DamagedError
from feddkd.scheduler.events import DeliveredLate, DeliveryStarted, Event, ExchangeDone, Resumed, RoundFinished, RoundStarted, RunFinished
from feddkd.scheduler.journal import Entry, Journal, NoJournal
from feddkd.scheduler.journal_file import FileJournal, is_open
from feddkd.scheduler.journal_lines import JOURNAL, Header, read_journal
from feddkd.scheduler.state import CHECKPOINTS, RunState, fold
from feddkd.text import printable
from feddkd.traffic import Traffic

logger = logging.getLogger(__name__)

KEYS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Spent:
    """Wire bytes that a process had counted when it ended.

    Attributes:
        exchange: the one that it began last, or None if it began none.
        open: spent on that.
        other: spent on no exchange.
        incarnation: which process of the run it was.
    """

    exchange: ExchangeId | None = None
    open: Traffic = field(default_factory=Traffic)
    other: Traffic = field(default_factory=Traffic)
    incarnation: int = 1


def is_finished(entries: Sequence[Entry]) -> bool:
    """Return whether a run came to its end, and was not extended since."""
    last = next((entry.event for entry in reversed(entries) if not isinstance(entry.event, DeliveredLate)), None)
    return isinstance(last, RunFinished)


def new_journal(folder: Path, run_id: str, config: Config) -> Journal:
    """Begin the journal of a run, or none if `scheduler.durability` says so. Raises StateError."""
    durability = config.scheduler.durability
    if durability == "none":
        return NoJournal(run_id)
    return FileJournal.create(folder, Header(run_id, config.to_toml()), durability)


def resume(folder: Path, config: Config, spent: Spent | None = None) -> FileJournal:
    """Open the journal of a run, cut it back to its newest good state, and note that another process goes on.

    Args:
        config: of this process; it may differ from the run's in `config.resuming.FREE_KEYS` alone, and have more rounds.
        spent: what the process before had counted; None if nobody knows.

    Raises:
        StateError: there is no journal, another process has it open, or it is of another configuration.
    """
    if config.scheduler.durability == "none":
        raise StateError(f"{folder} holds a run with a journal, which it needs to resume: set scheduler.durability = exchange or round")
    journal = FileJournal.open(folder, config.scheduler.durability)
    try:
        check_same(folder, journal.header, config)
        before = fold(journal.entries, journal.header.run_id, config.scheduler.quorum)
        uncounted = _uncounted(spent or Spent(), before, journal.entries)
        good = good_entries(journal.entries, lambda name: _can_load(journal, name), lacks_lines=journal.lacks_lines)
        cut = journal.cut(good)
        if cut:
            logger.warning("%s: %d events after the newest good state were cut off", folder, len(cut))
        state = fold(journal.entries, journal.header.run_id, config.scheduler.quorum) if cut else before
        if state.rounds_done == 0 and any(isinstance(event, RoundFinished) for event in cut):
            logger.warning("%s: no round's model can be read; the run starts over", folder)
        _check_rounds(folder, state, config)
        state.keeps_best = config.scheduler.deliver == "best"
        if state.ended is None or (config.rounds > state.rounds_done and not state.stopped):
            last_s = journal.entries[-1].time if journal.entries else time.time()
            resumed = _resumed(before, state, cut, config.rounds, uncounted, max(0.0, time.time() - last_s))
            state.apply(journal.append(resumed))
        journal.prune(state.blobs)
    except BaseException:
        journal.close()
        raise
    return journal


def check_resumable(folder: Path, config: Config) -> None:
    """Check that a run can go on, and change nothing: before its record is written again. Raises StateError as `resume`."""
    header, entries = read_journal(folder)
    if is_open(folder):
        raise StateError(f"another process has {folder / JOURNAL} open and is running this run")
    check_same(folder, header, config)
    _check_rounds(folder, fold([entry for entry, _ in entries], header.run_id, config.scheduler.quorum), config)


def _check_rounds(folder: Path, state: RunState, config: Config) -> None:
    begun = state.rounds_done + (state.open is not None and not state.delivering)
    if begun > config.rounds:
        raise StateError(f"{folder} holds a run with round {begun} begun, which is more than rounds = {config.rounds}")


def check_same(folder: Path, header: Header, config: Config) -> None:
    """Check that a run goes on with its own configuration. Raises StateError."""
    try:
        before = Config.loads(header.config, source="its configuration")
    except ConfigError as error:
        raise StateError(f"{folder} holds a run that this version of feddkd cannot resume: {error}") from None
    ours, theirs = settings_that_stay(config), settings_that_stay(before)
    _check_equal(folder, header, {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}, ours, theirs)


def check_overrides(folder: Path, header: Header, overrides: Iterable[str]) -> None:
    """Check that overrides change no setting that has to stay, for those that make no configuration with the run's others.

    What such a change would need besides is of no interest: another `task.name` needs other keys, for one.

    Raises:
        StateError: one does.
    """
    theirs, ours = settings_that_stay(Config.loads(header.config, source=str(folder))), flatten(read_tables(None, overrides))
    _check_equal(folder, header, {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}, ours, theirs)


def _check_equal(
    folder: Path, header: Header, different: Collection[str], ours: Mapping[str, object], theirs: Mapping[str, object]
) -> None:
    """Raises StateError for keys that are different; those that choose a table come first, because its other keys follow from them."""
    keys = sorted(different, key=lambda key: (not key.endswith(".name"), key))
    if keys:
        shown = ", ".join(f"{key} = {_value(theirs, key)} there, {_value(ours, key)} here" for key in keys[:KEYS_SHOWN])
        more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        raise StateError(f"{folder} holds run {header.run_id} of another configuration: {printable(shown)}{more}")


def _value(settings: Mapping[str, object], key: str) -> object:
    return settings.get(key, "unset")


def good_entries(entries: Sequence[Entry], is_there: Callable[[str], bool], *, lacks_lines: bool = False) -> int:
    """Count the events that lead to the newest state of which everything is there: a run goes on after these.

    Args:
        is_there: whether the blob of this name can be read. Only those that decide are asked for.
        lacks_lines: events that came after these are gone.
    """
    if is_finished(entries):
        newest = next((entry.event for entry in reversed(entries) if isinstance(entry.event, RoundFinished)), None)
        if newest is not None and _is_good(newest, is_there):
            return len(entries)
    begun = _newest_checkpoint(entries, is_there)
    # A finished round after it is one that cannot be read: what followed that is of no use either.
    end = next((index for index in range(begun, len(entries)) if isinstance(entries[index].event, RoundFinished)), len(entries))
    # The outcomes of attempts that failed, and of a delivery that more rounds came after, are not kept: nobody needs them.
    attempt = fold(entries[:end], "", quorum=0).open
    needed = attempt.outcomes if attempt is not None else {}
    done = (entry.event for entry in entries[begun:end] if isinstance(entry.event, ExchangeDone))
    if all(_is_good(event, is_there) for event in done if event.record.id in needed) and not (lacks_lines and needed):
        return end
    # The attempt begins again: what clients remember of it leads back to its first exchange alone.
    return 1 + max(index for index in range(begun, end) if isinstance(entries[index].event, RoundStarted | DeliveryStarted))


def _newest_checkpoint(entries: Sequence[Entry], is_there: Callable[[str], bool]) -> int:
    """Return how many events there are up to the newest finished round whose model and state can be read."""
    finished = [index for index, entry in enumerate(entries) if isinstance(entry.event, RoundFinished)]
    for index in reversed(finished[-CHECKPOINTS:]):
        if _is_good(entries[index].event, is_there):
            return index + 1
    return next((index for index, entry in enumerate(entries) if isinstance(entry.event, RoundStarted)), len(entries))


def _is_good(event: Event, is_there: Callable[[str], bool]) -> bool:
    """Whether all that an event names is there."""
    names: tuple[str, ...] = ()
    if isinstance(event, RoundFinished):
        names = (event.model, event.state)
    elif isinstance(event, ExchangeDone):
        names = (event.outcome,)
    return all(name and is_there(name) for name in names)  # without a name, it was not kept


def _can_load(journal: FileJournal, name: str) -> bool:
    """Whether a blob can be read. What is damaged is moved aside and named."""
    try:
        journal.load(name)
    except DamagedError as error:
        logger.warning("%s", error)
        return False
    return True


def _resumed(before: RunState, state: RunState, cut: Sequence[Event], rounds: int, uncounted: Spent, lost_s: float) -> Resumed:
    """Describe what the processes before had done that is not in the journal, or not any more.

    Args:
        before: what the run had come to.
        state: what is left of that.
        uncounted: what the last process had spent beyond `before`.
    """
    pending = dict(before.spent)
    for event in cut:
        if isinstance(event, ExchangeDone):
            pending[event.record.id] = pending.get(event.record.id, Traffic()) + event.record.traffic
    if uncounted.exchange is not None:
        pending[uncounted.exchange] = pending.get(uncounted.exchange, Traffic()) + uncounted.open
    spent = {exchange: traffic.wire_beyond(state.spent.get(exchange, Traffic())) for exchange, traffic in pending.items()}
    known = before.traffic + uncounted.open + uncounted.other
    return Resumed(
        # Whatever was cut off: clients refuse a server that counts lower than one that they have seen.
        incarnation=max(before.incarnation, uncounted.incarnation) + 1,
        rounds=rounds,
        spent=tuple((exchange, traffic) for exchange, traffic in spent.items() if traffic.wire_bytes),
        # What is neither left nor said above: bytes of no exchange, but those that the end of the run had given up are open again.
        other=known.wire_beyond(sum(spent.values(), state.traffic)),
        lost_s=lost_s,
        owners={client: owner for client, owner in before.owners.items() if state.owners.get(client) != owner},
    )


def _ends(event: Event, exchange: ExchangeId | None) -> bool:
    """Whether an exchange is done with an event, which says what it took."""
    if isinstance(event, ExchangeDone):
        return event.record.id == exchange
    return isinstance(event, DeliveredLate) and event.exchange == exchange


def _uncounted(spent: Spent, before: RunState, entries: Sequence[Entry]) -> Spent:
    """Leave out what is in the journal: exchanges that are done, and all of a process that finished the run.

    So is all that a process spent of which the next one has said so, even if that has counted nothing itself.
    """
    if spent.incarnation < before.incarnation:
        return Spent(incarnation=before.incarnation)
    is_done = any(_ends(entry.event, spent.exchange) for entry in entries)
    return Spent(
        None if is_done else spent.exchange,
        open=Traffic() if is_done else spent.open,
        other=spent.other if before.ended is None else Traffic(),
        incarnation=spent.incarnation,
    )
