"""Runs cells and keeps what came of them: one line of JSON a cell, written as soon as the cell is finished."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feddkd.bench.environment import cpu_model, source_commit
from feddkd.bench.runs import Job, delivery_bytes, is_complete, read_curve, run_jobs
from feddkd.config import Config
from feddkd.config.table import flatten
from feddkd.errors import ConfigError, FedDKDError
from feddkd.observability.record_lines import TensorBytes
from feddkd.observability.run_folder import RunFolder
from feddkd.traffic import CODEC_SECONDS, DIRECTIONS
from niid_bench.cells import DATA_ROOT, ROOT, Cell, Settings, configure, data_table, overrides_of

CODE = ("feddkd", "benchmarks/niid_bench")
RESULTS = ROOT / "benchmarks" / "results"
RECORDS = ROOT / "runs" / "niid_bench"
MACHINE_KEYS = ("data.root", "runtime.client_processes")
"""Keys of a configuration that say where it runs and change no result."""


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """One line of JSON a finished cell; every change replaces the file whole, so no reader meets half a line.

    Attributes:
        records: folder of the working records of its cells.
    """

    path: Path
    records: Path

    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.path)

    def store(self, line: dict[str, Any]) -> None:
        """Add the line of a cell, in place of the one it had."""
        cell = Cell.of_line(line)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several runners may share a file
            lines = self.lines()
            place = next((index for index, other in enumerate(lines) if Cell.of_line(other) == cell), len(lines))
            lines[place : place + 1] = [line]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
            partial.replace(self.path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none if there is no file yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def results_file(path: Path, records: Path = RECORDS) -> ResultsFile:
    """The file at `path`, with records of its own below `records`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return ResultsFile(path, records / path.stem)


def outdated_key(line: dict[str, Any], config: Config) -> str | None:
    """The first key in which a finished cell ran otherwise than it would run today; None if there is none."""
    today = _flat(_recorded(config))
    lacking = {**NEW_KEYS, **{key: today[key] for key in GUARDS if key in today}}
    found = {**{key: value for key, value in lacking.items() if key in today}, **_flat(line["config"])}
    keys = (key for key in dict.fromkeys([*today, *found]) if found.get(key) != today.get(key))
    return next(keys, None)


RESULT_KEYS = {"scheduler": ("cohort", "enough", "weights"), "transport": ("chunk_bytes",)}
"""Of these tables, the keys that change a result or its bytes.

The others say how long a server waits, and a finished cell waited for all; or where contributions wait to be reduced.
"""

NEW_KEYS = {
    "model.local_buffers": False,
    "task.name": "classification",
    "task.metric": "accuracy",
    "task.metrics": [],
    "data.scale": "auto",
    "data.max_bad_share": 0.01,
    "data.memory_limit_mib": 4096,
    "data.class_names": "clear",
    "training.optimizer": "sgd",
    "training.schedule": "constant",
    "training.schedule_over": "rounds",
    "training.warmup_rounds": 0,
    "training.warmup_steps": 0,
    "runtime.eval_batch_size": 512,
    "runtime.ray_gpus": 0.0,
    "scheduler.enough": "all",
    "communication.preset": "none",
    "communication.up": "fp32",
    "communication.down": "fp32",
    "communication.snapshot": "fp32",
    "communication.zstd": False,
    "dkd.beta2": 0.999,
    "dkd.scope": "full",
    "dkd.piggyback": False,
    "dkd.teacher": "local",
    "teacher.model": "student",
    "dkd.confidence": 0.0,
    "dkd.bootstrap": 0.0,
    "data.unlabelled": "none",
    "data.label_noise": 0.0,
    "data.label_noise_kind": "symmetric",
}
"""Keys that older results lack, and the behavior that these had."""

GUARDS = (
    "dkd.growth_limit",
    "aggregation.rule.name",
    "aggregation.rule.longest",
    "aggregation.weight_cap",
    "aggregation.outlier_ratio",
    "aggregation.outlier_exchanges",
)
"""Keys that older results lack, too, and that change a result only where a gradient or a client is out of all proportion
(docs/ablation.md, docs/how-to/robust.md)."""

