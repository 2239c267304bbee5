"""Which host computes for which client."""

from hypothesis import given
from hypothesis import strategies as st

from feddkd.engines.dispatch import Dispatch, Turn


def test_a_client_goes_to_the_host_at_which_it_was() -> None:
    dispatch = Dispatch(movable=True)
    dispatch.add(["a", "b"])
    assert [dispatch.next(1), dispatch.next(2)] == [Turn("a"), Turn("b")]
    dispatch.add(["a", "b"])
    assert [dispatch.next(2), dispatch.next(1)] == [Turn("b"), Turn("a")]


def test_a_host_with_nothing_to_do_takes_a_client_from_the_longest_queue_unless_clients_stay() -> None:
    for movable in (True, False):
        dispatch = Dispatch(movable=movable)
        dispatch.add(["a", "b", "c"])
        assert [dispatch.next(1) for _ in range(3)] == [Turn("a"), Turn("b"), Turn("c")]
        dispatch.add(["a", "b", "c"])
        assert dispatch.next(2) == (Turn("c", held_by=1) if movable else None)
        assert dispatch.home("c") == (2 if movable else 1)


def test_the_last_client_that_waits_for_its_host_is_left_to_it() -> None:
    dispatch = Dispatch(movable=True)
    dispatch.add(["a"])
    dispatch.next(1)
    dispatch.add(["a"])
    assert dispatch.next(2) is None
    assert dispatch.next(1) == Turn("a")


def test_clients_of_a_lost_host_go_to_any_other_and_nobody_has_to_let_go_of_them() -> None:
    dispatch = Dispatch(movable=False)
    dispatch.add(["a", "b"])
    assert [dispatch.next(1), dispatch.next(1)] == [Turn("a"), Turn("b")]
    dispatch.add(["a", "b"])
    dispatch.lose(1)
    assert [dispatch.next(2), dispatch.next(3)] == [Turn("a"), Turn("b")]
    assert dispatch.home("a") == 2


def test_a_client_that_was_withdrawn_waits_no_more() -> None:
    dispatch = Dispatch(movable=True)
    dispatch.add(["a", "b"])
    dispatch.next(1)
    dispatch.add(["a"])
    dispatch.withdraw(["a", "b"])
    assert [dispatch.next(1), dispatch.next(2)] == [None, None]


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), max_size=6), st.lists(st.integers(0, 2), min_size=1), st.booleans())
def test_every_client_has_one_turn_in_each_exchange_whatever_the_hosts_do(
    exchanges: list[set[str]], order: list[int], movable: bool
) -> None:
    dispatch = Dispatch(movable=movable)
    homes: dict[str, int] = {}
    for clients in exchanges:
        dispatch.add(sorted(clients))
        had: list[str] = []
        for host in [*order, *([0, 1, 2] * len(clients))]:
            if (turn := dispatch.next(host)) is not None:
                had.append(turn.client)
                moved = homes.get(turn.client, host) != host
                assert turn.held_by == (homes[turn.client] if moved else None)
                assert movable or not moved
                homes[turn.client] = host
        assert sorted(had) == sorted(clients)
