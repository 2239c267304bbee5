"""What a run left behind, and the invariants that hold over it whatever was killed, cut or stopped.

The journal says what the server committed; each client's history says what that client saw.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.config import Config
from feddkd.exchange import DELIVER
from feddkd.observability.run_folder import CONFIG, EXCHANGES, ROUNDS, SUMMARY

JOURNAL = "journal.jsonl"
BLOBS = "blobs"
COUNTED = ("OK", "DUPLICATE")
"""Verdicts after which a client forgets its reply."""

Line = Mapping[str, Any]
Key = tuple[int, int, str, int]
"""An exchange of the run: round, attempt, name, step."""


@dataclass(frozen=True)
class RunHistory:
    """A run's folder, and what its clients saw.

    Attributes:
        journal: the events, in order; empty where there is no journal.
        exchanges: the lines of `exchanges.jsonl`.
        rounds: the lines of `rounds.jsonl`.
        summary: of a run that finished.
        processes: the lines of what each process saw, by "server" or client id.
        folder: the run's folder.
    """

    journal: Sequence[Line]
    exchanges: Sequence[Line]
    rounds: Sequence[Line]
    summary: Line | None
    processes: Mapping[str, Sequence[Line]]
    folder: Path

    @classmethod
    def read(cls, folder: Path, histories: Mapping[str, Path]) -> RunHistory:
        """Read a run's folder and the histories of its processes, by name."""
        journal = _lines(folder / JOURNAL)
        summary = folder / SUMMARY
        return cls(
            [line["event"] for line in journal[1:]],
            _lines(folder / EXCHANGES),
            _lines(folder / ROUNDS),
            json.loads(summary.read_text()) if summary.exists() else None,
            {name: _lines(file) for name, file in histories.items()},
            folder,
        )

    def events(self, kind: str) -> list[Line]:
        return [event for event in self.journal if event["kind"] == kind]

    def saw(self, process: str, what: str) -> list[Line]:
        return [line for line in self.processes.get(process, ()) if line["saw"] == what]

    def visits(self, process: str) -> Counter[str]:
        """How often a process came to each failpoint."""
        return Counter(line["name"] for line in self.saw(process, "failpoint"))


def record_folder(state: Path) -> Path:
    """The folder of the run that a server's state directory names. Raises OSError."""
    return state / str(json.loads((state / "run.json").read_text())["run_id"])


def violations(history: RunHistory) -> list[str]:
    """What contradicts the invariants, one line each; nothing if all is well."""
    checks = (
        _record_is_complete,
        _nothing_counts_twice,
        _rounds_follow_each_other,
        _receipts_are_kept,
        _work_goes_forward,
        _quorum_is_met,
        _nothing_is_computed_twice,
        _bytes_add_up,
        _blobs_are_what_their_names_say,
    )
    return [f"{check.__name__.strip('_').replace('_', ' ')}: {problem}" for check in checks for problem in check(history)]


def _record_is_complete(history: RunHistory) -> Iterator[str]:
    """I8: the run is over, and all files say the same of it."""
    if history.summary is None:
        yield "there is no summary"
        return
    if len(history.rounds) != history.summary["rounds"]:
        yield f"{len(history.rounds)} lines of rounds, the summary says {history.summary['rounds']}"
    if history.journal:
        done = [_key(event["record"]["id"]) for event in history.events("exchange_done")]
        if done != [_key_of_line(line) for line in history.exchanges]:
            yield "journal and exchanges.jsonl name other exchanges"
        if len(history.events("run_finished")) != 1:
            yield f"run_finished stands there {len(history.events('run_finished'))} times"


def _nothing_counts_twice(history: RunHistory) -> Iterator[str]:
    """I2: one line for each exchange, and no client twice in one."""
    for key, times in Counter(map(_key_of_line, history.exchanges)).items():
        if times > 1:
            yield f"{key} has {times} lines"
    for line in history.exchanges:
        if line["clients_reported"] + len(line["clients_missing"]) != line["clients_selected"]:
            yield f"{_key_of_line(line)}: clients that reported and that are missing are not those that were asked"


