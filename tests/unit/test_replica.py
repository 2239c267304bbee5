"""Models that the server and its clients hold alike."""

from __future__ import annotations

import hashlib

import pytest
import torch
from coding import MIXED
from harness import filled
from hypothesis import given
from hypothesis import strategies as st

from feddkd.compression.replica import Replica, version_of
from feddkd.dkd.steps import TailMean
from feddkd.errors import SchemaError
from feddkd.tensors import Schema, Tensors, TensorSpec

MODEL = filled(MIXED, 0)
STEPS = [filled(MIXED, seed) for seed in range(1, 8)]


def sub(names: set[str]) -> Schema:
    return Schema(spec for spec in MIXED.specs if spec.name in names)


def advanced(model: Tensors, step: Tensors) -> Tensors:
    """By definition: what is lossy is added, the rest replaced."""
    after = {name: model[name] + step[name] if MIXED.by_name[name].lossy else step[name] for name in step}
    return Tensors.copy_of(model.schema, {**model, **after})


def test_a_version_names_the_content() -> None:
    assert version_of(MODEL) == hashlib.sha256(bytes(MODEL.block.tolist())).digest()[:16]
    other = MODEL.replace({})
    assert version_of(other) == version_of(MODEL)
    other["mask"][1] ^= True
    assert version_of(other) != version_of(MODEL)
    assert len(version_of(Tensors(Schema([])))) == 16


@given(st.sets(st.sampled_from(sorted(MIXED.by_name))))
def test_a_step_moves_the_tensors_that_it_has_and_no_other(names: set[str]) -> None:
    replica, step = Replica(MODEL), STEPS[0].select(sub(names))
    replica.advance(step)
    assert replica.model.block.equal(advanced(MODEL, step).block)
    assert replica.version == version_of(replica.model)
    for name, tensor in replica.model.items():
        if name not in names:
            assert tensor.equal(MODEL[name])
        elif not MIXED.by_name[name].lossy:
            assert tensor.equal(STEPS[0][name])


def test_a_step_leaves_the_model_before_it_alone() -> None:
    """A computation may still be using it."""
    before = MODEL.sha256()
    replica = Replica(MODEL)
    held = replica.model
    replica.advance(STEPS[0])
    assert held is MODEL
    assert MODEL.sha256() == before


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("stranger", torch.float32, (3,)),
        TensorSpec("scale", torch.float32, (4,)),
        TensorSpec("scale", torch.float64, (3,)),
        TensorSpec("count", torch.int32, (), trainable=False),
    ],
    ids=str,
)
def test_a_step_of_another_model_is_refused_and_changes_nothing(spec: TensorSpec) -> None:
    replica = Replica(MODEL, in_mean=True)
    with pytest.raises(SchemaError, match=spec.name):
        replica.advance(Tensors(Schema([spec])))
    assert replica.version == version_of(MODEL)
    assert replica.mean.block.equal(MODEL.block)


@given(st.integers(0, 7), st.booleans())
def test_the_mean_has_the_bits_of_the_algorithms(first: int, whole: bool) -> None:
    """`first` is the step from which on students count; `whole`: that one arrives as a whole model."""
    tail, replica = TailMean(first), Replica(MODEL)
    student = MODEL
    for number, step in enumerate(STEPS):
        student = advanced(student, step)
        tail.add(number, student)
        if whole and number <= first:
            replica = Replica(student, in_mean=tail.includes(number))
        else:
            replica.advance(step, in_mean=tail.includes(number))
    expected = tail.of(student)
    assert replica.mean.block.equal(expected.block)
    replica.take_mean()
    assert replica.model.block.equal(expected.block)
    assert replica.version == version_of(expected)


def test_without_models_in_it_the_mean_is_the_model() -> None:
    replica = Replica(MODEL)
    assert replica.mean is replica.model
    replica.take_mean()
    assert replica.version == version_of(MODEL)


@pytest.mark.parametrize("how", ["a model that does not count", "the mean itself"])
def test_the_mean_begins_again(how: str) -> None:
    replica = Replica(MODEL, in_mean=True)
    replica.advance(STEPS[0], in_mean=True)
    if how == "the mean itself":
        replica.take_mean()
    else:
        replica.advance(STEPS[1])
    assert replica.mean is replica.model
    replica.advance(STEPS[2], in_mean=True)
    assert replica.mean.block.equal(replica.model.block)


def test_buffers_are_those_of_the_last_model() -> None:
    replica = Replica(MODEL, in_mean=True)
    replica.advance(STEPS[0], in_mean=True)
    replica.take_mean()
    assert replica.model["mean"].equal(STEPS[0]["mean"])
    assert replica.model["count"].equal(STEPS[0]["count"])
    torch.testing.assert_close(replica.model["weight"], MODEL["weight"] + STEPS[0]["weight"] / 2)
