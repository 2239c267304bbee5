"""What a client carries from round to round, through retries, restarts and other runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import SCHEMA, filled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feddkd.algorithms.memory import RoundMemory
from feddkd.client.state_dir import StateDir
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.tensors import Tensors


def at(number: int, attempt: int = 0, run_id: str = "run") -> ExchangeId:
    return ExchangeId(run_id, number, attempt, "local_train", 0)


def value(seed: int) -> Tensors:
    return filled(SCHEMA, seed)


def recalled(memory: RoundMemory, exchange: ExchangeId) -> str | None:
    found = memory.recall(exchange, SCHEMA)
    return None if found is None else found.sha256()


@pytest.fixture
def memory(tmp_path: Path) -> RoundMemory:
    return RoundMemory(StateDir(tmp_path, "a"), "control")


def test_there_is_nothing_before_the_first_round(memory: RoundMemory) -> None:
    assert recalled(memory, at(1)) is None
    memory.keep(at(1), value(1))
    assert recalled(memory, at(1)) is None


def test_the_latest_round_before_counts_also_after_a_break(memory: RoundMemory) -> None:
    for number in (1, 2, 5):
        memory.keep(at(number), value(number))
    assert recalled(memory, at(9)) == value(5).sha256()
    assert recalled(memory, at(6)) == value(5).sha256()


def test_a_round_that_is_tried_again_begins_from_what_was_known_before_its_first_attempt(memory: RoundMemory) -> None:
    memory.keep(at(1), value(1))
    for attempt in range(3):
        assert recalled(memory, at(2, attempt)) == value(1).sha256()
        memory.keep(at(2, attempt), value(20 + attempt))
    assert recalled(memory, at(3)) == value(22).sha256()


def test_a_first_round_that_is_tried_again_begins_from_nothing(memory: RoundMemory) -> None:
    memory.keep(at(1), value(1))
    memory.keep(at(1, attempt=1), value(2))
    assert recalled(memory, at(1, attempt=2)) is None
    assert recalled(memory, at(2)) == value(2).sha256()


def test_what_another_run_left_is_ignored_and_overwritten(memory: RoundMemory, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        memory.keep(at(number, run_id="old/one"), value(number))
    assert recalled(memory, at(7)) is None
    memory.keep(at(1), value(10))
    memory.keep(at(2), value(20))
    memory.keep(at(3), value(30))
    assert recalled(memory, at(2)) == value(10).sha256()
    assert recalled(memory, at(3)) == value(20).sha256()
    assert recalled(memory, at(7, run_id="old/one")) is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_it_survives_a_restart_of_the_process(memory: RoundMemory, tmp_path: Path) -> None:
    memory.keep(at(1), value(1))
    assert recalled(RoundMemory(StateDir(tmp_path, "a"), "control"), at(2)) == value(1).sha256()


def test_names_do_not_mix(memory: RoundMemory, tmp_path: Path) -> None:
    memory.keep(at(1), value(1))
    assert recalled(RoundMemory(StateDir(tmp_path, "a"), "other"), at(2)) is None


def test_where_the_last_round_is_damaged_the_one_before_is_recalled_and_rounds_go_on(memory: RoundMemory, tmp_path: Path) -> None:
    for number in (1, 2):
        memory.keep(at(number), value(number))
    (tmp_path / "control-2.safetensors").write_bytes(b"damaged")
    memory = RoundMemory(StateDir(tmp_path, "a"), "control")
    assert recalled(memory, at(3)) == value(1).sha256()
    memory.keep(at(3), value(3))
    assert recalled(memory, at(4)) == value(3).sha256()


@pytest.mark.parametrize("damaged", [b"run/1/2/2", b""], ids=["the round", "the last element"])
def test_damage_that_comes_while_the_client_runs_costs_one_round_at_most(memory: RoundMemory, tmp_path: Path, damaged: bytes) -> None:
    for number in (1, 2):
        memory.keep(at(number), value(number))
    content = bytearray((tmp_path / "control-2.safetensors").read_bytes())
    content[content.rindex(damaged) + len(damaged) - 1] ^= 1
    (tmp_path / "control-2.safetensors").write_bytes(content)
    assert recalled(memory, at(3)) == value(1).sha256()


def test_the_memory_of_another_model_is_refused(memory: RoundMemory) -> None:
    memory.keep(at(1), value(1))
    with pytest.raises(StateError, match="of another model"):
        memory.recall(at(2), SCHEMA.trainable.beside({"x": SCHEMA}))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_server_that_goes_back_finds_what_was_kept_before_that_round(tmp_path: Path, restarts: bool) -> None:
    """Round 4 is finished and round 5 begun when the server finds that it has lost round 4."""
    memory = RoundMemory(StateDir(tmp_path, "a"), "control")
    for number in range(1, 6):
        memory.keep(at(number), value(number))
    if restarts:
        memory = RoundMemory(StateDir(tmp_path, "a"), "control")
    assert recalled(memory, at(4)) == value(3).sha256()
    memory.keep(at(4), value(40))
    assert recalled(memory, at(5)) == value(40).sha256()
    assert recalled(memory, at(4)) == value(3).sha256()


def test_a_later_round_that_the_server_has_lost_is_not_recalled(memory: RoundMemory) -> None:
    """Not even by a client that misses it when it comes again."""
    for number in (1, 2, 3):
        memory.keep(at(number), value(number))
    memory.keep(at(2), value(20))
    assert recalled(memory, at(4)) == value(20).sha256()


@pytest.mark.parametrize(("back_to", "warns"), [(3, False), (2, True), (1, False)])
def test_what_is_not_known_any_more_is_worth_a_warning(
    memory: RoundMemory, back_to: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Before round 1 there was nothing."""
    for number in range(1, 5):
        memory.keep(at(number), value(number))
    assert (recalled(memory, at(back_to)) is None) == (back_to < 3)
    expected = "control of the rounds before round 2 is not known any more: this client begins without, as if it were new"
    assert caplog.messages == ([expected] if warns else [])


def test_a_client_that_comes_later_has_nothing_to_miss(memory: RoundMemory, caplog: pytest.LogCaptureFixture) -> None:
    memory.keep(at(3), value(3))
    assert recalled(memory, at(3, attempt=1)) is None
    assert caplog.messages == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(0, 2)), max_size=12))
def test_any_sequence_of_rounds_attempts_restarts_and_returns(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, int, bool, int]]
) -> None:
    """Against a dictionary that forgets nothing but what the server has lost."""
    folder = tmp_path_factory.mktemp("memory")
    memory, known, number, newest, seed = RoundMemory(StateDir(folder, "a"), "control"), dict[int, Tensors](), 0, 0, 0
    for ahead, retries, restart, back in plan:
        if number == newest and 0 < back <= len(known):
            number = sorted(known)[-back]  # the one that was open, or the one before: finished, and lost
        else:
            number += ahead
        known = {past: kept for past, kept in known.items() if past < number}
        before = max(known, default=None)
        for attempt in range(1 + retries):
            expected = None if before is None else known[before].sha256()
            assert recalled(memory, at(number, attempt)) == expected
            seed += 1
            memory.keep(at(number, attempt), value(seed))
        known[number], newest = value(seed), max(newest, number)
        if restart:
            memory = RoundMemory(StateDir(folder, "a"), "control")
