"""Lines that are slow, far away, or carry one direction only: they cost time and, where connections break, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cable import Cable, Direction
from federation import CONFIGS, SERVER, Federation, check
from run_history import RunHistory, violations

from feddkd.bench.throttle import throttled
from feddkd.observability.wall_time import Link

Undisturbed = Callable[[str], RunHistory]
FAR = Link(1e9, 1e9, rtt_s=0.3)
NARROW = Link(256e3, 256e3, rtt_s=0.05)


@contextlib.contextmanager
def behind(federation: Federation, name: str, link: Link | None = None) -> Iterator[Cable]:
    """Put a cable, and behind it a slow line, between a client and the server."""
    with Cable(federation.address) as cable, throttled(cable.address, [link] if link else []) as lines:
        federation.reach_server_at(name, lines[0] if lines else cable.address)
        yield cable


def test_a_round_trip_of_300_ms_changes_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Federation(tmp_path, CONFIGS["fedavg"]) as federation, contextlib.ExitStack() as lines:
        for name in federation.names:
            lines.enter_context(behind(federation, name, FAR))
        federation.run()
        check(federation, undisturbed("fedavg"))


def test_a_straggler_with_256_kbit_a_second_is_waited_for(tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Federation(tmp_path, CONFIGS["fedavg"]) as federation, behind(federation, "client-2", NARROW):
        federation.run()
        check(federation, undisturbed("fedavg"))


def test_a_straggler_is_not_waited_for_where_two_are_enough(tmp_path: Path) -> None:
    """Its model takes more than a second each way; the others do not wait, and its late replies count nowhere."""
    overrides = [*CONFIGS["fedavg"], "rounds=3", "scheduler.min_clients=2", "scheduler.enough=2"]
    with Federation(tmp_path, overrides) as federation, behind(federation, "client-2", NARROW):
        federation.run()
        history = federation.history()
    assert violations(history) == []
    trained = [line for line in history.exchanges if line["exchange"] == "local_train"]
    assert [list(line["clients_missing"]) for line in trained] == [["client-2"]] * 3
    assert history.exchanges[-1]["clients_missing"] == {}  # but it gets the final model


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_that_loses_one_direction_for_a_minute_heals(direction: Direction, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Both sides notice within 40 s that nobody answers, and the client comes back when the line does."""
    with (
        Federation(tmp_path, [*CONFIGS["feddkd"], "scheduler.reconnect_grace_s=60"]) as federation,
        behind(federation, "client-1") as cable,
    ):
        federation.start()
        federation.wait_for_exchanges(1)
        cable.block(direction)
        federation.processes[SERVER].join(60)
        assert federation.processes[SERVER].exit_code is None
        cable.unblock()
        federation.finish()
        check(federation, undisturbed("feddkd"))


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_that_loses_one_direction_for_a_moment_breaks_nothing(
    direction: Direction, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation, behind(federation, "client-1") as cable:
        federation.start()
        federation.wait_for_exchanges(1)
        cable.block(direction)
        federation.processes[SERVER].join(1)
        assert federation.processes[SERVER].exit_code is None
        cable.unblock()
        federation.finish()
        check(federation, undisturbed("feddkd"))


@pytest.mark.parametrize("resets", [False, True], ids=["ended", "reset"])
def test_connections_that_break_again_and_again_cost_only_bytes(resets: bool, tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation, Cable(federation.address, resets=resets) as cable:
        federation.reach_server_at("client-1", cable.address)
        cable.cut_at("up", 50_000, again=True)
        federation.run()
        assert cable.cuts > 3
        check(federation, undisturbed("feddkd"))
