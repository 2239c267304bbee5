"""Rates and numbers that bound what a server does for its clients."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.transport.limits import TokenBucket
from feddkd.transport.options import MAX_CONNECTIONS, RESERVED_FILES, allow_connections, max_connections

PAUSES = st.lists(st.floats(0, 20), min_size=1, max_size=200)


@given(PAUSES, st.integers(1, 40), st.floats(0.1, 10))
def test_a_bucket_allows_its_burst_and_its_rate_in_any_interval(
    pauses: list[float],
    burst: int,
    per_second: float,
) -> None:
    bucket, now, taken = TokenBucket(burst, per_second, 0.0), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    for first, start in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= burst + (end - start) * per_second + 1e-6


@given(PAUSES, st.integers(1, 40), st.floats(0.1, 10))
def test_a_bucket_refuses_nobody_who_keeps_to_its_rate(
    pauses: list[float],
    burst: int,
    per_second: float,
) -> None:
    bucket, now = TokenBucket(burst, per_second, 0.0), 0.0
    for pause in pauses:
        now += pause + 1.001 / per_second
        assert bucket.take(now)


def test_what_is_given_counts_up_to_the_burst() -> None:
    bucket = TokenBucket(2, 0.001, 0.0)
    for _ in range(5):
        bucket.give()
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    bucket.give()
    assert [bucket.take(0.0) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("files", "connections"),
    [
        (1_024, 1_024 - RESERVED_FILES),
        (10**6, MAX_CONNECTIONS),
        (resource.RLIM_INFINITY, MAX_CONNECTIONS),
        (100, 1),
    ],
)
def test_connections_leave_open_files_for_the_record(
    files: int,
    connections: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert max_connections() == connections


@pytest.mark.parametrize(
    ("files", "permitted", "raised"),
    [
        (1_024, 1 << 20, MAX_CONNECTIONS + RESERVED_FILES),
        (1_024, 4_096, 4_096),
        (1_024, resource.RLIM_INFINITY, MAX_CONNECTIONS + RESERVED_FILES),
        (4_096, 4_096, 4_096),
        (1 << 20, 1 << 20, 1 << 20),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_a_server_opens_as_many_files_as_it_is_permitted_and_needs(
    files: int,
    permitted: int,
    raised: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(files, permitted)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    allow_connections()
    assert limits[-1] == (raised, permitted)
