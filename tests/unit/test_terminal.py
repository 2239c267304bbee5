"""What a terminal of 60, 80 or 120 columns shows: no row is folded, and nothing writes into the live bar."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from feddkd.cli.logs import handler_of_stderr
from feddkd.cli.output import _field_lines, error_console, note
from feddkd.cli.progress import Clock, ConsoleProgress
from feddkd.cli.run_table import RunTable
from feddkd.cli.words import short_size
from feddkd.config import Config
from feddkd.errors import RunError
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

WIDTHS = (60, 80, 120)
EVALUATION = Evaluation(100, 97, 12.3)
STEP = ExchangeRecord(ExchangeId("run", 1, 0, "dkd_step", 2), 3, 3, {}, Traffic(), 1.0, 1.0, 1, 0.5, None, {})
ROUND = RoundRecord(1, EVALUATION, EVALUATION, Traffic(wire_bytes_down=975_000, wire_bytes_up=976_000), 1_951_000, 10.8, 3, {}, 1, {})
LARGEST = replace(
    ROUND,
    evaluation=Evaluation(1, 1, 9999.0),
    traffic=Traffic(wire_bytes_down=999_499_999_999, wire_bytes_up=999_499_999_999),
    cumulative_wire_bytes=999_499_999_999,
    seconds=99_999.0,
)


class Terminal:
    """A pseudo-terminal, and the screen that it shows."""

    def __init__(self, width: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.file = os.fdopen(slave, "w")
        self._screen = pyte.Screen(width, 24)
        self._reader = threading.Thread(target=self._read, args=[pyte.ByteStream(self._screen)], daemon=True)
        self._reader.start()

    def _read(self, stream: pyte.ByteStream) -> None:
        try:
            while found := os.read(self._master, 1 << 16):
                stream.feed(found)
        except OSError:  # nobody can write any more
            return

    def close(self) -> list[str]:
        """Take the lines that are on the screen in the end."""
        self.file.close()
        self._reader.join()
        os.close(self._master)
        return [line.rstrip() for line in self._screen.display if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 80 columns, for a new console of standard error."""
    opened = Terminal(80)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    error_console.cache_clear()
    yield opened
    error_console.cache_clear()


def test_what_comes_while_the_bar_is_live_has_a_line_of_its_own(terminal: Terminal) -> None:
    logger = logging.Logger("a logger of this test")
    with contextlib.redirect_stderr(terminal.file), ConsoleProgress(Config(), error_console()) as progress:
        logger.addHandler(handler_of_stderr())
        progress.round_started(1, 0, 3)
        logger.warning("the disk is nearly full")
        progress.exchange_done(STEP)
        print("from a client process", file=sys.stderr)
        note(error_console(), "SIGTERM: pausing the run")
        progress.round_failed(1, 0, "nobody answered")
    first, *others = terminal.close()
    assert first.endswith("WARNING  the disk is nearly full")
    assert others == ["from a client process", "SIGTERM: pausing the run", "  round 1 attempt 1 failed: nobody answered"]


def live(progress: ConsoleProgress, width: int) -> str:
    """The live bar as it is drawn now."""
    shown = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    shown.print(progress._bar.get_renderable())
    return cast("io.StringIO", shown.file).getvalue().rstrip("\n")


def progress_of(width: int, *overrides: str) -> ConsoleProgress:
    return ConsoleProgress(Config.load(None, overrides), Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None))


class Meeting:
    """An engine that clients have joined."""

    def __init__(self, *clients: str) -> None:
        self._clients = clients

    def here(self) -> list[str]:
        return list(self._clients)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_is_one_line(width: int) -> None:
    progress = progress_of(width)
    progress.engine_ready(cast("Engine", Meeting(*(f"hospital-{number}" for number in range(20)))))
    shown = [live(progress, width)]
    progress.round_started(10, 2, 100)
    progress.round_evaluated(9, EVALUATION)
    progress.exchange_done(replace(STEP, id=ExchangeId("run", 10, 2, "dkd_step", 19)))
    shown.append(live(progress, width))
    progress.paused("round 2 needs 3 clients, 2 are connected; missing: north; if nobody comes, the run ends at 14:32:10")
    shown.append(live(progress, width))
    for line in shown:
        assert "\n" not in line
        assert len(line) <= width - len("^C") - 1  # what a terminal adds for Ctrl-C must not wrap


