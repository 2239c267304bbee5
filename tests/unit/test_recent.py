"""What was used longest ago makes room."""

from hypothesis import given
from hypothesis import strategies as st

from feddkd.client.recent import Recent


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 4))
def test_the_keys_that_were_used_last_are_kept_and_every_other_is_let_go(uses: list[int], capacity: int) -> None:
    gone: list[int] = []
    recent: Recent[int, int] = Recent(capacity, gone.append)
    for key in uses:
        assert recent.use(key, lambda key=key: key) == key  # type: ignore[misc]
        assert len(recent) <= capacity
    last = list(dict.fromkeys(reversed(uses)))
    assert {key for key in uses if recent.find(key) is not None} == set(last[:capacity])
    assert set(gone) >= set(last[capacity:])


def test_a_value_is_made_once_while_it_is_kept() -> None:
    made: list[str] = []
    recent: Recent[str, int] = Recent(None)
    for _ in range(3):
        recent.use("a", lambda: made.append("a") or len(made))  # type: ignore[func-returns-value]
    assert made == ["a"]


def test_what_was_dropped_is_made_again_and_was_not_let_go() -> None:
    gone: list[int] = []
    recent: Recent[str, int] = Recent(1, gone.append)
    recent.use("a", lambda: 1)
    assert recent.drop("a") == 1
    assert recent.drop("a") is None
    assert recent.use("a", lambda: 2) == 2
    assert gone == []
