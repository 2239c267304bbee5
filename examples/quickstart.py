"""Run a small federation from Python and watch its rounds.

python examples/quickstart.py                              real gRPC, client processes on this machine
python examples/quickstart.py rounds=1 dkd.steps=2         any key of the configuration can be overridden
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.scheduler.records import Observer, RoundRecord


class PrintRounds(Observer):
    """An observer overrides the events it wants to see; here, the end of a round."""

    def round_done(self, record: RoundRecord) -> None:
        accuracy = f"{record.evaluation.accuracy:.1%}" if record.evaluation else "not evaluated"
        print(f"round {record.round}: accuracy {accuracy}, {record.cumulative_wire_bytes / 1e6:.1f} MB on the wire so far")


def main() -> None:
    settings = ["rounds=3", "partition.clients=4", "partition.name=dirichlet", "dkd.steps=5", *sys.argv[1:]]
    config = Config.load(overrides=settings)
    with tempfile.TemporaryDirectory() as folder:
        record = run_federation(config, "grpc", Path(folder), [PrintRounds()])
    print(f"model {record.model.sha256()[:12]}: {len(record.model)} tensors, {record.model.schema.size_bytes} bytes")


if __name__ == "__main__":
    main()
