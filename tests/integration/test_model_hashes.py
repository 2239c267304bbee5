"""The same configuration and seed give the same model as before, bit by bit."""

from __future__ import annotations

import model_hashes
import pytest
from model_hashes import Hashes, differences, listed

ANYWHERE: Hashes = {"torch": "1", "machine": "a", "model_sha256": {}}


@pytest.fixture(scope="module")
def expected() -> Hashes:
    return listed()


@pytest.fixture
def comparable(expected: Hashes) -> None:
    if (reason := model_hashes.reason_to_skip(expected)) is not None:
        pytest.skip(reason)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("comparable")
def test_one_model_hash_of_each_algorithm_is_as_before(expected: Hashes) -> None:
    names = model_hashes.one_of_each_algorithm()
    found = model_hashes.compute(names)
    known = expected["model_sha256"]
    assert differences({**expected, "model_sha256": {name: known[name] for name in names}}, found) == []


@pytest.mark.slow  # about 40 s on an idle machine
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("comparable")
def test_no_model_hash_has_changed(expected: Hashes) -> None:
    assert differences(expected, model_hashes.compute()) == []


def test_the_list_holds_every_run(expected: Hashes) -> None:
    assert list(expected["model_sha256"]) == [name for name, _, _ in model_hashes.runs()]


def test_the_listed_hashes_are_of_runs_that_ended(expected: Hashes) -> None:
    assert all(len(bytes.fromhex(digest)) == 32 for digest in expected["model_sha256"].values())


def test_both_engines_have_the_same_hashes_on_the_list(expected: Hashes) -> None:
    found = expected["model_sha256"]
    for algorithm, partition in model_hashes.OVER_GRPC:
        name = f"{algorithm}, {partition}"
        assert found[f"{name}, grpc"] == found[f"{name}, in-process"], name


def test_no_two_algorithms_have_the_same_hashes(expected: Hashes) -> None:
    """Or the list would not show that one of them is computed in place of the other."""
    found = expected["model_sha256"]
    hashes = set()
    for algorithm in model_hashes.ALGORITHMS:
        names = [f"{algorithm}, {partition}, in-process" for partition in model_hashes.PARTITIONS]
        hashes.add(tuple(found[name] for name in names))
    assert len(hashes) == len(model_hashes.ALGORITHMS)


def test_a_difference_names_the_run_and_both_hashes() -> None:
    before: Hashes = {**ANYWHERE, "model_sha256": {"x": "aa", "y": "bb", "z": "cc"}}
    after: Hashes = {**ANYWHERE, "model_sha256": {"x": "aa", "y": "dd", "w": "ee"}}
    assert differences(before, before) == []
    assert differences(before, after) == [
        "w: not on the list -> ee",
        "y: bb -> dd",
        "z: cc -> no such run",
    ]


@pytest.mark.parametrize("key", ["torch", "machine"])
def test_hashes_of_another_torch_or_machine_are_not_compared(key: str, expected: Hashes) -> None:
    another: Hashes = {**expected, key: "another"}  # type: ignore[misc]
    assert f"the list was made with {key} another" in str(model_hashes.reason_to_skip(another))
