"""Runs many configurations, several at once, each in a process of its own; what is complete is not run again.

Threads wait for the processes. asyncio would need the same list of what is to be ended, and every caller to be a coroutine.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.config import Config
from feddkd.config.table import flatten
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import EngineName
from feddkd.errors import ConfigError, FedDKDError, RunError, StateError
from feddkd.exchange import DELIVER
from feddkd.observability.budgets import Curve
from feddkd.observability.run_folder import CONFIG, ROUNDS, SUMMARY, RunFolder


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what runs, and the folder that holds its record.

    Attributes:
        overwrite: whether a record that the folder holds already is deleted, whatever it is of.
        import_from: a folder whose modules the configuration may name, besides those of the current one.
    """

    config: Config
    folder: Path
    engine: EngineName = "in-process"
    overwrite: bool = False
    import_from: Path | None = None

    @property
    def log(self) -> Path:
        """What the process of the run prints; beside the folder, which a run that starts over deletes."""
        return self.folder.with_name(f"{self.folder.name}.log")


OnDone = Callable[[Job, FedDKDError | None], None]
"""Told of each job when it is done, in the thread that called `run_jobs`; the error is None if the record is complete."""


def is_complete(job: Job) -> bool:
    """Whether the record of this very configuration is in the job's folder, from the first round to the summary.

    Raises:
        ConfigError: the folder holds the record of another configuration.
    """
    if not (job.folder / CONFIG).exists():
        return False
    try:
        found = resolve(Config.load(job.folder / CONFIG))
    except ConfigError as error:
        raise ConfigError(f"{job.folder} holds a record that cannot be read ({error}); delete it or choose another --out") from error
    for key, had, wanted in differences(found, resolve(job.config)):
        raise ConfigError(
            f"{job.folder} holds the record of another configuration: {key} = {had!r} there, {wanted!r} here; "
            "delete it or choose another --out"
        )
    return (job.folder / SUMMARY).exists()


OnTick = Callable[[Sequence[Job]], None]
"""Told about once a second, in the same thread, which jobs are running."""

TICK_S = 1.0


def run_jobs(jobs: Sequence[Job], workers: int, on_done: OnDone, on_tick: OnTick | None = None) -> None:
    """Run all jobs, `workers` at once, in this order; one that fails does not stop the others.

    A job whose record is complete is done at once, and what an interrupted run left is deleted. An
    interrupt, and whatever a callback raises, ends the processes that are running.
    """
    with ThreadPoolExecutor(workers) as pool, _Processes() as processes:
        futures = {pool.submit(_run_job, job, processes): job for job in jobs}
        open_ = set(futures)
        try:
            while open_:
                done, open_ = wait(open_, TICK_S if on_tick else None, FIRST_COMPLETED)
                for future in (future for future in futures if future in done):
                    on_done(futures[future], future.result())
                if on_tick is not None:
                    on_tick([job for future, job in futures.items() if future.running() and job.folder in processes.begun])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def rounds_done(job: Job) -> int:
    """Count the rounds in the record of a job that is running."""
    try:
        return (job.folder / ROUNDS).read_bytes().count(b"\n")
    except OSError:
        return 0


def delivery_bytes(folder: RunFolder) -> int:
    """What it cost to give every client the final model, which `read_curve` has in the last round."""
    delivered = (line for line in folder.exchanges if line.exchange == DELIVER)
    return sum(line.wire_bytes_down + line.wire_bytes_up for line in delivered)


def read_curve(folder: RunFolder) -> Curve:
    """Read how good the model of each round is, and what had been spent by then."""
    metric = folder.metric
    return Curve(
        scores=[line.score(metric.name) for line in folder.rounds],
        wire_bytes=[line.cumulative_wire_bytes for line in folder.rounds],
        # Records that are older than this field have 0.
        gradient_evaluations=list(itertools.accumulate(line.gradient_evaluations or 0 for line in folder.rounds)),
        seconds=[round(seconds, 3) for seconds in itertools.accumulate(line.seconds for line in folder.rounds)],
        metric=metric,
    )


def differences(one: Config, other: Config) -> Iterator[tuple[str, Any, Any]]:
    """Every key, like `dkd.steps`, that differs between two configurations, with both values."""
    ours, theirs = flatten(one.model_dump(mode="json")), flatten(other.model_dump(mode="json"))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)


class _Processes:
    """The processes that are running now; all are ended when the block is left.

    Attributes:
        begun: folders that no longer hold what an interrupted run left.
    """

    def __init__(self) -> None:
        self.begun: set[Path] = set()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.terminate()

    def run(self, command: Sequence[str], **options: Any) -> int:
        """Start a process and wait for it; returns its exit code."""
        with self._lock:
            if self._closed:
                raise RunError("interrupted")
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.remove(process)


def _run_job(job: Job, processes: _Processes) -> FedDKDError | None:
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # The run inherits this open file, and with it the lock: it holds until the run is over, even if this process is killed.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"{job.folder} is being written by another process; try again when it has ended") from None
            if job.overwrite or not is_complete(job):
                log.truncate(0)
                _start_anew(job, processes, log)
    except OSError as error:
        return StateError(f"cannot write {job.folder}: {error.strerror}")
    except FedDKDError as error:
        return error
    return None


def _start_anew(job: Job, processes: _Processes, log: Any) -> None:
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir()
    processes.begun.add(job.folder)
    (job.folder / CONFIG).write_text(job.config.to_toml(), encoding="utf-8")
    options = ["--no-report", "--out", str(job.folder), "--engine", job.engine]
    command = [sys.executable, "-m", "feddkd", "run", str(job.folder / CONFIG), *options]
    # Runs side by side leave no core idle, and one thread each keeps them from fighting for it.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if job.import_from is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(job.import_from), os.environ.get("PYTHONPATH"))))
    code = processes.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    if code != 0:
        last = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RunError(f"exit code {code}: {last[0] if last else 'it printed nothing'} (see {job.log})")
