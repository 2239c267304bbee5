"""The exchange over feddkd's own transport: the server of `feddkd bench transport`, measured as the peers are.

python feddkd_exchange.py server --port N --clients 4 --rounds 8 --megabytes 10 --tensors 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from probe import Probe

from feddkd.bench.transport import serve
from feddkd.bench.workload import Stopwatch, Workload


class Measured(Stopwatch):
    """Passes the beginning and the end of each exchange to the probe."""

    def __init__(self, clients: Sequence[int]) -> None:
        super().__init__(clients)
        self._probe = Probe()

    def start(self) -> None:
        self._probe.start()

    def stop(self) -> None:
        self._probe.stop()

    def report(self) -> dict[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["server"])
    parser.add_argument("--megabytes", type=float, required=True)
    for name in ("port", "clients", "rounds", "tensors"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    serve(Workload(options.clients, options.rounds, options.megabytes, options.tensors), timer=Measured, port=options.port)


if __name__ == "__main__":
    main()