TRAFFIC_KEYS = tuple(TensorBytes.model_fields)
"""Sizes of tensors by round and direction that a result states, beside all bytes on the wire."""

TEACHER_KEYS = ("divergence", "temperature", "hard_label_weight", "correct_teacher", "not_true", "confidence", "teacher")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """By dotted key, without what has no effect: defaults of [dkd] may change without changing FedAvg or the control."""
    name = tree["algorithm"]["name"]
    tree = {**tree, **{table: {key: tree[table][key] for key in keys if key in tree[table]} for table, keys in RESULT_KEYS.items()}}
    if name in ("fedavg_sgd", "self_training"):
        tree = {**tree, "dkd": {key: value for key, value in tree["dkd"].items() if key not in TEACHER_KEYS}}
    steps = name in ("feddkd", "fedavg_sgd", "self_training") or ":" in name or tree["dkd"].get("piggyback", False)
    idle = () if steps else ("dkd",)
    return flatten({table: values for table, values in tree.items() if table not in idle})


def _recorded(config: Config) -> dict[str, Any]:
    """A configuration as a result keeps it: without the keys that say where it ran."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for key in MACHINE_KEYS:
        table, name = key.split(".")
        tree[table].pop(name, None)
    return tree


def _check_data(cell: Cell, config: Config) -> None:
    """Raises ConfigError where the data set's folder is missing; with -o data.name=... it is another set's business."""
    root = config.data.root
    if config.data.name == data_table(cell.data, DATA_ROOT)["name"] and root is not None and not root.is_dir():
        raise ConfigError(f"--data-root {root.parent} has no folder {root.name}, which must hold the files of {cell.data}")


def _only(cell: Cell) -> list[str]:
    return [text for key, value in cell.point for text in ("--only", f"{key}={json.dumps(value)}")]


class Runner:
    """Runs the cells that have no line yet, and says on standard error how it goes."""

    def __init__(
        self,
        results: ResultsFile,
        settings: Settings,
        *,
        script: str,
        default_results: Path,
        jobs: int,
        point_options: Callable[[Cell], list[str]] = _only,
    ) -> None:
        """Args:
        default_results: where the script keeps results unless it is told otherwise.
        point_options: the script's options that choose a cell's point.
        """
        self._point_options = point_options
        self._results = results
        self._settings = settings
        self._script = script
        self._results_option = [] if results.path == default_results else ["--results", _from_root(results.path)]
        self._workers = jobs

    def run(self, cells: Sequence[Cell], *, again: bool) -> int:
        """Run what is missing, or everything; returns how many cells failed.

        Raises:
            ConfigError: a cell's configuration is wrong, or its data are not there; nothing has run then.
        """
        configs = {cell: configure(cell, self._settings) for cell in cells}
        finished = {} if again else {Cell.of_line(line): line for line in self._results.lines()}
        self._say_outdated({cell: finished[cell] for cell in cells if cell in finished}, configs)
        jobs = {cell: self._job(cell, configs[cell], again) for cell in cells if cell not in finished}
        for cell, job in jobs.items():
            _check_data(cell, job.config)
        _say(f"{len(cells) - len(jobs)} of {len(cells)} cells are finished, {len(jobs)} to run, {self._workers} at once")
        return self._run_jobs(jobs)

    def _say_outdated(self, finished: dict[Cell, dict[str, Any]], configs: dict[Cell, Config]) -> None:
        cells_by_key: dict[str, list[Cell]] = {}
        for cell, line in finished.items():
            if (key := outdated_key(line, configs[cell])) is not None:
                cells_by_key.setdefault(key, []).append(cell)
        for key, cells in cells_by_key.items():
            more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
            _say(f"finished with another {key}, which --again would replace: {', '.join(map(str, cells[:3]))}{more}")

    def _job(self, cell: Cell, config: Config, again: bool) -> Job:
        """The run of a cell, which replaces a record of older settings."""
        job = Job(config, self._results.records / cell.folder, self._settings.engine, import_from=ROOT / "benchmarks")
        try:
            is_complete(job)
        except ConfigError:
            again = True
        return replace(job, overwrite=again)

    def _run_jobs(self, jobs: dict[Cell, Job]) -> int:
        cell_of = {job.folder: cell for cell, job in jobs.items()}
        failed: dict[Cell, FedDKDError] = {}
        done = 0

        def on_done(job: Job, error: FedDKDError | None) -> None:
            nonlocal done
            done += 1
            cell = cell_of[job.folder]
            if error is not None:
                failed[cell] = error
                _say(f"{done}/{len(jobs)} {cell}: FAILED")
                return
            line = self._line(cell, job)
            self._results.store(line)
            _say(f"{done}/{len(jobs)} {cell}: {line['final_accuracy']:.2%} after {line['rounds']} rounds, {line['seconds'][-1]:.0f} s")

        run_jobs(list(jobs.values()), self._workers, on_done)
        for cell, error in failed.items():
            _say(f"failed: {cell}: {error}")
        return len(failed)

    def _line(self, cell: Cell, job: Job) -> dict[str, Any]:
        """What a results file keeps of a run."""
        folder = RunFolder.load(job.folder)
        assert folder.summary is not None
        curve = read_curve(folder)
        metrics = [line.metrics for line in folder.rounds]
        held_out = [line.client_accuracy for line in folder.rounds]
        return {
            "tier": cell.tier,
            "data": cell.data,
            "algorithm": cell.algorithm,
            "partition": cell.partition,
            "seed": cell.seed,
            **({"study": cell.study} if cell.study else {}),
            **({"grid_point": dict(cell.point)} if cell.point else {}),
            "rounds": len(curve.rounds),
            "final_accuracy": curve.final_score,
            "best_accuracy": curve.best_score,
            "overrides": overrides_of(cell, self._settings),
            "accuracy": curve.scores,
            **({"client_accuracy": held_out} if any(value is not None for value in held_out) else {}),
            "class_accuracy": folder.rounds[-1].class_accuracy,
            "cumulative_wire_bytes": curve.wire_bytes,
            "delivery_bytes": delivery_bytes(folder),
            "gradient_evaluations": curve.gradient_evaluations,
            "traffic": {name: [getattr(line, name) for line in folder.rounds] for name in TRAFFIC_KEYS},
            "seconds": curve.seconds,
            "codec_seconds": [round(seconds, 4) for seconds in codec_seconds(folder)],
            "metrics": {name: [values.get(name) for values in metrics] for name in sorted(set().union(*metrics))},
            "model_sha256": folder.summary.model_sha256,
            "versions": folder.summary.versions,
            "cpu": cpu_model(),
            "cpu_capability": folder.summary.cpu_capability,
            "cores": os.cpu_count(),
            "engine": self._settings.engine,
            "runs_at_once": self._workers,
            "load_average_1min": round(os.getloadavg()[0], 2),
            "commit": source_commit(ROOT, CODE),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "config": _recorded(job.config),
            "command": self._command(cell),
        }

    def _command(self, cell: Cell) -> str:
        """Runs this cell again, from the root of the repository."""
        grid = ["--data", cell.data, "--algorithm", cell.algorithm, "--partition", cell.partition, "--seed", str(cell.seed)]
        words = [*grid, *self._point_options(cell), *self._settings.arguments, *self._results_option]
        return shlex.join(["python", self._script, cell.tier, *words, "--again"])


def codec_seconds(folder: RunFolder) -> list[float]:
    """What codecs took in each round: the encoding and decoding of the server and of all clients."""
    found = dict.fromkeys((line.round for line in folder.rounds), 0.0)
    for line in folder.exchanges:
        server, client = (line.metrics.get(CODEC_SECONDS[direction], 0.0) for direction in DIRECTIONS)
        found[line.round] += server + client * line.clients_reported
    return list(found.values())


def _from_root(path: Path) -> str:
    """As a command says it that is run from the root of the repository."""
    return str(path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path)


def main_guard(main: Callable[[], int]) -> None:
    """Run a script's `main`: errors of ours become one line and exit code 2, an interrupt exit code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the runs that are going on
    try:
        code = main()
    except FedDKDError as error:
        _say(f"{Path(sys.argv[0]).name}: {error}")
        code = 2
    except KeyboardInterrupt:
        _say("interrupted; finished cells are kept, the same command goes on with the others")
        code = 130
    sys.exit(code)


def default_jobs() -> int:
    """One run a core."""
    return os.cpu_count() or 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
