"""`feddkd replay`: fold a journal again, and check everything that it names."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddkd.cli.options import Json, Verbose
from feddkd.cli.output import say, say_fields
from feddkd.cli.run_place import RunFolderOrState, RunPlace
from feddkd.cli.words import size

if TYPE_CHECKING:
    from feddkd.observability.record_check import RecordCheck
    from feddkd.scheduler.inspection import Inspection
    from feddkd.scheduler.state import RunState

LOOKS = 3
"""A process that works on the run may delete a blob while it is looked for."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A journal and a record that were checked."""

    folder: Path
    journal: Inspection
    record: RecordCheck

    @property
    def problems(self) -> list[str]:
        """What is damaged or missing."""
        return [*self.journal.problems, *self.record.problems]

    @property
    def notes(self) -> list[str]:
        """What may be as it is."""
        return [*self.journal.notes, *self.record.notes]


def replay(
    folder: RunFolderOrState,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Compare with this record. Default: the one beside the journal.", show_default=False),
    ] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Check the journal and the record of a run for damage.

    Folds the journal without a network. Checks each of its lines, each file of tensors that the next process
    needs, and that `exchanges.jsonl`, `rounds.jsonl`, `summary.json` and `model.safetensors` are what the journal
    says. Changes nothing. Exit code 1 if something is damaged.

    ```console
    feddkd replay server-state
    feddkd replay runs/feddkd-20260101-120000 --json
    ```
    """
    place = RunPlace.find(folder)
    found = replayed(place.folder, out or place.folder)
    if as_json:
        say(json.dumps(as_object(found)))
    else:
        say_fields(rows(found))
    if found.problems:
        raise typer.Exit(1)


def replayed(folder: Path, record: Path) -> Replayed:
    """Check the journal in a folder, and a record. Raises StateError."""
    from feddkd.cli.run_status import config_of
    from feddkd.observability.record_check import check_record
    from feddkd.scheduler.inspection import inspect
    from feddkd.scheduler.journal_file import is_open
    from feddkd.scheduler.journal_lines import read_journal

    config = config_of(folder, read_journal(folder)[0])
    for _ in range(LOOKS):
        journal = inspect(folder, config.scheduler.quorum)
        found = Replayed(folder, journal, check_record(record, journal.header.run_id, journal.entries, config, journal.model))
        if not found.problems or not is_open(folder):
            break
    return found


def as_object(found: Replayed) -> dict[str, Any]:
    """What `--json` prints. Sizes are in bytes, times in seconds, down and up are seen from the client."""
    journal, state = found.journal, found.journal.state
    tally = state.tally
    return {
        "run_id": journal.header.run_id,
        "folder": str(found.folder),
        "is_damaged": bool(found.problems),
        "problems": found.problems,
        "notes": found.notes,
        "is_finished": state.ended is not None,
        "goes_on": goes_on(state),
        "rounds": state.rounds,
        "rounds_done": state.rounds_done,
        "processes": state.incarnation,
        "events": len(journal.entries),
        "events_kept": journal.good,
        "exchanges": exchanges(found),
        "blobs_checked": journal.blobs_checked,
        "compared": found.record.compared,
        "total_wire_bytes_down": tally.traffic.wire_bytes_down + tally.other.wire_bytes_down,
        "total_wire_bytes_up": tally.traffic.wire_bytes_up + tally.other.wire_bytes_up,
        "other_wire_bytes_down": tally.other.wire_bytes_down,
        "other_wire_bytes_up": tally.other.wire_bytes_up,
        "lost_wire_bytes_down": tally.lost.wire_bytes_down,
        "lost_wire_bytes_up": tally.lost.wire_bytes_up,
        "payload_bytes_down": tally.traffic.payload_bytes_down,
        "payload_bytes_up": tally.traffic.payload_bytes_up,
        "seconds": state.elapsed_s,
        "model_sha256": journal.model.sha256() if journal.model is not None else None,
    }


def exchanges(found: Replayed) -> dict[str, int]:
    """How many exchanges of each name the run goes on after."""
    from feddkd.scheduler.events import ExchangeDone

    journal = found.journal
    return dict(Counter(entry.event.record.id.name for entry in journal.entries[: journal.good] if isinstance(entry.event, ExchangeDone)))


def goes_on(state: RunState) -> str:
    """Say in words where the next process begins; empty for a finished run."""
    if state.ended is not None:
        return ""
    if not state.has_started:
        return "with the wait for clients"
    if state.open is None:
        where = "the delivery of the final model" if state.rounds_done == state.rounds else f"round {state.rounds_done + 1}"
        return f"with {where}"
    done = list(state.open.outcomes)
    if done:
        return f"after {done[-1]}"
    if state.delivering:
        return "with the delivery of the final model"
    attempt = f", attempt {state.open.attempt + 1}" if state.open.attempt else ""
    return f"with round {state.rounds_done + 1}{attempt}"


def rows(found: Replayed) -> list[tuple[str, str]]:
    """What is printed, line by line."""
    journal, state = found.journal, found.journal.state
    tally, total = state.tally, state.tally.traffic + state.tally.other
    counted = ", ".join(f"{count} {name}" for name, count in exchanges(found).items())
    compared = ", ".join(found.record.compared)
    lines = [
        ("run", f"{journal.header.run_id}: {'finished' if state.ended is not None else f'goes on {goes_on(state)}'}"),
        ("rounds", f"{state.rounds_done} of {state.rounds}"),
        ("exchanges", counted or "none"),
        ("bytes on the wire", f"{size(total.wire_bytes_down)} down, {size(total.wire_bytes_up)} up"),
    ]
    if tally.lost.wire_bytes:
        lines.append(("lost of these", f"{size(tally.lost.wire_bytes_down)} down, {size(tally.lost.wire_bytes_up)} up"))
    lines.append(("processes", str(state.incarnation)))
    if journal.model is not None:
        lines.append(("model sha256", f"{journal.model.sha256()} (round {state.rounds_done})"))
    kept = f", {journal.good} of them of use" if journal.good < len(journal.entries) else ""
    lines.append(("checked", f"{len(journal.entries)} events{kept}, {journal.blobs_checked} files of tensors"))
    lines.append(("compared", compared or "no record is there"))
    lines += [("note", note) for note in found.notes]
    lines += [("DAMAGED", problem) for problem in found.problems]
    if not found.problems:
        lines.append(("result", "everything is as the journal says"))
    return lines
