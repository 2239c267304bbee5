"""Says how a run stands, from its journal and from what its process wrote last, without changing anything."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from feddkd.cli.run_place import RunPlace
from feddkd.cli.words import listed
from feddkd.config import ACCURACY, Config, MainMetric
from feddkd.config.toml import parse_toml
from feddkd.engines.traffic_mark import TRAFFIC_MARK, Marked, TrafficMark
from feddkd.errors import ConfigError, StateError
from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.observability.status_file import JOINING, LiveStatus, read_status
from feddkd.scheduler.events import ExchangeDone
from feddkd.scheduler.journal import Entry
from feddkd.scheduler.journal_file import BLOBS, is_open
from feddkd.scheduler.journal_lines import JOURNAL, Header, read_journal
from feddkd.scheduler.recovery import is_finished
from feddkd.scheduler.state import RunState, fold
from feddkd.traffic import Traffic

Stand = Literal["running", "dead", "paused", "finished"]

STALE_S = 10.0
"""A living process writes its status about once a second: after so long it stands still, or cannot write."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        rounds: how many are planned.
        done: how many have a model.
        attempt: at the round that is open, from 0; None where none is open.
        delivering: whether the final model is being delivered.
        delivered: whether it was delivered; clients that were away may still get it.
        open_exchange: the one that was begun last, if it has no outcome yet. A run in one process does not tell.
        last_exchange: the last one that has an outcome.
        accuracy: of the last round that was evaluated.
        metric: what decides which round is the best.
        scores: all metrics of the last round that was evaluated, by name.
        seconds: that processes have worked on the run.
    """

    rounds: int
    done: int
    attempt: int | None
    delivering: bool
    delivered: bool
    open_exchange: ExchangeId | None
    last_exchange: ExchangeId | None
    accuracy: float | None
    seconds: float
    metric: MainMetric = ACCURACY
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes on the wire and on the disk.

    Attributes:
        traffic: of everything so far.
        lost: the part of it that was of no use; of an exchange that is open nobody knows yet.
        events: in the journal.
    """

    traffic: Traffic
    lost: Traffic
    events: int
    journal_bytes: int
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """The process that works on a run, or did last.

    Attributes:
        incarnation: counts the processes of the run.
        pid: None if nobody has the journal open.
        waits_for: what must come before the run goes on; empty where the process itself is at work.
        is_paused: whether it has too few clients to go on.
        waiting_for: clients whose reply is expected; those that are left out are counted in `num_waiting`.
        silent_s: seconds since a process that works on the run last said so; None without one.
    """

    incarnation: int
    pid: int | None = None
    waits_for: str = ""
    is_paused: bool = False
    waiting_for: Sequence[str] = ()
    num_waiting: int = 0
    silent_s: float | None = None

    @property
    def is_stale(self) -> bool:
        """Whether a process is there that has not said for long how it stands."""
        return self.silent_s is not None and self.silent_s > STALE_S


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One client.

    Attributes:
        examples: as it said last; None if no round has begun since it joined.
        last_heard_s: seconds ago; None if nobody knows.
        is_awaited: whether its reply is expected now.
    """

    examples: ExampleCounts | None
    last_heard_s: float | None
    is_awaited: bool


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands.

    Attributes:
        folder: of its journal.
        state: running (a process has the journal open), finished, paused (the last process said why it ended), or dead.
        reason: why the last process ended, where that is known and all is not done.
        clients: by id.
        go_on: the command that goes on with a run that nobody works on.
    """

    run_id: str
    algorithm: str
    folder: Path
    state: Stand
    reason: str
    progress: Progress
    cost: Cost
    process: Process
    clients: dict[str, ClientStatus]
    go_on: str

    @classmethod
    def of(cls, place: RunPlace) -> RunStatus:
        """Look at a run. Raises StateError."""
        is_running = is_open(place.folder)  # before its files are read: what they say is then newer
        live, mark = read_status(place.folder), TrafficMark.read(place.folder / TRAFFIC_MARK)
        header, found = read_journal(place.folder)
        entries = [entry for entry, _ in found]
        config = config_of(place.folder, header)
        state = fold(entries, header.run_id, config.scheduler.quorum)
        progress = _progress(state, entries, mark, config)
        stand = _stand(place, live, is_finished=is_finished(entries), is_running=is_running)
        process = _process(state.incarnation, live, config) if is_running else Process(state.incarnation)
        return cls(
            run_id=header.run_id,
            algorithm=config.algorithm.name,
            folder=place.folder,
            state=stand,
            reason=live.ended if live is not None and stand == "paused" else "",
            progress=progress,
            cost=_cost(place.folder, state, len(entries), mark, is_open=progress.open_exchange is not None),
            process=process,
            clients=_clients(state, live, process.waiting_for),
            go_on=_go_on(place, live) if stand in ("dead", "paused") else "",
        )


