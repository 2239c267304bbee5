"""A live server under thousands of hostile messages lives, and honest clients get their model."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from hostile import Horde
from hostile_messages import Situation
from hostile_peers import describe
from subsets import slow

from feddkd.transport.pb import federation_pb2 as pb

TESTS = Path(__file__).resolve().parents[1]
CHUNK_BYTES = 4096
ALGORITHMS = {
    "fedavg": (["algorithm.name=fedavg", "rounds=5"], 6, ()),
    "feddkd": (["rounds=2", "dkd.steps=2"], 7, ("previous_loss",)),
}
"""Overrides, number of exchanges, and the scalars beside an update."""
OVERRIDES = [
    "partition.clients=4",
    "partition.labels=3",
    "training.epochs=1",
    "scheduler.wait_for_clients=4",
    "scheduler.min_clients=4",
    "scheduler.deadline_s=600",
    "scheduler.reconnect_grace_s=1",
    f"transport.chunk_bytes={CHUNK_BYTES}",
]
MESSAGES_PER_MEMBER = 20
START_TIMEOUT_S = 60.0
EXCHANGE_TIMEOUT_S = 60.0
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202e]")
SECOND_LINE = "lines"
"""Of the client's text "two\\nlines"."""
MEMORY_GROWTH_BYTES = 128 << 20
NOISE = ("ExecuteBatchError raised in core", "PollerCompletionQueue._handle_events")
"""What gRPC logs when a client hangs up while a status is being sent."""


def feddkd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "feddkd", *arguments]


class Lines:
    """The lines of a pipe, read in a thread so that each wait for one is bounded."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self._lines.put(None)

    def next(self, timeout_s: float) -> str | None:
        """The next line; None at the end. Raises queue.Empty if it takes too long."""
        return self._lines.get(timeout=timeout_s)


class Federation:
    """A server process, and a process with honest clients that wait before each exchange."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder = folder
        self._log = folder / "server.log"
        options = [argument for override in overrides for argument in ("-o", override)]
        show = feddkd("config", "show", *options)
        config = subprocess.run(show, cwd=folder, stdout=subprocess.PIPE, check=True)
        (folder / "config.toml").write_bytes(config.stdout)
        self.server = self._start_server()
        self.address = self._address()
        self._clients = subprocess.Popen(
            [sys.executable, TESTS / "honest_clients.py", "config.toml", self.address, "clients"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._clients.stdout is not None
        self._begun = Lines(self._clients.stdout)
        self._rss = psutil.Process(self.server.pid).memory_info().rss

    def _start_server(self) -> subprocess.Popen[bytes]:
        listen = ["--listen", "127.0.0.1:0", "--state", "state", "--out", "record"]
        command = feddkd("server", "config.toml", *listen, "--no-report", "--json")
        with self._log.open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def _address(self) -> str:
        pause = threading.Event()
        for _ in range(int(START_TIMEOUT_S / 0.05)):
            found = re.search(r"listening on (127\.0\.0\.1:\d+)", self.log)
            if found is not None:
                return found[1]
            assert self.server.poll() is None, self.log
            pause.wait(0.05)
        raise AssertionError(f"the server does not listen: {self.log}")

    def next_exchange(self) -> pb.ExchangeId | None:
        """The exchange that honest clients wait to compute; None when the run is over."""
        line = self._begun.next(EXCHANGE_TIMEOUT_S)
        return None if line is None else pb.ExchangeId(**json.loads(line))

    def release(self) -> None:
        """Let honest clients compute."""
        assert self._clients.stdin is not None
        self._clients.stdin.write("go\n")
        self._clients.stdin.flush()

    def check_alive(self) -> None:
        """The server answers, and holds little more than at the start of the run."""
        assert self.server.poll() is None, self.log
        assert describe(self.address).run_id
        assert psutil.Process(self.server.pid).memory_info().rss < self._rss + MEMORY_GROWTH_BYTES

    def finish(self) -> dict[str, Any]:
        """The summary of the run, once both processes have ended well."""
        assert self._clients.wait(EXCHANGE_TIMEOUT_S) == 0
        assert self.server.wait(EXCHANGE_TIMEOUT_S) == 0
        summary: dict[str, Any] = json.loads((self.folder / "record" / "summary.json").read_text())
        return summary

    @property
    def log(self) -> str:
        """What the server said."""
        return self._log.read_text()

    def errors(self) -> list[str]:
        """What the server logged of errors."""
        records = re.split(r"^(?=\d{4}-\d\d-\d\d )", self.log, flags=re.MULTILINE)
        errors = [text for text in records if " ERROR " in text or "Traceback" in text]
        return [text for text in errors if not any(noise in text for noise in NOISE)]

    def close(self) -> None:
        for process in (self._clients, self.server):
            if process.poll() is None:
                process.kill()
            process.wait()
        for pipe in (self._clients.stdin, self._clients.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def federation(algorithm: str, tmp_path: Path) -> Iterator[Federation]:
    with contextlib.closing(Federation(tmp_path, [*OVERRIDES, *ALGORITHMS[algorithm][0]])) as found:
        yield found


def undisturbed_sha256(folder: Path) -> str:
    """The hash of the final model of the same run, in process and without hostile clients."""
    options = ["--engine", "in-process", "--out", "undisturbed", "--no-report", "--json"]
    command = feddkd("run", "config.toml", *options)
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    return str(json.loads(done.stdout)["model_sha256"])


def attack(federation: Federation, algorithm: str, messages: int, seed: int) -> Horde:
    """Send so many messages, spread over all exchanges of a run."""
    _, exchanges, extras = ALGORITHMS[algorithm]
    share = -(-messages // exchanges)
    model = describe(federation.address).model
    horde, past = Horde(federation.address, seed), list[pb.ExchangeId]()
    with contextlib.closing(horde):
        while (exchange := federation.next_exchange()) is not None:
            situation = Situation(exchange, tuple(past), model, CHUNK_BYTES, extras)
            horde.attack(situation, share)
            federation.check_alive()
            horde.enlist(situation, members=share // MESSAGES_PER_MEMBER)
            federation.release()
            past.append(exchange)
    assert len(past) == exchanges
    return horde


def check(federation: Federation, horde: Horde, messages: int) -> None:
    """The server lived, honest clients finished, and nothing was left undone."""
    tally = horde.tally
    print(tally)
    assert federation.finish()["model_sha256"] == undisturbed_sha256(federation.folder)
    assert federation.errors() == []
    assert CONTROL_CHARACTERS.findall(federation.log) == []
    assert SECOND_LINE not in federation.log.splitlines()
    assert tally.calls["DEADLINE_EXCEEDED"] == 0
    assert tally.streams["not ended"] == 0
    # What the messages were made for did happen.
    assert tally.sent >= messages
    assert horde.works > 0
    assert {"VERDICT_INVALID_ARGUMENT", "VERDICT_FAILED_PRECONDITION"} <= tally.receipts.keys()
    assert {"INVALID_ARGUMENT", "UNAUTHENTICATED", "OK"} <= tally.streams.keys()
    assert {"INVALID_ARGUMENT", "ALREADY_EXISTS", "OK"} <= tally.calls.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("algorithm", [*slow(("fedavg",)), "feddkd"])  # which has the exchanges of both
def test_hostile_messages_change_nothing(algorithm: str, federation: Federation) -> None:
    check(federation, attack(federation, algorithm, 1_000, seed=1), 1_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_many_more_of_them_change_nothing(algorithm: str, federation: Federation) -> None:
    check(federation, attack(federation, algorithm, 50_000, seed=2), 50_000)
