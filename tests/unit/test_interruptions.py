"""A command that a signal ends says what it leaves behind, in one line, and exits with 130."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feddkd import cli
from feddkd.cli import EXIT_INTERRUPTED
from feddkd.cli.report import report_of
from feddkd.errors import CommandInterruptedError

FIRST_LINES = ("feddkd run: ", "feddkd server: ")
"""Where a command says what it is about to do."""

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(*_: Any, **__: Any) -> None:
    """Let SIGTERM come here; its handler raises what Ctrl-C raises."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        (["config", "check"], "feddkd.config.Config.load", "interrupted"),
        (["run", "--out", "new"], "feddkd.engines.resolve.resolve", "interrupted: nothing was started"),
        (
            ["server", "old/config.toml", "--listen", "127.0.0.1:0", "--state", "state"],
            "feddkd.cli.serving.with_shapes",
            "interrupted: nothing was started; the same command starts it",
        ),
        (
            ["compare", "--out", "all"],
            "feddkd.cli.comparison.compared",
            "interrupted: finished runs are kept in all/; the same command goes on",
        ),
        (
            ["run", "--resume", "old"],
            "feddkd.engines.resolve.resolve",
            "interrupted: the run did not go on; its record is in old/\n  feddkd run --resume old",
        ),
    ],
)
def test_a_signal_gets_a_word(
    arguments: list[str], where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "crashed", "old")
    monkeypatch.setattr(where, interrupt)
    monkeypatch.setattr(sys, "argv", ["feddkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_INTERRUPTED
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith(FIRST_LINES)] == f"feddkd: {said}".splitlines()


@pytest.mark.parametrize(
    ("names", "said", "command"),
    [
        (["a"], "the run is complete", "feddkd report a"),
        (["a", "b c"], "all runs are complete", "feddkd report a 'b c' --out page.html"),
    ],
)
def test_a_signal_while_the_report_is_drawn_leaves_the_command_for_it(
    names: list[str], said: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("feddkd.cli.report.RunFolder.load", stop)
    with pytest.raises(CommandInterruptedError) as ended:
        report_of([Path(name) for name in names], Path("page.html"))
    assert (str(ended.value), ended.value.go_on) == (f"interrupted: {said}; to draw the report:", command)