def _rounds_follow_each_other(history: RunHistory) -> Iterator[str]:
    """I3: rounds and steps go up by one, and every round is finished once."""
    if [line["round"] for line in history.rounds] != list(range(1, len(history.rounds) + 1)):
        yield f"rounds are {[line['round'] for line in history.rounds]}"
    keys = [_key_of_line(line) for line in history.exchanges]
    if [key[:2] for key in keys] != sorted(key[:2] for key in keys):
        yield "an exchange stands behind one of a later round or attempt"
    steps: dict[tuple[int, int, str], list[int]] = {}
    for round_number, attempt, name, step in keys:
        steps.setdefault((round_number, attempt, name), []).append(step)
    for where, found in steps.items():
        if found != list(range(found[0], found[0] + len(found))):
            yield f"{where} has the steps {found}"


def _receipts_are_kept(history: RunHistory) -> Iterator[str]:
    """I1 and I4: a reply that a client was told counts is in the record, once.

    What a finished run delivers again to clients that come late belongs to no record.
    """
    reported = {_key_of_line(line): line for line in history.exchanges}
    for client in history.processes:
        for line in history.saw(client, "receipt"):
            if line["verdict"] not in COUNTED:
                continue
            key = _key_of_history(line)
            if key[1] > 0 and key[2] == DELIVER:
                continue
            if key not in reported:
                yield f"{client} was told that its reply to {key} counts; the record has no such exchange"
            elif client in reported[key]["clients_missing"]:
                yield f"{client} was told that its reply to {key} counts; the record says that it is missing"


def _work_goes_forward(history: RunHistory) -> Iterator[str]:
    """I5: no client is asked for a round older than one whose receipt it has, nor again for that exchange."""
    for client, lines in history.processes.items():
        newest, acknowledged = 0, set[Key]()
        for line in lines:
            if line["saw"] == "receipt" and line["verdict"] in COUNTED:
                newest = max(newest, line["exchange"][1])
                acknowledged.add(_key_of_history(line))
            elif line["saw"] == "work":
                key = _key_of_history(line)
                if key[0] < newest:
                    yield f"{client} was asked for {key} after a receipt of round {newest}"
                if key in acknowledged:
                    yield f"{client} was asked again for {key}, which it has a receipt of"


def _quorum_is_met(history: RunHistory) -> Iterator[str]:
    """I7: only the delivery may do without a client that the configuration insists on."""
    quorum = Config.load(history.folder / CONFIG).scheduler.quorum
    for line in history.exchanges:
        if line["clients_reported"] < quorum and line["exchange"] != DELIVER:
            yield f"{_key_of_line(line)} has {line['clients_reported']} replies of {quorum}"


def _nothing_is_computed_twice(history: RunHistory) -> Iterator[str]:
    """The same exchange may be computed again after a client died; then its bits are the same."""
    for client in history.processes:
        found: dict[Key, set[str | None]] = {}
        for line in history.saw(client, "computed"):
            found.setdefault(_key_of_history(line), set()).add(line["sha256"])
        for key, hashes in found.items():
            if len(hashes) > 1:
                yield f"{client} computed {key} to {len(hashes)} different contributions"


def _bytes_add_up(history: RunHistory) -> Iterator[str]:
    """I9: what was lost is a part of what crossed the wire, and the totals are sums of the lines."""
    for line in history.exchanges:
        for way in ("down", "up"):
            if not 0 <= line.get(f"lost_wire_bytes_{way}", 0) <= line[f"wire_bytes_{way}"]:
                yield f"{_key_of_line(line)}: {line[f'lost_wire_bytes_{way}']} of {line[f'wire_bytes_{way}']} bytes {way} were lost"
    if history.summary is None:
        return
    for way in ("down", "up"):
        in_exchanges = sum(line[f"wire_bytes_{way}"] for line in history.exchanges)
        total = history.summary[f"total_wire_bytes_{way}"] - history.summary[f"other_wire_bytes_{way}"]
        if total != in_exchanges:
            yield f"{in_exchanges} bytes {way} in the exchanges, {total} in the summary"


