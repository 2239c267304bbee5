"""The record of a run, as a Python program reads it."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feddkd.config import Config
from feddkd.errors import ConfigError, StateError
from feddkd.extras import install_command
from feddkd.observability.record_lines import Line, Summary
from feddkd.observability.run_folder import MODEL, RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from torch import Tensor, nn

FIRST = ("round", "attempt", "exchange", "step", "accuracy", "loss", "scores")
"""Fields that a row begins with."""

Status = Literal["running", "dead", "paused", "finished"]


def load_run(folder: str | os.PathLike[str], *, model: Callable[..., nn.Module] | None = None) -> Run:
    """Read the record of a run that is finished, failed, paused or still going on.

    Args:
        folder: what `out` or `--out` named, or the folder of a run below a server's state directory.
        model: builds the network for `Run.model`, called as `function(input_shape, num_classes)`; needed
            only where the record names a function that cannot be imported here.

    Returns:
        What the folder held at this moment.

    Raises:
        StateError: it holds no record, or a file in it is damaged; the message names file and line.
        ConfigError: `model` is given and the record's network is a built-in one.
    """
    record = RunFolder.load(Path(folder).expanduser())
    if model is None:
        return Run(record)
    name = record.config.model.name
    if ":" not in name:
        raise ConfigError(f"model: the network of {folder} is the built-in {name!r}, so no function is needed")
    return Run(record, {("model.name", name): model})


class Run:
    """The record of a run: configuration, rounds, exchanges, summary and final model.

    `feddkd.run` and `feddkd.load_run` return it. Sizes are in bytes, times in seconds; down and up are
    seen from the client.
    """

    def __init__(self, record: RunFolder, given: Mapping[tuple[str, str], Any] | None = None) -> None:
        """Wrap a record that was read.

        Args:
            given: objects that the configuration names and that cannot be imported, by key and name.
        """
        self._record = record
        self._given = given or {}

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        return self._record.path

    @property
    def config(self) -> Config:
        """The configuration that ran, with every default."""
        return self._record.config

    @property
    def status(self) -> Status:
        """How the run stands, in the words of `feddkd status`.

        "finished", "running", "paused" (its process ended and said why; it can go on), or "dead".
        Raises StateError if the journal is damaged.
        """
        if self._record.summary is not None:
            return "finished"
        return _status_by_journal(self.folder)

    @property
    def summary(self) -> Summary:
        """The content of `summary.json`: metrics, bytes, time, versions.

        Raises:
            StateError: the run is not finished, so there is none.
        """
        if self._record.summary is None:
            raise StateError(f"{self.folder} has no summary: the run is not finished (Run.status); Run.rounds are there")
        return self._record.summary

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """A row for each finished round, with the fields of `rounds.jsonl`."""
        return [_row(line) for line in self._record.rounds]

    @cached_property
    def exchanges(self) -> list[dict[str, Any]]:
        """A row for each exchange, with the fields of `exchanges.jsonl`."""
        return [_row(line) for line in self._record.exchanges]

    def to_pandas(self, rows: Literal["rounds", "exchanges"] = "rounds") -> pd.DataFrame:
        """Return `rounds` or `exchanges` as a pandas data frame.

        Each metric of the task is a column `scores.NAME`, or `client_scores.NAME` on what the clients hold
        out, and each other number a column `metrics.NAME`.

        Raises:
            ConfigError: pandas is not installed, or `rows` is something else.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError(f"pandas is not installed; get it with: {install_command('pandas')}") from None
        if rows not in ("rounds", "exchanges"):
            raise ConfigError(f"rows = {rows!r}: 'rounds' or 'exchanges' is expected")
        return pd.DataFrame([_flat(row) for row in (self.rounds if rows == "rounds" else self.exchanges)])

    @cached_property
    def model(self) -> nn.Module:
        """The network with the newest global model's weights, on the CPU, in evaluation mode.

        It maps inputs [B, *input_shape] to outputs of the task, for classification logits [B, num_classes].
        Of a run that is not finished it is the model of the last finished round.

        Raises:
            ConfigError: the network cannot be built; for one that cannot be imported, give
                `load_run` its function.
            StateError: no round has been finished, or the weights are damaged or of another network.
        """
        from feddkd.data.datasets import describe
        from feddkd.imports import given_objects
        from feddkd.models.registry import build_model
        from feddkd.tasks.chosen import task_of

        with given_objects(self._given):
            task = task_of(self.config)
            network = build_model(self.config.model, describe(self.config.data, task), self.config.seed, task)
        _load_weights(network, self.folder / MODEL)
        return network.eval()

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Load the test split that the server evaluates on, all of it.

        Returns:
            Inputs, float32 or int64 [n, *input_shape], and targets; of classification labels, int64 [n].

        Raises:
            ConfigError: the data's function cannot be imported here.
            DataError: the files are missing or damaged.
        """
        import torch

        from feddkd.data.datasets import load_test
        from feddkd.imports import given_objects
        from feddkd.tasks.chosen import task_of

        with given_objects(self._given):
            examples = load_test(self.config.data, self.config.seed, task_of(self.config))
        return examples.gather(torch.arange(len(examples)))

    def report(self) -> Path:
        """Write `report.html` and its pictures into the folder of the record; return the path of the page.

        Raises:
            ConfigError: the extra `plot` is not installed, or the page cannot be written.
        """
        from feddkd.cli.report import PAGE, missing_module

        if (missing := missing_module()) is not None:
            raise ConfigError(f"{missing} is not installed; get it with: {install_command('plot')}")
        from feddkd.report.page import write_report

        page = self.folder / PAGE
        write_report([self._record], page)
        return page

    def __repr__(self) -> str:
        return f"<feddkd.Run {self.folder}: {', '.join(f'{name} {value}' for name, value in self._headlines())}>"

    def _repr_html_(self) -> str:
        """Show a small table in a notebook."""
        rows = "".join(
            f'<tr><th style="text-align: left">{html.escape(name)}</th><td style="text-align: left">{html.escape(value)}</td></tr>'
            for name, value in [*self._headlines(), ("record", f"{self.folder}/")]
        )
        return f"<table><tbody>{rows}</tbody></table>"

    def _headlines(self) -> list[tuple[str, str]]:
        """Name what one wants to know first, for a person."""
        rounds, scores, metric = self._record.rounds, self._record.scores, self._record.metric
        found = [
            ("status", "finished" if self._record.summary is not None else "not finished"),
            ("algorithm", self.config.algorithm.name),
            ("rounds", f"{len(rounds)} of {self.config.rounds}"),
        ]
        if (best := metric.best(scores)) is not None:
            found.append((metric.title, f"{metric.text(scores[-1])} (best {metric.text(best)})"))
        if rounds:
            found.append(("bytes on the wire", f"{rounds[-1].cumulative_wire_bytes / 1e6:.2f} MB"))
            found.append(("time", f"{sum(line.seconds for line in rounds):.1f} s"))
        return found


def _status_by_journal(folder: Path) -> Status:
    """Ask the journal, and where there is none say that nobody goes on."""
    from feddkd.cli.run_place import RunPlace
    from feddkd.cli.run_status import RunStatus
    from feddkd.scheduler.journal_lines import has_journal

    return RunStatus.of(RunPlace.find(folder)).state if has_journal(folder) else "dead"


def _row(line: Line) -> dict[str, Any]:
    """Return a line's fields, those that say which round it is and how good first."""
    fields = line.model_dump()
    return {name: fields[name] for name in FIRST if name in fields} | fields


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    groups = [name for name in ("scores", "client_scores", "metrics") if name in row]
    flat = {f"{group}.{name}": value for group in groups for name, value in row[group].items()}
    return {name: value for name, value in row.items() if name not in groups} | flat


def _load_weights(network: nn.Module, file: Path) -> None:
    """Copy the tensors of a file into a network. Raises StateError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(file))
    except FileNotFoundError:
        raise StateError(f"{file.parent} holds no model: no round of the run is finished") from None
    except (OSError, SafetensorError) as error:
        raise StateError(f"cannot read {file}: {error}") from error
    except RuntimeError as error:
        raise StateError(f"{file} does not fit the network: {' '.join(str(error).split())}") from error
