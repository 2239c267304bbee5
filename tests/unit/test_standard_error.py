"""A reader of standard error that hangs stops nothing, and one that comes back has the entries in order."""

import io
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from feddkd import standard_error
from feddkd.standard_error import PatientStream


def pipe() -> tuple[int, int]:
    return os.pipe()


def terminal() -> tuple[int, int]:
    reader, writer = os.openpty()
    return reader, writer


def connection() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


Ends = tuple[int, TextIO]


@pytest.fixture(params=[pipe, terminal, connection], ids=["pipe", "terminal", "socket"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """A reader's descriptor, and a stream of the writer's."""
    monkeypatch.setattr(standard_error, "MOST_WAITING_BYTES", 10_000)
    reader, writer = request.param()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield reader, stream
    os.close(reader)


def read_lines(reader: int, stream: PatientStream, last: str) -> list[str]:
    """Read what is there, and what the stream has kept, up to a line that begins with `last`."""
    os.set_blocking(reader, False)
    found: list[str] = [""]
    while len(found) < 2 or not found[-2].startswith(last):
        stream.finish(0.01)
        select.select([reader], [], [], 60)
        *lines, rest = (found[-1] + os.read(reader, 65536).decode()).split("\n")
        found[-1:] = [*(line.rstrip("\r") for line in lines), rest]
    return found[:-1]


def line_number(line: str) -> int:
    return int(line.split()[0])


def test_writing_goes_on_while_nobody_reads_and_the_loss_is_told(ends: Ends) -> None:
    reader, before = ends
    stream = PatientStream(before)
    for number in range(3000):
        stream.write(f"{number} {'x' * 200}\n")
    lost = stream.lost
    assert lost > 0
    kept = read_lines(reader, stream, f"{2999 - lost} ")
    assert [line_number(line) for line in kept] == list(range(3000 - lost)), "in order, and from the first"
    stream.write("and on\n")
    assert read_lines(reader, stream, "and on") == [f"feddkd: {lost} lines were lost, because standard error was not read", "and on"]
    assert stream.lost == 0


def test_what_is_read_in_time_is_written_at_once(ends: Ends) -> None:
    reader, before = ends
    stream = PatientStream(before)
    stream.write("first\n")
    assert os.read(reader, 100).strip() == b"first"


def test_a_reader_that_is_gone_is_an_error_as_before() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as before:
        stream = PatientStream(before)
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            stream.write("x")


LOGS = """
import logging, sys
from feddkd.cli.log_format import LogFormat
from feddkd.cli.logs import set_up_logging, start_log
from feddkd.standard_error import never_wait_for_standard_error
never_wait_for_standard_error()
patient = sys.stderr
set_up_logging()
start_log(LogFormat[sys.argv[1]], None, frozenset())
for number in range(12_000):
    logging.getLogger("feddkd.test").warning("%d %s", number, "x" * 200)
print("done", flush=True)
sys.stdin.read()
patient.finish()
logging.getLogger("feddkd.test").warning("last")
"""


@pytest.mark.parametrize("log_format", ["TEXT", "JSON"])
def test_a_process_whose_log_nobody_reads_goes_on_and_ends_with_its_last_entries(log_format: str) -> None:
    command = [sys.executable, "-c", LOGS, log_format]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n", "while nothing was read"
        _, said = process.communicate(b"", timeout=60)
    lines = said.decode().splitlines()
    texts = [json.loads(line)["message"] for line in lines] if log_format == "JSON" else [line.partition(" WARNING ")[2] for line in lines]
    numbers = [line_number(line) for line in texts if line.endswith("x")]
    assert numbers == list(range(len(numbers)))
    assert 1000 < len(numbers) < 12_000
    assert texts[-1] == "last"
    notice = lines[-2] if log_format == "TEXT" else texts[-2]
    assert notice.removeprefix("feddkd: ") == f"{12_000 - len(numbers)} lines were lost, because standard error was not read"


def test_a_regular_file_stays_as_it_is(tmp_path: Path) -> None:
    code = "import sys; from feddkd.standard_error import *; never_wait_for_standard_error(); print(type(sys.stderr).__name__)"
    with (tmp_path / "log").open("w") as file:
        result = subprocess.run([sys.executable, "-c", code], stderr=file, stdout=subprocess.PIPE, check=True)
    assert result.stdout == b"TextIOWrapper\n"


def test_a_stream_without_a_descriptor_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    standard_error.never_wait_for_standard_error()
    assert sys.stderr is stream
