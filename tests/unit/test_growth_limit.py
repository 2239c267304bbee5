"""Which gradients are shortened because they are much longer than all before, and to what length."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from harness import filled
from hypothesis import given
from hypothesis import strategies as st
from threads import with_every_number_of_threads

from feddkd.aggregator.growth_limit import LONGEST, GrowthLimit
from feddkd.aggregator.server_optimizer import ServerOptimizer
from feddkd.tensors import Schema, Tensors, TensorSpec

SCHEMA = Schema([TensorSpec("weight", torch.float32, (3,)), TensorSpec("bias", torch.float64, ())])
LARGE = Schema([TensorSpec("weight", torch.float64, (90_000,))])


def gradient(norm: float) -> Tensors:
    """A gradient of this norm, in two dtypes."""
    return Tensors.copy_of(SCHEMA, {"weight": torch.tensor([0.0, 0.6, 0.0]) * norm, "bias": torch.tensor(0.8 * norm, dtype=torch.float64)})


def lengths(limit: GrowthLimit, norms: Sequence[float]) -> list[float]:
    """What the limit makes of gradients of these norms."""
    return [limit.limited(gradient(norm)).norm() for norm in norms]


def test_a_gradient_is_shortened_to_the_multiple_of_the_longest_before_it() -> None:
    assert lengths(GrowthLimit(3), [1, 0.5, 3, 2, 100, 100]) == pytest.approx([1, 0.5, 3, 2, 9, 27])


def test_a_shortened_gradient_keeps_its_direction() -> None:
    limit = GrowthLimit(2)
    limit.limited(gradient(1))
    short = limit.limited(gradient(10))
    torch.testing.assert_close(short["weight"], torch.tensor([0.0, 1.2, 0.0]))
    torch.testing.assert_close(short["bias"], torch.tensor(1.6, dtype=torch.float64))


def test_the_log_says_what_is_shortened(caplog: pytest.LogCaptureFixture) -> None:
    lengths(GrowthLimit(3), [2, 5, 50])
    assert [record.getMessage() for record in caplog.records] == [
        "gradient norm 50 is 10 times the longest so far: clipped to 15 (dkd.growth_limit = 3)"
    ]


def test_a_gradient_within_the_limit_is_the_very_same() -> None:
    limit = GrowthLimit(3)
    for norm in (1.0, 2.99, 8.9, 0.01, 0.0):
        given_one = gradient(norm)
        assert limit.limited(given_one) is given_one


def test_nothing_is_limited_by_gradients_of_zero() -> None:
    assert lengths(GrowthLimit(3), [0, 0, 5, 100]) == pytest.approx([0, 0, 5, 15])


def test_without_a_factor_there_is_no_limit_and_no_state() -> None:
    limit = GrowthLimit(0)
    assert lengths(limit, [1, 1e6]) == pytest.approx([1, 1e6])
    assert limit.state_dict() == {}


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1, 10))
def test_no_gradient_grows_beyond_the_factor_and_none_gets_longer(norms: list[float], factor: float) -> None:
    found = lengths(GrowthLimit(factor), norms)
    for before, (norm, length) in enumerate(zip(norms, found, strict=True)):
        assert length <= norm * (1 + 1e-5)
        if before:
            assert length <= factor * max(found[:before]) * (1 + 1e-5)


@pytest.mark.parametrize("factor", [-1, 0.5, float("nan")])
def test_a_factor_that_would_shorten_every_gradient_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="growth limit"):
        GrowthLimit(factor)


@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_is_shortened_to_the_same_bits_with_every_number_of_threads(seed: int) -> None:
    def shortened() -> str:
        limit = GrowthLimit(1.5)
        limit.limited(filled(LARGE, seed).scaled(0.01))
        return limit.limited(filled(LARGE, seed + 100)).sha256()

    assert len(set(with_every_number_of_threads(shortened))) == 1


# In the server optimizer


def optimizer(keep_state: bool = True) -> ServerOptimizer:
    return ServerOptimizer("adam", 0.1, keep_state, growth_limit=3)


def walk(by: ServerOptimizer, student: Tensors, norms: Sequence[float]) -> Tensors:
    for norm in norms:
        student = by.step(student, gradient(norm))
    return student


def test_the_optimizer_steps_with_the_shortened_gradient() -> None:
    student = filled(SCHEMA, 0)
    limited = walk(optimizer(), student, [1, 50])
    by_hand, unlimited = (walk(ServerOptimizer("adam", 0.1, keep_state=True), student, norms) for norms in ([1, 3], [1, 50]))
    torch.testing.assert_close(dict(limited), dict(by_hand))
    assert (limited["bias"] - unlimited["bias"]).abs() > 0.01


def test_gradients_that_grow_slowly_are_stepped_with_as_without_a_limit() -> None:
    student, norms = filled(SCHEMA, 0), [1, 2.9, 0.1, 8, 2]
    assert walk(optimizer(), student, norms).sha256() == walk(ServerOptimizer("adam", 0.1, keep_state=True), student, norms).sha256()


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad"])
def test_optimizers_without_two_moments_have_no_limit(name: str) -> None:
    limited, unlimited = (ServerOptimizer(name, 0.1, keep_state=True, growth_limit=factor) for factor in (3.0, 0.0))
    student = filled(SCHEMA, 0)
    assert walk(limited, student, [1, 50]).sha256() == walk(unlimited, student, [1, 50]).sha256()
    assert limited.state_dict().keys() == unlimited.state_dict().keys()


def test_a_replayed_round_is_limited_by_the_same_gradients() -> None:
    by = optimizer()
    middle = walk(by, filled(SCHEMA, 0), [1, 2])
    state = by.state_dict()
    assert state[LONGEST].item() == pytest.approx(2)
    end = walk(by, middle, [60, 10]).sha256()
    assert state[LONGEST].item() == pytest.approx(2)  # what was returned does not change
    for again in (by, optimizer()):
        again.load_state_dict(state)
        again.start_round()
        assert walk(again, middle, [60, 10]).sha256() == end


def test_a_round_that_starts_without_moments_starts_without_the_limit() -> None:
    by, student = optimizer(keep_state=False), filled(SCHEMA, 0)
    first = walk(by, student, [60]).sha256()
    walk(by, student, [0.1])
    by.start_round()
    assert walk(by, student, [60]).sha256() == first
    assert by.state_dict() == {}


def test_a_state_of_a_run_without_a_limit_can_be_gone_on_from() -> None:
    unlimited = ServerOptimizer("adam", 0.1, keep_state=True)
    middle = walk(unlimited, filled(SCHEMA, 0), [1])
    by = optimizer()
    walk(by, middle, [0.01])
    by.load_state_dict(unlimited.state_dict())
    assert walk(by, middle, [50]).sha256() == walk(unlimited, middle, [50]).sha256()