def test_while_clients_join_the_bar_says_who_is_there() -> None:
    progress = progress_of(80, "scheduler.clients=3")
    progress.engine_ready(cast("Engine", Meeting("north", "south")))
    assert live(progress, 80).startswith("  waiting for clients, 2 of 3: north, south ")


def test_an_engine_that_was_aborted_does_not_break_the_bar() -> None:
    class Aborted:
        def here(self) -> list[str]:
            raise RunError("stopped by SIGINT")

    progress = progress_of(80)
    progress.engine_ready(cast("Engine", Aborted()))
    assert live(progress, 80).startswith("  waiting for clients ")


def test_the_bar_counts_steps_from_1_and_says_that_the_run_is_paused() -> None:
    progress = progress_of(80, "rounds=4")
    progress.round_started(1, 0, 3)
    progress.exchange_done(STEP)
    assert live(progress, 80).startswith("  round 1/4: dkd_step 3 of 20 ")
    progress.paused("round 1 needs 3 clients, 2 are connected")
    assert live(progress, 80).startswith("  paused ")
    progress.round_started(1, 1, 3)
    assert live(progress, 80).startswith("  round 1/4 (attempt 2): 3 clients ")


def test_the_clock_goes_on_when_the_bar_is_full() -> None:
    now = 0.0
    bar = Progress(Clock(), get_time=lambda: now)
    task = bar.add_task("", total=1)
    bar.update(task, advance=1)
    now = 65.0
    assert Clock().render(bar.tasks[0]).plain == "0:01:05"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("overrides", [(), ("rounds=10000",), ("data.test_set=false",), ("data.holdout=0", "algorithm.name=fedavg")])
def test_no_row_is_longer_than_the_terminal_is_wide(width: int, overrides: tuple[str, ...]) -> None:
    config = Config.load(None, overrides)
    table = RunTable(config, width)
    lines = [*table.heads, table.row(ROUND, [2.011, 1.0, 0.892]), table.row(replace(LARGEST, round=config.rounds), [99_999.0, 0.1])]
    assert max(map(len, lines)) <= width
    assert "so far" in lines[1]
    assert lines[2].endswith("1.95 MB  10.8 s") or lines[2].endswith("1.95 MB   10.8 s")


def test_a_row_has_what_its_head_says() -> None:
    table = RunTable(Config.load(None, ["rounds=12"]), 80)
    assert [*table.heads, table.row(ROUND, [2.011, 1.0, 0.892])] == [
        "           test  client   test     step loss                   bytes",
        "  round    acc.    acc.   loss  first → last    down      up  so far    time",
        "   1/12  97.00%  97.00%  0.123 2.011 → 0.892  975 kB  976 kB 1.95 MB  10.8 s",
    ]


def test_a_column_that_nothing_fills_is_not_there() -> None:
    heads = "\n".join(RunTable(Config.load(None, ["algorithm.name=fedavg", "data.test_set=false"]), 80).heads)
    assert "step loss" not in heads
    assert "test" not in heads


@given(st.integers(0, 999_499_999_999))
def test_a_size_takes_seven_characters_at_most(size_bytes: int) -> None:
    shown = short_size(size_bytes)
    number, unit = shown.split()
    assert len(shown) <= 7
    assert float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] == pytest.approx(size_bytes, rel=0.006, abs=0.5)