def config_of(folder: Path, header: Header) -> Config:
    """Read the configuration that a journal begins with. Raises StateError."""
    try:
        return Config.parse(parse_toml(header.config, "its configuration"))
    except ConfigError as error:
        raise StateError(f"{folder} holds a run that this version of feddkd cannot read: {error}") from None


def _progress(state: RunState, entries: Iterable[Entry], mark: Marked | None, config: Config) -> Progress:
    done = [entry.event.record.id for entry in entries if isinstance(entry.event, ExchangeDone)]
    last = state.tally.last_evaluation
    return Progress(
        rounds=state.rounds or config.rounds,
        done=state.rounds_done,
        attempt=state.open.attempt if state.open is not None and not state.delivering else None,
        delivering=state.delivering,
        delivered=state.is_delivered or state.ended is not None,
        open_exchange=mark.exchange if mark is not None and mark.exchange not in done and state.ended is None else None,
        last_exchange=done[-1] if done else None,
        accuracy=last.accuracy if last is not None else None,
        seconds=state.elapsed_s,
        metric=MainMetric.of(config),
        scores=last.all_scores if last is not None else {},
    )


def _stand(place: RunPlace, live: LiveStatus | None, *, is_finished: bool, is_running: bool) -> Stand:
    if is_finished:
        return "finished"
    if is_running:
        return "running"
    has_said_why = live is not None and live.ended != ""
    return "paused" if has_said_why or place.status == "paused" else "dead"


def _process(incarnation: int, live: LiveStatus | None, config: Config) -> Process:
    """What the process that has the journal open says, unless it has not said anything yet."""
    if live is None or live.ended:
        return Process(incarnation)
    waits_for = live.waits_for
    if waits_for == JOINING:
        waits_for = f"{config.scheduler.starting_clients} clients to join; {live.connected} are there"
        waits_for += f": {listed(live.here)}" if live.here else ""
    return Process(incarnation, live.pid, waits_for, live.paused, live.waiting_for, live.num_waiting, max(0.0, time.time() - live.time))


def _cost(folder: Path, state: RunState, events: int, mark: Marked | None, *, is_open: bool) -> Cost:
    """Add to the totals of the journal what its last process has counted since.

    Args:
        is_open: whether the exchange that was begun last has no outcome.
    """
    traffic = state.traffic
    if mark is not None and is_open:
        traffic += mark.open
    if mark is not None and state.ended is None:
        traffic += mark.other
    blobs = folder / BLOBS
    blob_bytes = sum(map(_size_of, blobs.iterdir())) if blobs.is_dir() else 0
    return Cost(traffic, state.tally.lost, events, _size_of(folder / JOURNAL), blob_bytes)


def _size_of(file: Path) -> int:
    """Bytes of a file; none if it has just been deleted."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _clients(state: RunState, live: LiveStatus | None, awaited: Iterable[str]) -> dict[str, ClientStatus]:
    heard = live.last_heard_s if live is not None else {}
    age_s = max(0.0, time.time() - live.time) if live is not None else 0.0
    waiting = set(awaited)
    return {
        client: ClientStatus(
            state.known_clients.get(client),
            heard[client] + age_s if client in heard else None,
            client in waiting,
        )
        for client in sorted(state.known_clients.keys() | heard.keys())
    }


def _go_on(place: RunPlace, live: LiveStatus | None) -> str:
    """The command to type; where it is not known how a server was started, with blanks to fill in."""
    if place.state is None:
        return "" if place.status else shlex.join(["feddkd", "run", "--resume", str(place.folder.resolve())])
    known = live.command if live is not None else ""
    return known or f"feddkd server CONFIG --listen HOST:PORT --state {shlex.quote(str(place.state.resolve()))}"
