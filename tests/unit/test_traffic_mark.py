"""The wire bytes of a server that was killed, as the next one finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import RUN_ID, exchange_of, filled, serving, small_config
from hypothesis import given
from hypothesis import strategies as st

from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.traffic_mark import SIZE_BYTES, Marked, TrafficMark
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema
from feddkd.traffic import Meter, Traffic

EXCHANGE = ExchangeId("run", 3, 1, "dkd_step", 2)
sizes = st.lists(st.integers(0, 2**40), max_size=5)


def wire(down: int, up: int) -> Traffic:
    return Traffic(wire_bytes_down=down, wire_bytes_up=up)


def test_a_new_mark_is_of_no_exchange(tmp_path: Path) -> None:
    TrafficMark(tmp_path / "mark")
    assert TrafficMark.read(tmp_path / "mark") == Marked(None, Traffic(), Traffic())


@given(
    ids=st.lists(
        st.builds(
            ExchangeId,
            st.text(max_size=64),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.text(max_size=64),
            st.integers(0, 2**32 - 1),
        ),
        min_size=1,
        max_size=3,
    ),
    down=sizes,
    up=sizes,
    other=sizes,
)
def test_a_mark_holds_the_bytes_of_the_last_exchange_and_all_others(
    ids: list[ExchangeId], down: list[int], up: list[int], other: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mark") / "mark"
    mark = TrafficMark(path)
    rest = Meter(mirror=mark.other)
    for number, exchange in enumerate(ids):
        mark.begin(exchange)
        meter = Meter(rest, mark.open)
        for size in down:
            meter.down(size)
        for size in up:
            meter.up(size)
        meter.close()
        assert TrafficMark.read(path) == Marked(exchange, wire(sum(down), sum(up)), wire(number * sum(other), 0))
        for size in other:
            meter.down(size)  # too late
    assert TrafficMark.read(path) == Marked(ids[-1], wire(sum(down), sum(up)), wire(len(ids) * sum(other), 0))


def test_a_mark_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    mark = TrafficMark(path)
    mark.begin(EXCHANGE)
    mark.open.down(5)
    mark.other.up(7)
    TrafficMark(path)
    assert TrafficMark.read(path) == Marked(None, Traffic(), Traffic())


def test_a_process_that_is_killed_leaves_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    script = f"""
import os, signal
from pathlib import Path
from feddkd.engines.traffic_mark import TrafficMark
from feddkd.exchange import ExchangeId
mark = TrafficMark(Path({str(path)!r}))
mark.begin(ExchangeId("run", 3, 1, "dkd_step", 2))
mark.open.down(10)
mark.open.up(20)
mark.other.down(30)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert TrafficMark.read(path) == Marked(EXCHANGE, wire(10, 20), wire(30, 0))


@pytest.mark.parametrize("content", [b"", b"x" * SIZE_BYTES, b"feddkd01" + b"\xff" * (SIZE_BYTES - 8), b"feddkd01"])
def test_what_is_no_mark_is_named_and_left_out(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mark"
    path.write_bytes(content)
    assert TrafficMark.read(path) is None
    assert str(path) in caplog.text


def test_no_mark_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert TrafficMark.read(tmp_path / "mark") is None
    assert caplog.text == ""


def test_a_mark_that_cannot_be_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert TrafficMark.read(tmp_path) is None
    assert str(tmp_path) in caplog.text


def test_a_full_disk_is_noticed_before_anything_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a page without a block would kill the process."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StateError, match=r"^cannot create .*mark: No space left on device$"):
        TrafficMark(tmp_path / "mark")


def test_a_server_marks_what_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    schema = Schema([])
    engine = GrpcEngine(small_config(), RUN_ID, schema, mark=path)
    first, second = (exchange_of(["stranger"], filled(schema, 0), reply_schema=None, round_number=number) for number in (1, 2))
    with serving(engine=engine):
        for exchange in (first, second):
            traffic = engine.carry_out(exchange).traffic
            assert TrafficMark.read(path) == Marked(exchange.id, traffic, engine.other_traffic())