def test_a_field_is_folded_between_words_and_a_checksum_never() -> None:
    assert _field_lines("folder", "x " * 100, None) == ["  folder             " + "x " * 100]
    folded = _field_lines("note", "one two three four five six seven", 40)
    assert folded == ["  note               one two three four", "                     five six seven"]
    checksum = "0" * 64
    assert _field_lines("model sha256", checksum, 80) == ["  model sha256", f"    {checksum}"]


def test_a_run_that_goes_on_says_after_which_exchange_and_keeps_the_rounds_first_loss() -> None:
    shown = io.StringIO()
    progress = ConsoleProgress(Config(), Console(width=80, file=shown))
    progress.run_resumed("run", 10, 0, 2, ExchangeId("run", 1, 0, "dkd_step", 2))
    progress.exchange_recalled(replace(STEP, id=ExchangeId("run", 1, 0, "dkd_step", 0), loss=2.0))
    progress.exchange_done(STEP)
    progress.round_done(ROUND)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "run run goes on after dkd_step 3 of 20 in round 1 of 10 (process 2)"
    assert "2.000 → 0.500" in lines[-1]
    assert progress._bar.tasks[0].completed == 2


def test_a_run_that_goes_on_between_two_rounds_says_so() -> None:
    shown = io.StringIO()
    progress = ConsoleProgress(Config(), Console(width=80, file=shown))
    progress.run_resumed("run", 10, 4, 3, None)
    assert shown.getvalue().startswith("run run goes on after round 4 of 10 (process 3)\n")


MODEL = cast("Tensors", None)
FIRST, LAST = (replace(STEP, id=ExchangeId("run", 1, 0, "dkd_step", step), loss=loss) for step, loss in ((0, 2.0), (1, 0.5)))
NEXT = replace(STEP, id=ExchangeId("run", 2, 0, "local_train", 0), loss=1.0)


def printed(progress: ConsoleProgress) -> list[str]:
    """What was printed since the last call."""
    shown = cast("io.StringIO", progress._console.file)
    lines = shown.getvalue().splitlines()
    shown.seek(0)
    shown.truncate()
    return lines


def after_round_1(*, resumed: bool = False) -> ConsoleProgress:
    progress = ConsoleProgress(Config.load(None, ["rounds=2"]), Console(width=80, file=io.StringIO()), resumed=resumed)
    progress.round_started(1, 0, 3)
    progress.exchange_done(FIRST)
    progress.exchange_done(LAST)
    progress.round_evaluated(1, EVALUATION)
    progress.round_finished(1, MODEL)
    return progress


def test_while_a_run_is_paused_what_is_known_of_the_finished_round_is_said_once_and_its_row_follows() -> None:
    progress = after_round_1()
    known = "  round 1/2 is done, step loss 2.000 → 0.500, test acc. 97.0%; its row follows"
    progress.paused("round 2 needs 3 clients, 2 are connected")
    progress.paused("round 2 needs 3 clients, 2 are connected")
    assert printed(progress) == [known, *["  paused: round 2 needs 3 clients, 2 are connected"] * 2]
    progress.exchange_done(NEXT)
    progress.round_done(ROUND)
    (row,) = printed(progress)
    assert "2.000 → 0.500" in row


def test_a_run_that_is_stopped_between_two_rounds_prints_no_row_that_is_not_complete() -> None:
    progress = after_round_1()
    progress.round_done(replace(ROUND, client_evaluation=None))
    assert printed(progress) == ["  round 1/2 is done, step loss 2.000 → 0.500, test acc. 97.0%; its row follows"]


def test_a_process_that_goes_on_prints_the_row_of_the_round_before_with_its_step_losses() -> None:
    progress = after_round_1(resumed=True)
    assert printed(progress) == []
    progress.run_resumed("run", 2, 1, 2, None)
    progress.round_started(2, 0, 3)
    progress.exchange_done(NEXT)
    progress.round_done(ROUND)
    assert "2.000 → 0.500" in printed(progress)[-1]