def _blobs_are_what_their_names_say(history: RunHistory) -> Iterator[str]:
    """I6: what the journal names is there, with the content that its name is the SHA-256 of."""
    for file in sorted((history.folder / BLOBS).glob("*")):
        name = file.name.partition(".")[0]
        if len(name) == 64 and ".corrupt" not in file.name and hashlib.sha256(file.read_bytes()).hexdigest() != name:
            yield f"{file.name} holds something else"


def differences(undisturbed: RunHistory, disturbed: RunHistory) -> list[str]:
    """In what a run that was disturbed differs from one that was not, beyond what the fault cost (I11)."""
    assert undisturbed.summary is not None
    if disturbed.summary is None:
        return ["it has no summary"]
    found = [
        f"{key} of the summary: {undisturbed.summary[key]} and {disturbed.summary[key]}"
        for key in sorted(undisturbed.summary.keys() - _OWN_OF_A_RUN)
        if _without_times(undisturbed.summary[key]) != _without_times(disturbed.summary.get(key))
    ]
    found += _different_lines("exchanges", undisturbed.exchanges, disturbed.exchanges)
    found += _different_lines("rounds", undisturbed.rounds, disturbed.rounds)
    return found


_OWN_OF_A_RUN = {
    *("run_id", "seconds", "started", "ended", "versions"),
    *(f"{kind}_wire_bytes_{way}" for kind in ("total", "other", "lost") for way in ("down", "up")),
    "exchanges",  # their wire bytes are compared line by line
}
"""Keys of a summary that differ between two runs of one configuration, or that a fault may change."""

_TIMES = ("seconds", "client_seconds", "codec_s_down", "codec_s_up", "lost_s", "time", "started", "ended", "first", "last")
_RUNNING_TOTAL = "cumulative_wire_bytes"


def _different_lines(name: str, undisturbed: Sequence[Line], disturbed: Sequence[Line]) -> Iterator[str]:
    if len(undisturbed) != len(disturbed):
        yield f"{name}: {len(undisturbed)} and {len(disturbed)} lines"
        return
    for number, (one, other) in enumerate(zip(undisturbed, disturbed, strict=True), 1):
        expected, found = _without_losses(one), _without_losses(other)
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                yield f"{name}, line {number}, {key}: {expected.get(key)} and {found.get(key)}"


def _without_losses(line: Line) -> dict[str, Any]:
    """A line without times, and with the wire bytes that were of use."""
    kept = {key: _without_times(value) for key, value in line.items() if key not in _TIMES and key != _RUNNING_TOTAL}
    for way in ("down", "up"):
        kept[f"wire_bytes_{way}"] = line[f"wire_bytes_{way}"] - kept.pop(f"lost_wire_bytes_{way}", 0)
    return kept


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return value


def _lines(file: Path) -> list[Line]:
    """The lines of a file of JSON; a torn last one and a file that is not there hold nothing."""
    if not file.exists():
        return []
    text = file.read_text()
    return [json.loads(line) for line in _whole_lines(text)]


def _whole_lines(text: str) -> Iterable[str]:
    return text.split("\n")[:-1]


def _key(exchange: Line) -> Key:
    return exchange["round"], exchange["attempt"], exchange["name"], exchange["step"]


def _key_of_line(line: Line) -> Key:
    return line["round"], line["attempt"], line["exchange"], line["step"]


def _key_of_history(line: Line) -> Key:
    _, round_number, attempt, name, step = line["exchange"]
    return round_number, attempt, name, step
