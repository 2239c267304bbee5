"""Measure the memory of a gRPC server while clients send it their models.

python benchmarks/transport_memory.py [--mib 20] [--clients 4 16 64] [--codec int8] [--save FILE]

Each row is a server in a process of its own, with so many clients in four other processes; nobody
computes. It reads its resident memory when all clients have joined, and its peak over the exchanges
after the first. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.bench.environment import environment
from feddkd.bench.transport import DEADLINE_S, EchoWorker, schema_of
from feddkd.bench.workload import Workload
from feddkd.client.process import take_part
from feddkd.compression.codecs import find
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, Exchange, ExchangeId
from feddkd.tensors import Tensors

MIB = 1 << 20
EXCHANGES = 3
CLIENT_PROCESSES = 4


def resident_bytes(field: str) -> int:
    """Read a size from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def exchange_of(number: int, model: Tensors, clients: list[str], codec: str) -> Exchange:
    """Build the exchange of a number: a model down, one of the same schema up."""
    return Exchange(
        id=ExchangeId("benchmark", number, 0, "echo", 0),
        clients=dict.fromkeys(clients, 1.0),
        payload=model,
        reply_schema=model.schema,
        rule=WeightedMean(),
        closing=Closing(DEADLINE_S, enough=len(clients)),
        reply_codec=find(codec, unbiased=True) if codec else None,
    )


def serve(workload: Workload, codec: str) -> dict[str, float]:
    """Run the exchanges; returns the memory of this process in bytes."""
    schema = schema_of(workload)
    engine = GrpcEngine(Config(), "benchmark", schema)
    port = engine.start("127.0.0.1", 0)
    command = [sys.executable, __file__, "--mib", str(workload.megabytes), "--server", f"127.0.0.1:{port}"]
    shares = [range(first, workload.clients, CLIENT_PROCESSES) for first in range(CLIENT_PROCESSES)]
    processes = [subprocess.Popen([*command, "--clients", *map(str, share)]) for share in shares if share]
    try:
        engine.wait_for_clients(workload.clients, DEADLINE_S)
        joined = resident_bytes("VmRSS")
        model = Tensors(schema)
        for number in range(1, EXCHANGES + 1):
            outcome = engine.carry_out(exchange_of(number, model, list(engine.clients()), codec))
            assert outcome.reduced is not None, outcome.fault
            model = outcome.reduced
            del outcome
            if number == 1:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        return {"joined_bytes": joined, "peak_bytes": resident_bytes("VmHWM")}
    finally:
        engine.finish(completed=True, reason="all exchanges are done")
        for process in processes:
            process.wait()


def run_case(mib: float, clients: int, codec: str) -> dict[str, Any]:
    """Measure one row in a new process."""
    command = [sys.executable, __file__, "--mib", str(mib), "--clients", str(clients), "--codec", codec, "--serve"]
    environment_of_one = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment_of_one, check=True, stdout=subprocess.PIPE, text=True)
    return {"clients": clients, "codec": codec, **json.loads(done.stdout)}


def table_of(rows: list[dict[str, Any]], mib: float) -> Table:
    """Show bytes as MB, and as models above the server whose clients have joined."""
    table = Table("clients", "codec", "joined", "peak", "models above", title=f"models of {mib:g} MiB")
    for row in rows:
        above = (row["peak_bytes"] - row["joined_bytes"]) / (mib * MIB)
        sizes = (f"{row[name] / 1e6:.0f} MB" for name in ("joined_bytes", "peak_bytes"))
        table.add_row(str(row["clients"]), row["codec"] or "none", *sizes, f"{above:.2f}")
    return table


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--mib", type=float, default=20.0, help="size of the model")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64], help="numbers of clients")
    parser.add_argument("--codec", default="int8", help="of the replies in the second half of the rows")
    parser.add_argument("--save", type=Path, help="write the result as JSON to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    options = parser.parse_args()
    workload = Workload(options.clients[0], EXCHANGES, options.mib, 8)
    if options.server is not None:
        workers = {f"client-{rank}": EchoWorker(schema_of(workload), rank) for rank in options.clients}
        take_part(options.server, workers, retry_for_s=DEADLINE_S)
        return
    if options.serve:
        print(json.dumps(serve(workload, options.codec)))
        return
    rows = [run_case(options.mib, clients, codec) for codec in ("", options.codec) for clients in options.clients]
    Console().print(table_of(rows, options.mib))
    if options.save is not None:
        document = {"command": shlex.join(sys.argv), **environment(), "mib": options.mib, "rows": rows}
        options.save.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
