"""A soak's seed says what happens in each of its runs, and growth is told from noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER
from run_history import RunHistory
from soak import LATEST_S, Fate
from weather import FEWEST_SAMPLES, Sample, growth

from feddkd.failpoints import CLIENT_FAILPOINTS, SERVER_FAILPOINTS, Plan

VISITS = 3


def run_that_visits_every_failpoint() -> RunHistory:
    names = {SERVER: SERVER_FAILPOINTS, **{f"client-{index}": CLIENT_FAILPOINTS for index in range(3)}}
    seen = {process: [{"saw": "failpoint", "name": point} for point in points] * VISITS for process, points in names.items()}
    return RunHistory([], [], [], None, seen, Path())


@pytest.fixture
def undisturbed() -> Mapping[str, RunHistory]:
    return dict.fromkeys(CONFIGS, run_that_visits_every_failpoint())


def test_a_run_has_the_same_fate_again(undisturbed: Mapping[str, RunHistory]) -> None:
    fates = [Fate.draw(7, number, undisturbed) for number in range(50)]
    assert fates == [Fate.draw(7, number, undisturbed) for number in range(50)]
    assert len({str(fate) for fate in fates}) == 50
    assert fates != [Fate.draw(8, number, undisturbed) for number in range(50)]


def test_fates_are_possible_and_many(undisturbed: Mapping[str, RunHistory]) -> None:
    fates = [Fate.draw(0, number, undisturbed) for number in range(300)]
    texts = [text for fate in fates for texts in fate.failpoints.values() for text in texts]
    for text in texts:
        Plan(text)  # refuses what cannot be
    assert {text.partition("=")[0] for text in texts} == {*SERVER_FAILPOINTS, *CLIENT_FAILPOINTS}
    assert {int(text.partition("@")[2]) for text in texts} == {*range(1, VISITS + 1)}
    assert {fate.config for fate in fates} == set(CONFIGS)
    assert all(0 <= moment.at_s <= LATEST_S for fate in fates for moment in fate.moments)
    assert all(list(fate.moments) == sorted(fate.moments) for fate in fates)


STEADY = Sample(memory_bytes=300 << 20, threads=10, files=30)


def life(change: int, count: int = FEWEST_SAMPLES, **what: int) -> list[Sample]:
    """Samples of a process that takes up more from sample `change` on."""
    return [STEADY._replace(**what) if number >= change else STEADY for number in range(count)]


@pytest.mark.parametrize(("what", "value"), [("memory_bytes", 340 << 20), ("threads", 15), ("files", 39)])
def test_growth_late_in_a_life_is_told(what: str, value: int) -> None:
    (found,) = growth(life(FEWEST_SAMPLES - FEWEST_SAMPLES // 4, **{what: value}))
    assert found.startswith(f"{what} grew from")


@pytest.mark.parametrize(("what", "value"), [("memory_bytes", 320 << 20), ("threads", 14), ("files", 38)])
def test_noise_is_no_growth(what: str, value: int) -> None:
    assert growth(life(FEWEST_SAMPLES // 2, **{what: value})) == []


def test_what_a_process_takes_up_at_first_is_no_growth() -> None:
    assert growth(life(FEWEST_SAMPLES // 8, memory_bytes=900 << 20)) == []


def test_a_short_life_says_nothing() -> None:
    assert growth(life(10, count=FEWEST_SAMPLES - 1, files=999)) == []
