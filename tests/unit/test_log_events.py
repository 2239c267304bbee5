"""The log for programs: one JSON object a line, and a name for each event."""

import ast
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from feddkd.cli import output
from feddkd.cli.log_format import JsonLines, LogFormat
from feddkd.cli.logs import SHOWN_BY_A_SERVER, handler_of_stderr, log_file, start_log
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.log_events import EVENTS, about, about_shown
from feddkd.observability.event_log import EventLog
from feddkd.scheduler.records import ExchangeRecord
from feddkd.traffic import Traffic

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "logs.md"


def entry(record: logging.LogRecord) -> dict[str, object]:
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable(), "on one line, with nothing that a terminal obeys"
    found: dict[str, object] = json.loads(line)
    return found


def record_of(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("feddkd.test").makeRecord("feddkd.test", logging.INFO, "file", 1, message, args, None, extra=extra)


def test_an_entry_has_its_time_in_utc_its_event_and_its_fields() -> None:
    record = record_of("%s joined", "site-a", **about("client_joined", client="site-a", examples=3, reason=None))
    record.created = 1_700_000_000.25
    assert entry(record) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "event": "client_joined",
        "logger": "feddkd.test",
        "message": "site-a joined",
        "client": "site-a",
        "examples": 3,
    }


@given(message=st.text(max_size=50), client=st.text(max_size=20), number=st.floats())
def test_whatever_is_said_is_one_line_of_valid_json(message: str, client: str, number: float) -> None:
    found = entry(record_of("%s", message, **about("client_refused", client=client, loss=number)))
    assert found["client"] == client
    assert found["loss"] == number or found["loss"] is None


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger().makeRecord("x", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    found = entry(record)
    assert "ValueError: two\nlines" in str(found["traceback"])
    assert found["event"] == "other"


def test_an_event_without_a_name_of_the_list_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="client_vanished"):
        about("client_vanished")


def test_every_event_of_the_code_is_listed_and_every_listed_one_is_in_the_code() -> None:
    used = {"other", "native_warning"}
    for file in (ROOT / "feddkd").rglob("*.py"):
        if file.name != "log_events.py":
            leaves = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
            used |= {leaf for leaf in leaves if isinstance(leaf, str) and leaf in EVENTS}
    assert used == EVENTS.keys()
    assert EVENTS.keys() >= SHOWN_BY_A_SERVER


def test_the_page_lists_exactly_the_events() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert dict(rows) == EVENTS


@pytest.fixture
def log() -> Iterator[None]:
    """No handlers, and afterwards those of before."""
    root, package = logging.getLogger(), logging.getLogger("feddkd")
    stderr = sys.stderr
    handlers, levels = list(root.handlers), (root.level, package.level)
    root.handlers = []
    root.setLevel(logging.WARNING)
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    sys.stderr = stderr
    logging.captureWarnings(False)
    output.say_in_log(False)
    start_log(LogFormat.TEXT, None)


def begin(log_format: LogFormat, file: Path | None, shown: frozenset[str] = frozenset()) -> None:
    """Set the log up as a command does."""
    logging.getLogger().addHandler(handler_of_stderr())
    start_log(log_format, file, shown)


def in_the_log() -> None:
    logger = logging.getLogger("feddkd.test")
    logger.info("site-a is here", extra=about("client_joined", client="site-a"))
    logger.info("a detail")
    logger.warning("a warning")
    logger.info("round 1", extra=about_shown("round_done", round=1))


@pytest.mark.usefixtures("log")
def test_a_server_shows_who_joins_without_being_asked(capsys: pytest.CaptureFixture[str]) -> None:
    begin(LogFormat.TEXT, None, SHOWN_BY_A_SERVER)
    in_the_log()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 3)[3] for line in said] == ["site-a is here", "a warning"]


@pytest.mark.usefixtures("log")
def test_a_run_shows_what_goes_wrong_and_its_file_holds_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(LogFormat.TEXT, tmp_path / "run.log")
    in_the_log()
    assert [line.split(" ", 3)[3] for line in capsys.readouterr().err.splitlines()] == ["a warning"]
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == ["site-a is here", "a detail", "a warning", "round 1"]


@pytest.mark.usefixtures("log")
def test_with_json_standard_error_is_for_programs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(LogFormat.JSON, tmp_path / "run.log")
    in_the_log()
    output.note(Console(stderr=True), "listening on 127.0.0.1:1")
    with output.working("drawing"):
        pass
    with warnings.catch_warnings(action="always"):
        logging.captureWarnings(True)
        warnings.warn("odd", UserWarning, stacklevel=1)
    print("of a library\nin two lines", file=sys.stderr)
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    events = [each["event"] for each in entries]
    assert events == ["client_joined", "other", "other", "round_done", "notice", "notice", "native_warning", "stderr_line", "stderr_line"]
    assert [json.loads(line) for line in (tmp_path / "run.log").read_text().splitlines()] == entries


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("log_format", LogFormat)
def test_a_second_file_takes_nothing_from_the_first_and_none_from_the_programs(
    log_format: LogFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(log_format, tmp_path / "wanted.log")
    with log_file(tmp_path / "client.log", log_format):
        in_the_log()
    logging.getLogger("feddkd.test").warning("after")
    lines = (tmp_path / "wanted.log").read_text().splitlines()
    assert (tmp_path / "client.log").read_text().splitlines() == lines[:4]
    assert len(lines) == 5
    assert len(capsys.readouterr().err.splitlines()) == (5 if log_format is LogFormat.JSON else 2)


def test_a_log_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^cannot write .*/nowhere/run.log: No such file or directory$"):
        start_log(LogFormat.TEXT, tmp_path / "nowhere" / "run.log")


@pytest.mark.parametrize(("stopped", "event"), [(False, "run_failed"), (True, "run_stopped")])
def test_the_events_of_a_run_carry_its_id(stopped: bool, event: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "feddkd")
    observer = EventLog()
    observer.run_started("run-1", 2)
    observer.round_started(1, 0, 3)
    step = ExchangeId("run-1", 1, 0, "dkd_step", 4)
    observer.exchange_done(ExchangeRecord(step, 3, 2, {"a": "gone"}, Traffic(), 0.5, 1.0, 1, None, None, {}))
    observer.round_failed(1, 0, "too few")
    observer.paused("too few")
    observer.waiting("for the final model")
    (observer.run_stopped if stopped else observer.run_failed)("for a reason")
    entries = [entry(record) for record in caplog.records]
    names = ["run_started", "round_started", "exchange_done", "round_failed", "run_paused", "run_waiting", event]
    assert [each["event"] for each in entries] == names
    assert {each["run_id"] for each in entries} == {"run-1"}
    assert {name: entries[2][name] for name in ("round", "exchange", "step", "clients_missing")} == {
        "round": 1,
        "exchange": "dkd_step",
        "step": 4,
        "clients_missing": 1,
    }
