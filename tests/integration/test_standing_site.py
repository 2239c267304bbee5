"""A site that stays for the next run of the server, and the log file that it leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_client_command import federation_of_one

from feddkd import algorithms
from feddkd.cli import logs, standing
from feddkd.cli.logs import LOG, log_file
from feddkd.cli.standing import StandingSite
from feddkd.client.own_site import fetch_server_config
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import FINAL_MODEL
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import RefusedError
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors


class StopError(Exception):
    """Ends a site that would stay for ever."""


@pytest.fixture
def runs_until_stop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that a site asks to be over; it stops when it asks for a third one."""
    asked: list[str] = []

    def ask(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        if len(asked) > 2:
            raise StopError
        return fetch_server_config(*arguments)

    monkeypatch.setattr(standing, "fetch_server_config", ask)
    return asked


def initial_of(config: Config) -> Tensors:
    return build_initial(config).model


def run_at(port: int, run_id: str, config: Config) -> tuple[int, Iterator[RunRecord]]:
    """Listen, and carry the run out when the record is asked for."""
    engine = GrpcEngine(config, run_id, initial_of(config).schema)
    bound = engine.start("127.0.0.1", port)

    def records() -> Iterator[RunRecord]:
        yield Scheduler(config, algorithms.build(config), engine, run_id=run_id).run(initial_of(config))

    return bound, records()


def test_a_site_stays_for_the_next_run_with_its_new_configuration(runs_until_stop: list[str], tmp_path: Path) -> None:
    first = federation_of_one()
    second = first.model_copy(update={"rounds": 2, "seed": 5})
    state = StateDir(tmp_path, "site")
    port, records = run_at(0, "run-1", first)
    with ThreadPoolExecutor(1) as pool, log_file(tmp_path / LOG):
        site = StandingSite(f"127.0.0.1:{port}", state, {}, 0, None, 60.0)
        staying = pool.submit(site.take_part_for_ever)
        next(records)
        _, records = run_at(port, "run-2", second)
        last = next(records)
        with pytest.raises(StopError):
            staying.result(60.0)
    assert runs_until_stop == ["", "run-1", "run-2"]
    assert state.label(FINAL_MODEL) == "run-2"
    kept = state.load(FINAL_MODEL, last.model.schema, "run-2")
    assert kept is not None
    assert kept.sha256() == last.model.sha256()
    log = (tmp_path / LOG).read_text()
    for line in ("site: joined run run-1 (", "site: joined run run-2 (", "waiting for the next run of the server"):
        assert line in log


def test_a_run_that_a_site_cannot_take_part_in_is_passed_over(runs_until_stop: list[str], tmp_path: Path) -> None:
    good = federation_of_one()
    foreign = good.model_copy(update={"model": good.model.model_copy(update={"name": "theirs:net"})})
    state = StateDir(tmp_path, "site")
    port, records = run_at(0, "run-1", good)
    with ThreadPoolExecutor(1) as pool, log_file(tmp_path / LOG):
        staying = pool.submit(StandingSite(f"127.0.0.1:{port}", state, {}, 0, None, 60.0).take_part_for_ever)
        next(records)
        engine = GrpcEngine(foreign, "run-2", initial_of(good).schema)
        engine.start("127.0.0.1", port)
        with pytest.raises(StopError):
            staying.result(60.0)
        engine.finish(completed=False, reason="enough")
    assert runs_until_stop == ["", "run-1", "run-2"]
    assert "site: the server asks for model.name = 'theirs:net'" in (tmp_path / LOG).read_text()


def test_a_site_that_cannot_take_part_in_its_first_run_ends(tmp_path: Path) -> None:
    good = federation_of_one()
    foreign = good.model_copy(update={"model": good.model.model_copy(update={"name": "theirs:net"})})
    engine = GrpcEngine(foreign, "run-1", initial_of(good).schema)
    port = engine.start("127.0.0.1", 0)
    try:
        with pytest.raises(RefusedError, match=r"the server asks for model\.name"):
            StandingSite(f"127.0.0.1:{port}", StateDir(tmp_path, "site"), {}, 0, None, 60.0).take_part_for_ever()
    finally:
        engine.finish(completed=False, reason="enough")


def test_a_log_file_is_rotated_and_shows_nothing_new_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 2000)
    root, handler, logger = logging.getLogger(), logs.handler_of_stderr(), logging.getLogger("feddkd.somewhere")
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        with log_file(tmp_path / LOG):
            for number in range(200):
                logger.info("entry %d\x1b[2J", number)
            logger.warning("something is wrong")
        logger.info("after it")
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert [line.partition(" WARNING ")[2] for line in capsys.readouterr().err.splitlines()] == ["something is wrong"]
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [LOG, f"{LOG}.1", f"{LOG}.2", f"{LOG}.3"]
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())
    newest = (tmp_path / LOG).read_text()
    assert newest.endswith("WARNING something is wrong\n")
    assert "\x1b" not in newest
