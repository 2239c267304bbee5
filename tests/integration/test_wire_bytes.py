"""The ledger against the kernel: what it counts is what the sockets carried."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from gated import StartClient
from harness import RUN_ID, Recorder, serving, small_config

from feddkd import algorithms
from feddkd.engines.grpc import GrpcEngine
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.rounds import Scheduler

CLIENTS = 2


def kernel_counters(port: int) -> tuple[int, int]:
    """Bytes that this machine's established connections of a server have sent and received, retransmissions apart."""
    command = ["ss", "--tcp", "--info", "--no-header", "--oneline", "--numeric", "state", "established", f"sport = :{port}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == CLIENTS
    return sum(_counter("bytes_sent", line) for line in lines), sum(_counter("bytes_received", line) for line in lines)


def _counter(name: str, line: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", line)
    return int(found[1]) if found else 0


class Auditor(Recorder):
    """Reads the kernel's counters after every exchange."""

    port: int

    def __init__(self) -> None:
        super().__init__()
        self.kernel: list[tuple[int, int]] = []

    def exchange_done(self, record: ExchangeRecord) -> None:
        super().exchange_done(record)
        self.kernel.append(kernel_counters(self.port))


PLAIN = ["dkd.steps=1"]
FRUGAL = ["communication.preset=frugal", "dkd.steps=2", "dkd.batch_size=16"]
PACKED = ["dkd.steps=1", "communication.up=int8", "communication.down=int4", "communication.zstd=true"]

ALLOWANCE_BYTES = 2048
"""What HTTP/2 and TCP say in an exchange besides: settings, windows, pings."""


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) is not installed")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PLAIN, ["local_train", "dkd_step", "deliver"]),
        (FRUGAL, ["local_train", "dkd_step", "deliver"]),
        (PACKED, ["local_train", "dkd_step", "deliver"]),
    ],
    ids=["plain", "frugal", "packed"],
)
def test_the_ledger_agrees_with_the_kernels_counters(
    settings: list[str], expected: list[str], tmp_path: Path, start_client: StartClient
) -> None:
    config = small_config(
        'model.name="gated:wider_mlp"', "partition.name=iid", f"partition.clients={CLIENTS}", "data.subset=64", "rounds=1", *settings
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    model = build_initial(config).model
    assert 9e6 < model.schema.size_bytes < 11e6
    auditor = Auditor()
    with serving(engine=GrpcEngine(config, RUN_ID, model.schema)) as server:
        auditor.port = int(server.address.rpartition(":")[2])
        for client in range(CLIENTS):
            start_client(server.address, [client])
        server.wait_for("client-0", "client-1")
        sent, received = kernel_counters(auditor.port)
        Scheduler(config, algorithms.find("feddkd")(config), server.engine, run_id=RUN_ID, observers=[auditor]).run(model)
    assert [record.id.name for record in auditor.exchanges] == expected
    for record, (now_sent, now_received) in zip(auditor.exchanges, auditor.kernel, strict=True):
        assert record.traffic.wire_bytes_down == pytest.approx(now_sent - sent, rel=0.02, abs=ALLOWANCE_BYTES)
        assert record.traffic.wire_bytes_up == pytest.approx(now_received - received, rel=0.02, abs=ALLOWANCE_BYTES)
        sent, received = now_sent, now_received
    assert (auditor.exchanges[-1].traffic.wire_bytes_down < CLIENTS * model.schema.size_bytes / 2) == (settings is not PLAIN)
