"""Faults that come upon a federation at random, one after another, and what its processes take up meanwhile."""

from __future__ import annotations

import random
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import psutil
from cable import Cable
from federation import SERVER, Federation

LONGEST_PAUSE_S = 1.0
"""Between two faults."""

SHORT_S = 3.0
LONG_S = 25.0
"""A stop or a blocked line lasts up to the first, and one in twenty up to the second: then connections are given up."""

LONG_SHARE = 0.05

SERVER_TROUBLES = (
    "journal.append.before_fsync=kill@{n}",
    "journal.append.before_write=enospc@{n}",
    "blobs.write.before_fsync=eio@{n}",
    "engine.acknowledge.after_first=kill@{n}",
    "engine.exchange.before_outcome=sleep(2)@{n}",
    "scheduler.round.after_checkpoint=hold_gil(2)@{n}",
)
CLIENT_TROUBLES = (
    "client.outbox.after_write=kill@{n}",
    "client.reply.before_send=kill@{n}",
    "client.receipt.after_settle=kill@{n}",
    "client.task.before_compute=hold_gil(2)@{n}",
)
LATEST_VISIT = 200


class Sample(NamedTuple):
    """What a process takes up."""

    memory_bytes: int
    threads: int
    files: int


class Weather:
    """Lets faults come until it is stopped, from a thread of its own.

    Attributes:
        faults: how many came, by kind.
        samples: of each process, by name and process id, one after each fault.
    """

    def __init__(self, federation: Federation, cables: Mapping[str, Cable], rng: random.Random, spared: Sequence[str] = ()) -> None:
        """Begin.

        Args:
            cables: of each client.
            spared: processes that are never killed, so that what they take up can be followed.
        """
        self.faults: Counter[str] = Counter()
        self.samples: dict[tuple[str, int], list[Sample]] = {}
        self._federation = federation
        self._cables = cables
        self._rng = rng
        self._mortal = [name for name in federation.starts if name not in spared]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        kinds: Sequence[Callable[[], None]] = (self._kill, self._stand_still, self._cut, self._block)
        while not self._over.wait(self._rng.uniform(0, LONGEST_PAUSE_S)):
            fault = self._rng.choice(kinds)
            fault()
            self.faults[fault.__name__.strip("_")] += 1
            self._measure()

    def _duration_s(self) -> float:
        return self._rng.uniform(0, LONG_S if self._rng.random() < LONG_SHARE else SHORT_S)

    def _kill(self) -> None:
        """Kill a process, whose next one may find trouble of its own."""
        name = self._rng.choice(self._mortal)
        troubles = SERVER_TROUBLES if name == SERVER else CLIENT_TROUBLES
        if self._rng.random() < 0.5:
            self._federation.plan(name, self._rng.choice(troubles).format(n=self._rng.randint(1, LATEST_VISIT)))
        self._federation.processes[name].kill()

    def _stand_still(self) -> None:
        process = self._federation.processes[self._rng.choice([*self._federation.starts])]
        process.signal(signal.SIGSTOP)
        self._over.wait(self._duration_s())
        process.signal(signal.SIGCONT)

    def _cut(self) -> None:
        self._cables[self._rng.choice([*self._cables])].cut()

    def _block(self) -> None:
        cable = self._cables[self._rng.choice([*self._cables])]
        cable.block(*self._rng.choice((("up",), ("down",), ("up", "down"))))
        self._over.wait(self._duration_s())
        cable.unblock()

    def _measure(self) -> None:
        for name, process in list(self._federation.processes.items()):
            try:
                seen = psutil.Process(process.pid)
                sample = Sample(seen.memory_info().rss, seen.num_threads(), seen.num_fds())
            except psutil.Error:  # it has ended
                continue
            self.samples.setdefault((name, process.pid), []).append(sample)


FEWEST_SAMPLES = 40
GROWTH_SHARE = 0.1
GROWTH = Sample(memory_bytes=16 << 20, threads=4, files=8)
"""More than this in the last quarter of a process's life than in the second is growth."""


def growth(samples: Sequence[Sample]) -> list[str]:
    """What a process takes up more and more of. A short life says nothing."""
    quarter = len(samples) // 4
    if len(samples) < FEWEST_SAMPLES:
        return []
    found = []
    for what, allowed in GROWTH._asdict().items():
        values = [getattr(sample, what) for sample in samples]
        before, after = (statistics.median(part) for part in (values[quarter : 2 * quarter], values[-quarter:]))
        if after > before + max(allowed, GROWTH_SHARE * before):
            found.append(f"{what} grew from {before:.0f} to {after:.0f}")
    return found
