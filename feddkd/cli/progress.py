"""What a person sees of a run: one line a round, and on a terminal a live bar below them. All on standard error."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from feddkd.algorithms.feddkd import FIRST_STEP_LOSS
from feddkd.cli.output import LINE_LETTERS
from feddkd.cli.run_table import RunTable, first_and_last
from feddkd.cli.words import counted_examples, listed
from feddkd.config import Config, MainMetric
from feddkd.config.main_metric import SHORT_TITLES
from feddkd.errors import RunError
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts, ExchangeId
from feddkd.observability.round_length import exchanges_a_round, stepping_of
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord
from feddkd.tensors import Tensors
from feddkd.text import printable

BAR_WIDTH = 16
LEAST_ROOM = 16
"""Characters for what is going on, on however narrow a terminal."""


ECHO_WIDTH = 3
"""Columns at the right that stay free: where the `^C` of a terminal wrapped, the bar could not be erased any more."""


class Doing(ProgressColumn):
    """What is going on, cut where it is too long for one line; while clients join, who is there."""

    def __init__(self, console: Console, config: Config) -> None:
        super().__init__()
        self._console = console
        self._expected = config.scheduler.starting_clients
        self.joining: Engine | None = None

    def render(self, task: Task) -> Text:
        """The text of the task."""
        text = Text(f"  {printable(self._who_is_there() or task.description)}", no_wrap=True)
        others = BAR_WIDTH + len(task.fields["latest"]) + len(" 0:00:00") + 3 + ECHO_WIDTH
        text.truncate(max(self._console.width - others, LEAST_ROOM), overflow="ellipsis")
        return text

    def _who_is_there(self) -> str:
        engine = self.joining
        if engine is None:
            return ""
        try:
            here = engine.here()
        except RunError:  # it was aborted
            return ""
        names = f": {', '.join(here)}" if here else ""
        return f"waiting for clients, {len(here)} of {self._expected}{names}"


class Clock(ProgressColumn):
    """The time since the start; rich's own stops when the bar is full, which it is after every round."""

    def render(self, task: Task) -> Text:
        """The time as h:mm:ss."""
        return Text(str(datetime.timedelta(seconds=int(task.elapsed or 0))), style="progress.elapsed")


