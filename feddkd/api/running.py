"""Runs a federation from Python."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import torch

from feddkd.api.given import AlgorithmClass, Data, Given, Model, check_importable, only_here
from feddkd.api.results import Run
from feddkd.api.settings import Settings, tables_of
from feddkd.api.watching import Callback, observers_of, watched
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.simulation import EngineName, prepare, run_federation
from feddkd.errors import ConfigError, RunError
from feddkd.imports import given_objects
from feddkd.observability.new_folder import new_folder
from feddkd.observability.run_folder import RunFolder, has_record
from feddkd.observability.trackers.tracker import tracker_of
from feddkd.observability.trackers.tracking import Tracking
from feddkd.scheduler.journal_lines import has_journal
from feddkd.tasks.chosen import task_of


def run(
    config: Settings = None,
    *,
    data: Data | None = None,
    model: Model | None = None,
    algorithm: AlgorithmClass | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    track: str | Iterable[str] = (),
    engine: EngineName = "in-process",
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Run:
    """Run a whole federation on this machine and return its record.

    The same configuration and seed give the same final model, bit for bit, on every engine and with
    `feddkd run`.

    Args:
        config: the path of a TOML file; a mapping with nested tables or dotted keys, such as
            `{"rounds": 3, "dkd.steps": 10}`; a `Config`; or None for the embedded default
            (handwritten digits, ten clients with one class each, FedDKD).
        data: the examples, in place of `data.name`: a function called as `function(root, train)`, by
            keyword, that returns `(inputs, labels)` or a map-style data set; or a name or an import
            path `"package.module:function"`. It is called several times. What it shows of
            `data.input_shape` and `data.num_classes` is written into the record.
        model: the network, in place of `model.name`: a function or a class called as
            `function(input_shape, num_classes)` that returns an `nn.Module` with logits
            [B, num_classes]; or a name or an import path.
        algorithm: a subclass of `Algorithm`, in place of `algorithm.name`; or a name or an import
            path. Other keys of `[algorithm]` are its settings.
        callbacks: one or several, each an `Observer` or a function that is called with the
            `RoundRecord` of each round. A callback that raises is logged and not called any more; the run goes on.
        track: one or several trackers of experiments that get the numbers of each round: "tensorboard",
            "mlflow", "wandb", or the import path of a `Tracker`.
        engine: "in-process" computes everything here, so functions and classes of a script or a
            notebook can be used. "grpc" starts a real server and client processes on this machine;
            `data`, `model` and `algorithm` must then be importable by these. "ray" starts processes on
            a Ray cluster (`runtime.ray_address`) or on this machine; the same holds for them.
        out: folder of the record; by default `runs/ALGORITHM-TIME`. It must not hold a record.
        progress: whether to show a line for each round; None shows it on a terminal and in a notebook.

    Returns:
        The finished run. Where it fails or is interrupted, a note of the exception says where the
        record is and, if the run can go on, the command for it.

    Raises:
        ConfigError: a key or an argument is wrong, `out` holds a record, or the data, the model or
            the algorithm do not fit together.
        RunError: too few clients replied, or the record cannot be written.
    """
    if engine not in get_args(EngineName):
        raise ConfigError(f"engine = {engine!r}: {' or '.join(map(repr, get_args(EngineName)))} is expected")
    if out is not None:
        _check_free(Path(out).expanduser())
    given = Given.of(data=data, model=model, algorithm=algorithm)
    tables, source = tables_of(config)
    given.write_into(tables)
    parsed = Config.parse(tables, source)
    if engine != "in-process":
        check_importable(parsed, given.objects, engine)
    observers = observers_of(callbacks)
    trackers = {name: tracker_of(name) for name in ([track] if isinstance(track, str) else track)}
    with given_objects(given.objects), _own_threads():
        federation = prepare(_described(parsed))  # what is wrong is said before there is a folder
        with (
            new_folder(Path(out).expanduser() if out is not None else None, parsed.algorithm.name) as folder,
            _noting(folder, parsed),
            watched(federation.config, folder, observers, progress) as told,
        ):
            for name, tracker in trackers.items():
                told.add(Tracking(name, tracker, federation.config, folder))
            run_federation(federation, engine, folder, told)
    return Run(RunFolder.load(folder), given.objects)


def _described(config: Config) -> Config:
    """Write into the configuration what data of the user's own show of themselves.

    A record then tells which network its model belongs to, where the data cannot be loaded.
    """
    if ":" not in config.data.name:
        return config
    info = describe(config.data, task_of(config))
    tables = config.model_dump(exclude_none=True)
    tables["data"] |= info.keys
    return Config.parse(tables)


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Give the number of torch's threads back as it was: a run computes with `runtime.threads`."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_free(folder: Path) -> None:
    """Check that a run can write its record there. Raises ConfigError."""
    if has_record(folder) or has_journal(folder):
        raise ConfigError(f"out = {str(folder)!r}: it holds the record of a run, which feddkd.load_run reads; give another folder")


@contextlib.contextmanager
def _noting(folder: Path, config: Config) -> Iterator[None]:
    """Add to what ends the run where its record is, and how it goes on."""
    try:
        yield
    except (RunError, KeyboardInterrupt) as error:
        error.add_note(f"the record is in {folder}/: feddkd.load_run({str(folder)!r})")
        if has_journal(folder) and not any(only_here(config)):
            error.add_note(f"to go on: {shlex.join(['feddkd', 'run', '--resume', str(folder)])}")
        raise
