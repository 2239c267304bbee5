"""Server and clients that are killed at every point where something becomes durable: the run ends as if they had not been."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from run_history import RunHistory, differences

from feddkd.failpoints import CLIENT_FAILPOINTS, SERVER_FAILPOINTS

Undisturbed = Callable[[str], RunHistory]
CLIENT = "client-1"
POINTS = [*((SERVER, name) for name in SERVER_FAILPOINTS), *((CLIENT, name) for name in CLIENT_FAILPOINTS)]
ONE_OF_EACH_KIND = list({name.rpartition(".")[0]: (process, name) for process, name in POINTS}.values())
"""The last point of each step that becomes durable."""


def kill_at(process: str, point: str, share: float, folder: Path, config: str, undisturbed: Undisturbed) -> None:
    """Kill a process at one of its visits of a failpoint, and check the run.

    Args:
        share: which visit: 0 is the first that it makes in a run, 1 the last.
    """
    visits = undisturbed(config).visits(process)[point]
    if not visits:
        pytest.skip(f"{config} does not come to {point}")
    visit = 1 + round(share * (visits - 1))
    with Federation(folder, CONFIGS[config]) as federation:
        federation.run({process: f"{point}=kill@{visit}"})
        assert federation.starts[process] >= 2
        check(federation, undisturbed(config))


@pytest.mark.parametrize(("process", "point"), ONE_OF_EACH_KIND)
def test_a_process_killed_at_a_failpoint_of_any_kind_costs_nothing_but_time(
    process: str, point: str, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    kill_at(process, point, 0.5, tmp_path, "feddkd", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
@pytest.mark.parametrize(("process", "point"), POINTS)
def test_every_algorithm_outlives_every_kill(
    process: str, point: str, share: float, config: str, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    kill_at(process, point, share, tmp_path, config, undisturbed)


@pytest.mark.parametrize(("process", "point"), POINTS)
def test_every_failpoint_is_met_in_a_run(process: str, point: str, undisturbed: Undisturbed) -> None:
    """Or the tests above would not try it."""
    assert any(undisturbed(config).visits(process)[point] for config in CONFIGS)


def test_a_server_that_is_killed_again_and_again_gets_there(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Each of its processes dies after one more exchange."""
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.run({SERVER: ["scheduler.exchange.after_append=kill"] * 5})
        assert federation.starts[SERVER] >= 6
        check(federation, undisturbed("feddkd"))


def test_everybody_killed_at_once_goes_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.start({SERVER: "scheduler.exchange.after_append=kill@4"})
        federation.processes[SERVER].wait()
        for name in federation.names:
            federation.processes[name].kill()
        federation.finish()
        check(federation, undisturbed("feddkd"))


def test_runs_that_nothing_disturbs_are_equal(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Else no comparison here would mean anything; and no two configurations end alike."""
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.run()
        check(federation, undisturbed("feddkd"))
    assert all(differences(undisturbed(one), undisturbed(other)) for one, other in itertools.combinations(CONFIGS, 2))
