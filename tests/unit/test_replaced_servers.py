"""A client and the servers of one run: those that pause it, and those that were replaced and do not know it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from agent_scenes import taking_part
from hand_server import broadcast, on_loop
from harness import SCHEMA, answering, filled

from feddkd.client import backoff
from feddkd.client.agent import Farewell
from feddkd.client.fence import RUNS_KEPT, SERVERS, Fence
from feddkd.client.membership import Membership
from feddkd.client.state_dir import StateDir
from feddkd.errors import UnreachableError
from feddkd.transport.messages import farewell_message

MODEL, UPDATE = filled(SCHEMA, 1), filled(SCHEMA, 2)
PAUSED = farewell_message(False, "the server was told to stop\x1b[2J", paused=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_DELAY_S", 0.001)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state", "site")


def test_a_client_says_that_the_run_is_paused_and_comes_back_with_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with taking_part(answering(UPDATE)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            await stream.send(PAUSED)
            stream = await scene.stream()
            assert stream.hello.holding.size_bytes == SCHEMA.size_bytes
            assert await scene.part(stream) == []

    on_loop(scenario())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert r"it has paused the run (the server was told to stop\x1b[2J); trying again in" in warning


def test_a_client_that_does_not_outlive_a_pause_parts() -> None:
    async def scenario() -> Farewell:
        async with taking_part(answering(UPDATE), Membership(outlives_pause=False)) as scene:
            await (await scene.stream()).send(PAUSED)
            return await scene.running

    assert on_loop(scenario()) == Farewell("run", False, r"the server was told to stop\x1b[2J", paused=True)


def test_a_run_that_stays_paused_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    async def scenario() -> None:
        async with taking_part(answering(UPDATE), retry_for_s=25.0) as scene:
            while not scene.running.done():
                coming = asyncio.create_task(scene.stream())
                await asyncio.wait([coming, scene.running], return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    await coming.result().send(PAUSED)
                coming.cancel()
            await scene.running

    with pytest.raises(UnreachableError, match=r"paused the run \(.*\) \(gave up after 25 s\)$"):
        on_loop(scenario())


def test_a_server_that_was_replaced_gets_nothing_and_its_successor_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with taking_part(answering(UPDATE)) as scene:
            scene.server.manifest.incarnation = 3
            stream = await scene.stream()
            scene.server.manifest.incarnation = 2
            stream.end()
            for _ in range(4):  # the first of them may be the one before
                await scene.server.join()
            assert scene.server.nobody_has_opened_a_stream
            scene.server.manifest.incarnation = 4
            assert await scene.part(await scene.stream()) == []

    on_loop(scenario())
    assert "it is server 2 of run run, which was replaced by server 3; trying again in" in caplog.text


@pytest.mark.parametrize("incarnation", [0, 1, 2])
def test_what_was_seen_survives_the_client(state: StateDir, incarnation: int) -> None:
    Fence(state).admit("run", 3)
    with pytest.raises(UnreachableError, match=rf"^it is server {incarnation} of run run, which was replaced by server 3$"):
        Fence(state).admit("run", incarnation)
    Fence(state).admit("run", 3)
    Fence(state).admit("run", 4)


def test_another_run_begins_at_any_server_and_the_runs_before_it_are_not_forgotten(state: StateDir) -> None:
    for number in range(RUNS_KEPT):
        Fence(state).admit(f"run {number}", 9)
    Fence(state).admit(f"run {RUNS_KEPT}", 1)
    Fence(state).admit("run 0", 1)  # the oldest one is forgotten
    with pytest.raises(UnreachableError):
        Fence(state).admit("run 5", 8)


def test_an_absurd_run_id_leaves_nothing_behind(state: StateDir) -> None:
    fence = Fence(state)
    fence.admit("x" * 1_000_000, 2)
    fence.admit("\U0001f600" * 64, 2)
    assert (state.path / SERVERS).stat().st_size < 1000
    with pytest.raises(UnreachableError):
        Fence(state).admit("\U0001f600" * 64, 1)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"run": "9"}', "\xff"])
def test_a_damaged_file_says_nothing(state: StateDir, content: str) -> None:
    (state.path / SERVERS).write_text(content, encoding="latin-1")
    Fence(state).admit("run", 1)
    with pytest.raises(UnreachableError):
        Fence(state).admit("run", 0)
