"""Runs whose server and clients are killed at random: each has to end like the run that nothing disturbs.

    scripts/soak --runs 200 --seed 7         200 runs, each with kills of its own
    scripts/soak --seed 7 --first 41         run 41 of these again: the same failpoints, the same moments
    scripts/soak --minutes 30 --seed 7       long runs under every fault, with an eye on memory, threads and files

A kill at a failpoint happens at the same step again. One after some seconds finds the process where it
is by then, so that a run may have to be repeated to fail again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cable import Cable
from federation import CONFIGS, SERVER, Federation, problems_of
from processes import StuckError
from run_history import RunHistory
from weather import FEWEST_SAMPLES, Weather, growth

from feddkd.failpoints import CLIENT_FAILPOINTS, SERVER_FAILPOINTS

MOST_DEATHS = 3
"""At failpoints, of one process in a run."""

MOST_MOMENTS = 4
LONG_PATIENCE_S = 900.0
LATEST_S = 3.0
"""A run that nothing disturbs takes a second, and one whose processes are killed some more."""


class Moment(NamedTuple):
    """When which process is killed, in seconds since the start of the run."""

    at_s: float
    name: str


@dataclass(frozen=True)
class Fate:
    """What happens in one run.

    Attributes:
        config: one of CONFIGS.
        failpoints: of each process, for its first starts one after another.
        moments: kills that come in any case, in order.
    """

    config: str
    failpoints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    moments: Sequence[Moment] = ()

    @classmethod
    def draw(cls, seed: int, number: int, visits: Mapping[str, RunHistory]) -> Fate:
        """The fate of run `number`.

        Args:
            visits: undisturbed runs of each of CONFIGS: how often their processes come to each failpoint.
        """
        rng = random.Random(f"{seed}:{number}")
        config = rng.choice(sorted(CONFIGS))
        names = [SERVER, "client-0", "client-1", "client-2"]
        failpoints = {name: _deaths(rng, name, visits[config]) for name in names if rng.random() < 0.5}
        moments = sorted(Moment(rng.uniform(0.0, LATEST_S), rng.choice(names)) for _ in range(rng.randint(0, MOST_MOMENTS)))
        return cls(config, failpoints, moments)

    def __str__(self) -> str:
        deaths = [f"{name}: {', '.join(texts)}" for name, texts in self.failpoints.items()]
        return "; ".join([self.config, *deaths, *(f"{name} at {at_s:.2f} s" for at_s, name in self.moments)])


def _deaths(rng: random.Random, name: str, undisturbed: RunHistory) -> list[str]:
    """Failpoints for the first starts of a process; each kills it at one of its visits."""
    visits = undisturbed.visits(name)
    points = [point for point in (SERVER_FAILPOINTS if name == SERVER else CLIENT_FAILPOINTS) if visits[point]]
    deaths = range(1, rng.randint(1, MOST_DEATHS) + 1)
    chosen = [(death, rng.choice(points)) for death in deaths]  # each start has less of the run before it
    return [f"{point}=kill@{rng.randint(1, max(1, visits[point] // death))}" for death, point in chosen]


class Killer:
    """Kills processes of a federation at given moments, from a thread of its own."""

    def __init__(self, federation: Federation, moments: Sequence[Moment]) -> None:
        self._federation = federation
        self._moments = moments
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begun_s = time.monotonic()
        for at_s, name in self._moments:
            if self._over.wait(max(0.0, begun_s + at_s - time.monotonic())):
                return
            process = self._federation.processes.get(name)
            if process is not None:
                process.kill()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def live_through(fate: Fate, folder: Path, undisturbed: RunHistory) -> tuple[list[str], Mapping[str, int]]:
    """Carry out one run; returns what is wrong with it, and how often each process was started."""
    with Federation(folder, CONFIGS[fate.config]) as federation:
        killer = Killer(federation, fate.moments)
        try:
            federation.run(fate.failpoints)
            killer.stop()
            federation.finish()  # a process may have been killed when it had ended well
            return problems_of(federation, undisturbed), federation.starts
        except StuckError as error:
            return [str(error)], federation.starts
        finally:
            killer.stop()


def undisturbed_runs(folder: Path) -> dict[str, RunHistory]:
    """A run of each of CONFIGS."""
    runs = {}
    for name, overrides in CONFIGS.items():
        with Federation(folder / name, overrides, visits=True) as federation:
            federation.run()
            runs[name] = federation.history()
    return runs


def soak(seed: int, numbers: Sequence[int], folder: Path) -> int:
    """Carry out runs; returns how many of them went wrong. Folders of those stay."""
    undisturbed = undisturbed_runs(folder / "undisturbed")
    failed, killed = 0, 0
    for number in numbers:
        fate = Fate.draw(seed, number, undisturbed)
        run_folder, begun_s = folder / f"run-{number}", time.monotonic()
        problems, starts = live_through(fate, run_folder, undisturbed[fate.config])
        deaths = sum(starts.values()) - len(starts)
        killed += deaths
        failed += bool(problems)
        print(f"run {number} (--seed {seed} --first {number}): {deaths} kills, {time.monotonic() - begun_s:.1f} s; {fate}", flush=True)
        for problem in problems:
            print(f"    {problem}", flush=True)
        if not problems:
            shutil.rmtree(run_folder)
    print(f"{len(numbers)} runs, {killed} kills, {failed} went wrong" + (f"; see {folder}" if failed else ""))
    return failed


LONG = (*CONFIGS["feddkd"], "rounds=200", "scheduler.durability=exchange")
SPARED = (SERVER, "client-0")
"""Not killed in every other run, so that their memory, threads and files can be followed."""


def soak_for(minutes: float, seed: int, folder: Path) -> int:
    """Carry out long runs under every fault until the time is over; returns how many of them went wrong."""
    failed, faults = 0, Counter[str]()
    with Federation(folder / "undisturbed", LONG) as federation:
        federation.run()
        undisturbed = federation.history()
    until_s = time.monotonic() + 60 * minutes
    for number in itertools.count():
        if time.monotonic() > until_s:
            break
        spared, begun_s = SPARED if number % 2 == 0 else (), time.monotonic()
        with Federation(folder / f"long-{number}", LONG) as federation:
            problems, weather = sail_through(federation, random.Random(f"{seed}:{number}"), spared, undisturbed)
        failed += bool(problems)
        faults += weather.faults
        starts = ", ".join(f"{name} {count}" for name, count in federation.starts.items())
        print(f"long run {number} (--seed {seed}): {time.monotonic() - begun_s:.0f} s, {dict(weather.faults)}, starts: {starts}")
        for name, pid in weather.samples:
            samples = weather.samples[name, pid]
            if len(samples) >= FEWEST_SAMPLES:
                print(f"    {name}: {samples[len(samples) // 4]} to {samples[-1]} in {len(samples)} samples")
        for problem in problems:
            print(f"    {problem}", flush=True)
    print(f"{number} long runs, {dict(faults)}, {failed} went wrong", flush=True)
    return failed


def sail_through(federation: Federation, rng: random.Random, spared: Sequence[str], undisturbed: RunHistory) -> tuple[list[str], Weather]:
    """Carry out one long run; returns what is wrong with it, and the faults that it met."""
    federation.tolerated = {-signal.SIGKILL, 1}  # a server whose disk fails ends with 1
    with contextlib.ExitStack() as stack:
        cables = {name: stack.enter_context(Cable(federation.address, resets=rng.random() < 0.5)) for name in federation.names}
        for name, cable in cables.items():
            federation.reach_server_at(name, cable.address)
        federation.start()
        weather = Weather(federation, cables, rng, spared)
        stack.callback(weather.stop)
        try:
            federation.finish(LONG_PATIENCE_S)
        except StuckError as error:
            return [str(error)], weather
    grown = [f"{name}: {what}" for (name, _), samples in weather.samples.items() for what in growth(samples)]
    return [*problems_of(federation, undisturbed), *grown], weather


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: another one each time")
    parser.add_argument("--runs", type=int, default=1, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first run")
    parser.add_argument("--minutes", type=float, metavar="M", help="carry out long runs for this time instead")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="feddkd-soak-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    if options.minutes is not None:
        failed = soak_for(options.minutes, options.seed, folder)
    else:
        failed = soak(options.seed, range(options.first, options.first + options.runs), folder)
    if not failed:
        shutil.rmtree(folder)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
