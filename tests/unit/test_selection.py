import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.config import SchedulerConfig
from feddkd.data.partitions import client_ids
from feddkd.scheduler.selection import select_cohort

seeds = st.integers(0, 2**32 - 1)


def select(available: list[str], seed: int = 0, round_number: int = 1, attempt: int = 0, **settings: Any) -> list[str]:
    return select_cohort(SchedulerConfig(**settings), available, seed, round_number, attempt)


@given(st.permutations(client_ids(12)), seeds, st.integers(1, 1000), st.integers(0, 5))
def test_the_draw_depends_on_seed_round_and_attempt_but_not_on_who_joined_first(
    available: list[str], seed: int, round_number: int, attempt: int
) -> None:
    drawn = select(available, seed, round_number, attempt, cohort=5)
    assert drawn == select(client_ids(12), seed, round_number, attempt, cohort=5)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 5
    assert set(drawn) <= set(available)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"round_number": 2}, {"attempt": 1}])
def test_another_seed_round_or_attempt_draws_others(changed: dict[str, int]) -> None:
    clients = client_ids(1000)
    assert select(clients, cohort=100) != select(clients, cohort=100, **changed)


def test_everybody_is_drawn_alike_in_the_long_run() -> None:
    drawn = Counter(client for round_number in range(2000) for client in select(client_ids(10), round_number=round_number, cohort=3))
    assert set(drawn) == set(client_ids(10))
    # 600 of 2000 each; the standard deviation is 20.5, so this is beyond 5 of them.
    assert all(abs(count - 600) < 103 for count in drawn.values())


def test_all_means_everybody_in_client_order() -> None:
    assert select(["c", "a", "b"], cohort="all") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fraction", "available", "count"),
    [(0.1, 10, 1), (0.1, 11, 2), (0.5, 5, 3), (1.0, 7, 7), (0.001, 5, 1), (0.07, 100, 7), (0.29, 100, 29), (0.57, 100, 57)],
)
def test_a_fraction_is_rounded_up_to_whole_clients(fraction: float, available: int, count: int) -> None:
    assert len(select(client_ids(available), cohort=fraction)) == count


@given(st.integers(1, 60), st.integers(1, 100), st.integers(1, 20))
def test_percentages_are_exact_and_the_quorum_is_met_where_it_can_be(available: int, percent: int, min_clients: int) -> None:
    wanted = max(math.ceil(percent * available / 100), min_clients)
    assert len(select(client_ids(available), cohort=percent / 100, min_clients=min_clients)) == min(wanted, available)


def test_no_more_are_drawn_than_there_are() -> None:
    assert select(client_ids(3), cohort=8) == client_ids(3)
    assert select([], cohort=8) == []
    assert select([], cohort=0.5) == []
