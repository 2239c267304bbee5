"""Measure what a federation takes: memory, bytes on the wire, and disk, by model and clients.

python benchmarks/sizing.py [--mib 1 10 100] [--clients 2 4 8 16] [--save FILE]

Each row is a `feddkd server` and one `feddkd client` process for each client, with FedDKD and its
defaults but few steps on little data: the sizes do not depend on these. Memory is the peak of the
resident set of a process, as the kernel counted it by the process's end. Nothing here is a time, so
the machine may be busy. A row that may not fit into the free memory is left out. Linux only.
docs/deploy.md shows the rows (benchmarks/sizing_page.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from torch import nn

from feddkd.bench.environment import environment
from feddkd.bench.peers import free_port
from feddkd.bench.throttle import LOOPBACK
from feddkd.config import Config
from feddkd.observability.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
ROUNDS = 3
STEPS = 3
RETRY_FOR_S = 300.0
SETTINGS = (
    *("partition.name=iid", "data.holdout=0", "data.test_set=false", f"rounds={ROUNDS}"),
    *("training.steps=1", "training.batch_size=8", "dkd.batch_size=8", f"dkd.steps={STEPS}"),
)


def mib_1(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network of 1 MiB."""
    return _network(1, input_shape, num_classes)


def mib_10(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network of 10 MiB."""
    return _network(10, input_shape, num_classes)


def mib_100(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network of 100 MiB."""
    return _network(100, input_shape, num_classes)


def _network(mib: int, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build two equal layers, most of which is a square of float32 weights."""
    assert input_shape == (1, 8, 8)
    width = round((mib * MIB / 4) ** 0.5) - 40  # the other layers and the biases take the rest
    layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, num_classes))


def fits(mib: int, clients: int) -> bool:
    """Say whether a row takes at most two thirds of the memory that is free."""
    process_bytes = (400 + 8 * mib) * MIB
    return 3 * (clients + 1) * process_bytes < 2 * psutil.virtual_memory().available


def measure(mib: int, clients: int) -> dict[str, Any]:
    """Run one federation and return its row; sizes in bytes."""
    config = Config.load(
        overrides=[*SETTINGS, f"model.name=sizing:mib_{mib}", f"partition.clients={clients}", f"scheduler.clients={clients}"]
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "config.toml").write_text(config.to_toml())
        server_peak, client_peaks = _run(home, config, clients)
        record = RunFolder.load(home / "record")
        model_bytes = (home / "record" / "model.safetensors").stat().st_size
        steady = record.rounds[1]  # the last round has the delivery
        return {
            "mib": mib,
            "clients": clients,
            "model_bytes": model_bytes,
            "exchanges_per_round": STEPS + 1,
            "server_peak_bytes": server_peak,
            "client_peak_bytes": max(client_peaks),
            "wire_bytes_down": steady.wire_bytes_down,
            "wire_bytes_up": steady.wire_bytes_up,
            "server_state_bytes": size_of(home / "server"),
            "record_bytes": size_of(home / "record"),
            "record_text_bytes_per_round": _text_bytes(home) // ROUNDS,
            "client_state_bytes": max(size_of(home / f"client-{index}") for index in range(clients)),
        }


def _run(home: Path, config: Config, clients: int) -> tuple[int, list[int]]:
    """Run server and clients to their end; returns the peaks of their resident sets in bytes."""
    feddkd, address = [sys.executable, "-m", "feddkd"], f"{LOOPBACK}:{free_port()}"
    server = [*feddkd, "server", "config.toml", "--listen", address, "--state", "server", "--out", "record", "--no-report"]
    commands = [server]
    for index in range(clients):
        own = ["--id", f"client-{index}", "--state", f"client-{index}", "--partition-index", str(index), "--retry-for", f"{RETRY_FOR_S:g}"]
        commands.append([*feddkd, "client", "--server", address, *own, "-o", f"model.name={config.model.name}"])
    search = os.pathsep.join([str(HERE), str(HERE.parent)])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    with (home / "said").open("wb") as said:
        processes = [subprocess.Popen(command, cwd=home, env=env, stdout=said, stderr=said) for command in commands]
        peaks = [_peak_bytes(process) for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{config.model.name}, {clients} clients: {(home / 'said').read_text()[-2000:]}")
    return peaks[0], peaks[1:]


def _peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process to end; returns the peak of its resident set."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def size_of(folder: Path) -> int:
    """Add up the sizes of the files below a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _text_bytes(home: Path) -> int:
    """Add up the files that grow with every round: the journal and the lines of the record."""
    names = ("journal.jsonl", "exchanges.jsonl", "rounds.jsonl")
    return sum(file.stat().st_size for folder in ("server", "record") for file in (home / folder).rglob("*.jsonl") if file.name in names)


def main() -> None:
    """Measure one row for each model and number of clients."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 10, 100], choices=[1, 10, 100], help="size of the model")
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--save", type=Path, help="write the rows as JSON to this file")
    options = parser.parse_args()
    rows = []
    for mib in options.mib:
        for clients in options.clients:
            if not fits(mib, clients):
                print(f"{mib} MiB, {clients} clients: left out: not enough memory", file=sys.stderr)
                continue
            rows.append(measure(mib, clients))
            Console().print_json(data=rows[-1])
    if options.save is not None:
        document = {"command": shlex.join(["python", "benchmarks/sizing.py", *sys.argv[1:]]), **environment(), "rows": rows}
        options.save.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
