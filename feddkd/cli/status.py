"""`feddkd status`: how a run stands, while it runs and afterwards."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from feddkd.cli.options import Json, Verbose
from feddkd.cli.output import LINE_LETTERS, WIDTH, present, say, say_fields
from feddkd.cli.run_place import RunFolderOrState, RunPlace
from feddkd.cli.words import counted_examples, listed, size
from feddkd.config.main_metric import title_of
from feddkd.text import printable, shown_score

if TYPE_CHECKING:
    from rich.table import Table

    from feddkd.cli.run_status import ClientStatus, RunStatus
    from feddkd.exchange import ExchangeId

MOST_ROWS = 20
"""Clients in the table; `--json` has all."""

NAME_LETTERS = 24


def status(folder: RunFolderOrState, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Show how a run stands.

    Says whether it is running, paused, dead or finished, how far it is, what it cost, whom it waits for, and the
    command that goes on with it. Reads the journal and the small file in which the living process says how it is.
    Changes nothing.

    ```console
    feddkd status server-state
    feddkd status runs/feddkd-20260101-120000 --json
    ```
    """
    place = RunPlace.find(folder)
    from feddkd.cli.run_status import RunStatus

    found = RunStatus.of(place)
    if as_json:
        say(json.dumps(as_object(found)))
        return
    say_fields(rows(found))
    if found.clients:
        present(_client_table(found), width=WIDTH)
    if found.go_on:
        say(f"  to go on:\n    {printable(found.go_on, LINE_LETTERS)}")


def as_object(found: RunStatus) -> dict[str, Any]:
    """What `--json` prints. Sizes are in bytes, times in seconds, down and up are seen from the client."""
    progress, cost, process = found.progress, found.cost, found.process
    return {
        "run_id": found.run_id,
        "state": found.state,
        "reason": found.reason,
        "algorithm": found.algorithm,
        "folder": str(found.folder),
        "rounds": progress.rounds,
        "rounds_done": progress.done,
        "attempt": progress.attempt,
        "delivering": progress.delivering,
        "open_exchange": _named(progress.open_exchange),
        "last_exchange": _named(progress.last_exchange),
        "accuracy": progress.accuracy,
        "metric": progress.metric.name,
        "scores": {name: value for name, value in progress.scores.items() if math.isfinite(value)},
        "seconds": progress.seconds,
        "wire_bytes_down": cost.traffic.wire_bytes_down,
        "wire_bytes_up": cost.traffic.wire_bytes_up,
        "lost_wire_bytes_down": cost.lost.wire_bytes_down,
        "lost_wire_bytes_up": cost.lost.wire_bytes_up,
        "events": cost.events,
        "journal_bytes": cost.journal_bytes,
        "blob_bytes": cost.blob_bytes,
        "process": process.incarnation,
        "pid": process.pid,
        "silent_s": process.silent_s,
        "waits_for": process.waits_for,
        "waiting_for": list(process.waiting_for),
        "num_waiting": process.num_waiting,
        "clients": {name: _client(client) for name, client in found.clients.items()},
        "go_on": found.go_on,
    }


def _named(exchange: ExchangeId | None) -> dict[str, Any] | None:
    if exchange is None:
        return None
    return {"round": exchange.round, "attempt": exchange.attempt, "exchange": exchange.name, "step": exchange.step}


def _client(client: ClientStatus) -> dict[str, Any]:
    return dataclasses.asdict(client) | {"examples": client.examples._asdict() if client.examples is not None else None}


def rows(found: RunStatus) -> Iterator[tuple[str, str]]:
    """Say how the run stands, line by line."""
    progress, cost = found.progress, found.cost
    yield "run", f"{found.run_id}, {found.algorithm}: {_state(found)}" + (f" ({found.reason})" if found.reason else "")
    yield "round", _round(found)
    yield "exchange", _exchange(found)
    for name in progress.metric.names:
        if name in progress.scores:
            yield title_of(name), shown_score(name, progress.scores[name])
    if waits := _waits(found):
        yield "waits for", waits
    yield "process", _process(found)
    yield "bytes on the wire", f"{size(cost.traffic.wire_bytes_down)} down, {size(cost.traffic.wire_bytes_up)} up"
    if cost.lost.wire_bytes:
        yield "lost of these", f"{size(cost.lost.wire_bytes_down)} down, {size(cost.lost.wire_bytes_up)} up"
    yield "journal", f"{size(cost.journal_bytes)} in {cost.events} events, and {size(cost.blob_bytes)} of tensors"
    yield "folder", f"{found.folder}/"


def _state(found: RunStatus) -> str:
    """Not `running` where the server has too few clients, or where all is done and it stays for clients that were away."""
    if found.progress.delivered and found.process.pid is not None:
        return "finished, lingering"
    return "paused, waiting for clients" if found.process.is_paused else found.state


def _round(found: RunStatus) -> str:
    progress = found.progress
    if progress.done == progress.rounds:
        return f"all {progress.rounds} are done" + (
            ", the final model is being delivered" if progress.delivering and not progress.delivered else ""
        )
    attempt = f", attempt {progress.attempt + 1}" if progress.attempt else ""
    return f"{progress.done + 1} of {progress.rounds}{attempt}"


def _exchange(found: RunStatus) -> str:
    """Not as `str` has it: the row above tells the attempt, and counts it from 1."""
    progress = found.progress
    is_open = progress.open_exchange is not None and not progress.delivered
    exchange = progress.open_exchange if is_open else progress.last_exchange
    if exchange is None:
        return "none yet"
    return f"{exchange.label} of round {exchange.round} {'is open' if is_open else 'was the last one done'}"


def _waits(found: RunStatus) -> str:
    process = found.process
    if process.waiting_for:
        return f"{process.waits_for} of {listed(process.waiting_for)}" + (
            f", {process.num_waiting} in all" if process.num_waiting > len(process.waiting_for) else ""
        )
    return process.waits_for


def _process(found: RunStatus) -> str:
    process = found.process
    number = f"number {process.incarnation} of this run"
    if process.pid is None:
        return number if found.state == "running" else f"{number}; it has ended"
    if process.is_stale:
        return f"{number}, pid {process.pid}; silent for {process.silent_s:.0f} s: it stands still, or its disk is full"
    return f"{number}, pid {process.pid}"


def _client_table(found: RunStatus) -> Table:
    """The clients that are waited for first, then those that were not heard for longest."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    more = len(found.clients) - MOST_ROWS
    table = Table(box=box.SIMPLE, caption=f"and {more} more: --json" if more > 0 else None, caption_justify="left")
    table.add_column("client", no_wrap=True)
    table.add_column("examples", justify="right")
    table.add_column("last heard", justify="right")
    table.add_column("")
    ordered = sorted(found.clients.items(), key=lambda item: (not item[1].is_awaited, -(item[1].last_heard_s or 0.0), item[0]))
    for name, client in ordered[:MOST_ROWS]:
        awaited = "its reply is awaited" if client.is_awaited else ""
        table.add_row(Text(printable(name, NAME_LETTERS)), _examples(client), _ago(client.last_heard_s), awaited)
    return table


def _examples(client: ClientStatus) -> str:
    if client.examples is None:
        return "-"
    labelled, unlabelled = client.examples
    return counted_examples(labelled, unlabelled) if unlabelled else f"{labelled:,}"


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
