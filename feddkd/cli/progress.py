"""What a person sees of a run: one line a round, and on a terminal a live bar below them. All on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from feddkd.algorithms import ALGORITHMS
from feddkd.algorithms.feddkd import FIRST_STEP_LOSS, FedDKD
from feddkd.cli.output import LINE_LETTERS, counted_examples, listed, megabytes
from feddkd.config import Config
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord
from feddkd.text import printable

HEADER = "  round   accuracy  loss    at clients  step loss        down        up     total    time"


class ConsoleProgress(Observer):
    """Prints rounds as they complete; `step loss` is the mean loss of the round's first and last gradient step."""

    follows_history = False

    def __init__(self, config: Config, console: Console) -> None:
        self._config = config
        self._console = console
        self._rounds = config.rounds
        self._step_losses: dict[int, list[float]] = {}
        self._latest = ""
        self._examples: Mapping[str, ExampleCounts] = {}
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal:
            columns = (
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[latest]}", markup=False),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("waiting for clients", total=None, latest="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone is no reason not to begin
                self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        self._examples = examples

    def run_started(self, run_id: str, rounds: int) -> None:
        what = f"{self._config.algorithm.name}, {self._config.model.name} on {self._config.data.name}"
        self._print(f"run {run_id}: {what}, {rounds} round{'s' if rounds != 1 else ''}")
        for line in [*self._config.preset_lines(), *self._config.data.label_lines()]:
            self._print(f"  {line}")
        total = ExampleCounts.sum_of(self._examples.values())
        if total.unlabelled:
            self._print(f"  examples: {counted_examples(*total)}, at {len(self._examples)} clients")
        self._print(HEADER)

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int) -> None:
        self._print(f"run {run_id} goes on after round {rounds_done} of {rounds} (process {incarnation})")
        self._print(HEADER)

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        again = f" (attempt {attempt + 1})" if attempt else ""
        self._update(f"round {round_number}/{self._rounds}{again}: {clients} clients", total=self._exchanges_a_round, completed=0)

    def exchange_done(self, record: ExchangeRecord) -> None:
        # The reply to local training may be the first step's, whose loss is a metric beside that of the training.
        loss = record.metrics.get(FIRST_STEP_LOSS) if record.id.name == "local_train" else record.loss
        if loss is not None and record.id.name != DELIVER:
            self._step_losses.setdefault(record.id.round, []).append(loss)
        step = f"[{record.id.step}]" if record.id.name != "local_train" else ""
        self._update(f"round {record.id.round}/{self._rounds}: {record.id.name}{step}", advance=1)
        for client, reason in record.clients_missing.items():
            self._print(f"  round {record.id.round} {record.id.name}{step}: {client} is missing: {reason}")

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        self._latest = f"accuracy {evaluation.accuracy:.1%}"
        self._update(None)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self._print(f"  round {round_number} attempt {attempt + 1} failed: {reason}")

    def paused(self, reason: str) -> None:
        self._print(f"  paused: {reason}")

    def waiting(self, reason: str) -> None:
        self._print(f"  {reason}")

    def round_done(self, record: RoundRecord) -> None:
        evaluation, at_clients = record.evaluation, record.client_evaluation
        losses = self._step_losses.pop(record.round, [])
        steps = " > ".join(f"{loss:.3f}" for loss in (*losses[:1], *losses[1:][-1:])) or "-"
        self._print(
            f"  {record.round:>3}/{self._rounds:<3} "
            f"{_percent(evaluation)}  {f'{evaluation.loss:.3f}' if evaluation else '-':<7} "
            f"{_percent(at_clients):>10}  {steps:<15} "
            f"{megabytes(record.traffic.wire_bytes_down):>9} {megabytes(record.traffic.wire_bytes_up):>9} "
            f"{megabytes(record.cumulative_wire_bytes):>9} {record.seconds:>6.1f}s"
        )
        if record.clients_missing:
            self._print(f"  round {record.round} went on without {listed(list(record.clients_missing))}")

    @property
    def _exchanges_a_round(self) -> int | None:
        """How far the bar goes; a user's own algorithm does not say."""
        algorithm = ALGORITHMS.get(self._config.algorithm.name)
        if algorithm is None:
            return None
        if not issubclass(algorithm, FedDKD):
            return len(algorithm.exchanges(self._config))
        return self._config.dkd.steps + (self._config.dkd.start != "previous")

    def _update(self, description: str | None, total: int | None = None, completed: int | None = None, advance: int = 0) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, description=description, total=total, completed=completed, advance=advance or None, latest=self._latest
            )

    def _print(self, line: str) -> None:
        # Some lines hold what a client said.
        self._console.print(printable(line, LINE_LETTERS), markup=False, highlight=False, soft_wrap=True)


def _percent(evaluation: Evaluation | None) -> str:
    return f"{evaluation.accuracy:>8.2%}" if evaluation else "       -"