class ConsoleProgress(Observer):
    """Prints rounds as they complete; `step loss` is the mean loss of the round's first and last gradient step.

    A round's row has the metric at the clients, which comes with the next broadcast. If the run pauses or
    stops before it, a line says what is known, and the row follows when the run goes on.
    """

    def __init__(self, config: Config, console: Console, *, resumed: bool = False) -> None:
        """Prepare; nothing is printed before the first event.

        Args:
            resumed: what happened before `run_resumed` was in an earlier process, which has printed it.
        """
        self._config = config
        self._metric = MainMetric.of(config)
        self._console = console
        self._rounds = config.rounds
        self._table = RunTable(config, console.width)
        self._step_losses: dict[int, list[float]] = {}
        self._latest = ""
        self._examples: Mapping[str, ExampleCounts] = {}
        self._open_round = 0
        self._in_history = resumed
        self._can_go_on = config.scheduler.durability != "none"
        self._unevaluated = 0  # the finished round whose evaluation at the clients is to come, and 0 without one
        self._is_told = False
        self._stepping = stepping_of(config)
        self._doing = Doing(console, config)
        self._bar = Progress(
            self._doing,
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[latest]}", markup=False),
            Clock(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting for clients", total=None, latest="")

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason not to begin
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def engine_ready(self, engine: Engine) -> None:
        self._doing.joining = engine

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        self._examples = examples

    def run_started(self, run_id: str, rounds: int) -> None:
        self._doing.joining = None
        what = f"{self._config.algorithm.name}, {self._config.model.name} on {self._config.data.name}"
        self._print(f"run {run_id}: {what}, {rounds} round{'s' if rounds != 1 else ''}")
        for line in [*self._config.preset_lines(), *self._config.data.label_lines()]:
            self._print(f"  {line}")
        total = ExampleCounts.sum_of(self._examples.values())
        if total.unlabelled:
            self._print(f"  examples: {counted_examples(*total)}, at {len(self._examples)} clients")
        self._print(*self._table.heads)

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        self._doing.joining, self._in_history = None, False
        # Exchanges of the open round will be recalled.
        self._step_losses = {number: losses for number, losses in self._step_losses.items() if number <= rounds_done}
        where = f"round {rounds_done} of {rounds}" if last is None else f"{self._step_of(last)} in round {last.round} of {rounds}"
        if last is None and rounds_done == 0:
            where = "its start"
        self._print(f"run {run_id} goes on after {where} (process {incarnation})")
        self._print(*self._table.heads)
        self._update("waiting for clients to come back")

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        again = f" (attempt {attempt + 1})" if attempt else ""
        self._step_losses.pop(round_number, None)
        self._begin(round_number, f"round {round_number}/{self._rounds}{again}: {clients} clients")

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._add(record)
        for client, reason in record.clients_missing.items():
            self._print(f"  round {record.id.round} {self._step_of(record.id)}: {client} is missing: {reason}")

    def exchange_recalled(self, record: ExchangeRecord) -> None:
        self._add(record)

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self._unevaluated, self._is_told = round_number, False

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        value = evaluation.score(self._metric.name)
        if value is not None:
            shown = f"{value:.1%}" if self._metric.is_share else self._metric.text(value)
            self._latest = f"test {SHORT_TITLES.get(self._metric.name, self._metric.title)} {shown}"
        self._update(None)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self._print(f"  round {round_number} attempt {attempt + 1} failed: {reason}")

    def paused(self, reason: str) -> None:
        self._tell_unevaluated()
        self._print(f"  paused: {reason}")
        self._begin(0, "paused")

    def waiting(self, reason: str) -> None:
        self._print(f"  {reason}")
        self._begin(0, "waiting")

    def round_done(self, record: RoundRecord) -> None:
        if self._unevaluated == record.round and self._can_go_on:
            self._tell_unevaluated()
            return
        self._print(self._table.row(record, self._step_losses.pop(record.round, [])))
        if record.clients_missing:
            self._print(f"  round {record.round} went on without {listed(list(record.clients_missing))}")

    def _tell_unevaluated(self) -> None:
        """Say once what is known of a finished round whose row is to come."""
        number = self._unevaluated
        if not number or self._is_told:
            return
        self._is_told = True
        losses = first_and_last(self._step_losses.get(number, []))
        known = [f"step loss {losses}"] if losses else []
        known += [self._latest] if self._latest and self._config.data.test_set else []
        self._print(f"  round {number}/{self._rounds} is done{''.join(f', {part}' for part in known)}; its row follows")

    def _add(self, record: ExchangeRecord) -> None:
        """Take in an exchange that is done."""
        if record.id.name == DELIVER or record.clients_reported >= self._config.scheduler.quorum:
            self._unevaluated = 0  # it had the model of the round before
        # The reply to local training may be the first step's, whose loss is a metric beside that of the training.
        loss = record.metrics.get(FIRST_STEP_LOSS) if record.id.name == "local_train" else record.loss
        if loss is not None and record.id.name != DELIVER:
            self._step_losses.setdefault(record.id.round, []).append(loss)
        if record.id.round != self._open_round:  # after a pause, or in a process that goes on in the middle of a round
            self._begin(record.id.round, "")
        self._update(f"round {record.id.round}/{self._rounds}: {self._step_of(record.id)}", advance=1)

    def _step_of(self, exchange: ExchangeId) -> str:
        """Name an exchange, and say how many of the kind a round has where that is known."""
        has_steps = self._stepping is not None and exchange.name == self._stepping.step_exchange
        return f"{exchange.label} of {self._config.dkd.steps}" if has_steps else exchange.label

    def _begin(self, round_number: int, description: str) -> None:
        """Start the bar again, for a round, or without a measure for a wait (round 0)."""
        self._open_round = round_number
        self._doing.joining = None
        for task in self._bar.tasks:
            task.total = exchanges_a_round(self._config) if round_number else None
        self._bar.update(self._task, completed=0, description=description, latest=self._latest if round_number else "")

    def _update(self, description: str | None, advance: int = 0) -> None:
        self._bar.update(self._task, description=description, advance=advance, latest=self._latest)

    def _print(self, *lines: str) -> None:
        if self._in_history:
            return
        for line in lines:  # some hold what a client said
            self._console.print(printable(line, LINE_LETTERS), markup=False, highlight=False, soft_wrap=not self._console.is_terminal)
