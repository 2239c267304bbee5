"""Measure what it costs that a crash of the server loses nothing.

python benchmarks/durability.py [--repeats 5] [--rounds 5] [--exchanges 20] [--save FILE]

Rounds: the embedded default over gRPC, with `scheduler.durability` "exchange" and "none" in turn; the first
round of each run is left out. Transport: one run of `feddkd bench transport` with 100 MiB and four clients,
whose exchanges are kept in a journal in turn; the first two are left out. Ratios are of medians of one run
of this script. Speed is worth publishing from an idle machine only: the load is in the result.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from feddkd.bench.environment import environment
from feddkd.bench.transport import serve
from feddkd.bench.workload import Workload
from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.exchange import Exchange, Outcome
from feddkd.scheduler import outcomes
from feddkd.scheduler.events import ExchangeDone
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import Header
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord

MODES = ("none", "exchange")


class RoundTimes(Observer):
    """Notes how long each round took, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def round_done(self, record: RoundRecord) -> None:
        self.seconds.append(record.seconds)


class EverySecond:
    """Keeps every second outcome in a journal, as the scheduler does."""

    def __init__(self, folder: Path) -> None:
        self._journal = FileJournal.create(folder, Header("benchmark", ""), "exchange")

    def __call__(self, exchange: Exchange, outcome: Outcome) -> None:
        if exchange.id.round % 2:
            return
        name = self._journal.store(*outcomes.encode(outcome))
        self._journal.append(ExchangeDone(_record(exchange, outcome), name))
        self._journal.prune({name})


def _record(exchange: Exchange, outcome: Outcome) -> ExchangeRecord:
    clients = len(exchange.clients)
    return ExchangeRecord(exchange.id, clients, clients, {}, outcome.traffic, outcome.seconds, 0.0, 0, None, None, {})


def round_times(repeats: int, rounds: int) -> dict[str, list[float]]:
    """Time the rounds of the embedded default in each mode, in turn; seconds."""
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode in MODES:
            times = RoundTimes()
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                config = Config.load(overrides=[f"rounds={rounds}", f"scheduler.durability={mode}"])
                run_federation(config, "grpc", Path(folder), [times])
            found[mode] += times.seconds[1:]
    return found


def transport_times(exchanges: int, megabytes: float) -> dict[str, list[float]]:
    """Time exchanges of a model of this size with four clients in each mode, in turn; seconds."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        seconds = serve(Workload(4, exchanges + 2, megabytes, 1), EverySecond(Path(folder)))["seconds"]
    assert isinstance(seconds, list)
    return {"none": seconds[2::2], "exchange": seconds[3::2]}


def summed_up(seconds: dict[str, list[float]]) -> dict[str, object]:
    """Medians, spread and their ratio."""
    medians = {mode: statistics.median(values) for mode, values in seconds.items()}
    found: dict[str, object] = {
        mode: {"median_s": round(medians[mode], 5), "min_s": round(min(values), 5), "max_s": round(max(values), 5), "count": len(values)}
        for mode, values in seconds.items()
    }
    return {**found, "ratio": round(medians["exchange"] / medians["none"], 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each mode; default 5")
    parser.add_argument("--rounds", type=int, default=5, help="of each run; default 5")
    parser.add_argument("--exchanges", type=int, default=20, help="of the transport; default 20")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args(arguments)
    document = {
        "command": shlex.join(["python", "benchmarks/durability.py", *(arguments or sys.argv[1:])]),
        **environment(None),
        "rounds": summed_up(round_times(options.repeats, options.rounds)),
        "transport_100_mib": summed_up(transport_times(options.exchanges, 100.0)),
    }
    text = json.dumps(document, indent=2)
    print(text)
    if options.save is not None:
        options.save.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
