"""Tensors in tuples, lists, dicts and dataclasses."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddkd.structures import leaves, map_leaves, rows_of, stacked, to_device


@dataclass(frozen=True)
class Boxes:
    corners: Any
    classes: Any


class Pair(NamedTuple):
    first: Any
    second: Any


tensors = st.integers(0, 9).map(lambda value: torch.full((3, 2), value))
structures = st.recursive(
    tensors,
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
        st.builds(Boxes, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)


def values(structure: Any) -> list[Any]:
    return [leaf.tolist() for leaf in leaves(structure)]


@given(structures)
def test_a_map_keeps_the_form_and_the_order(structure: Any) -> None:
    same = map_leaves(lambda leaf: leaf, structure)
    assert type(same) is type(structure)
    assert values(same) == values(structure)
    assert values(map_leaves(torch.add, structure, structure)) == values(map_leaves(lambda leaf: 2 * leaf, structure))


@given(structures)
def test_examples_that_were_put_together_are_selected_again(structure: Any) -> None:
    batch = stacked([structure, map_leaves(lambda leaf: leaf + 1, structure)])
    assert all(len(leaf) == 2 for leaf in leaves(batch))
    assert values(map_leaves(lambda leaf: leaf[0], rows_of(batch, torch.tensor([1])))) == values(
        map_leaves(lambda leaf: leaf + 1, structure)
    )
    assert values(to_device(batch, torch.device("cpu"))) == values(batch)


class Output(OrderedDict[str, Any]):
    """A dict with attributes, as libraries of transformers return."""


@dataclass
class Loss:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def test_none_stays_and_a_class_of_dicts_is_kept() -> None:
    found = to_device(Output(first=Loss(torch.zeros(2)), second=None), torch.device("cpu"))
    assert isinstance(found, Output)
    assert found["first"].hidden is None
    assert found["second"] is None
    assert len(list(leaves(found))) == 1


@pytest.mark.parametrize("other", [{"a": 1, "c": 2}, [1, 2], Boxes(1, 2), 1])
def test_structures_of_two_forms_are_refused(other: Any) -> None:
    with pytest.raises(ValueError, match="differ in form"):
        map_leaves(lambda *leaves: leaves, {"a": 1, "b": 2}, other)


def test_what_else_is_a_leaf_can_be_said() -> None:
    found = map_leaves(sum, {"ids": [1, 2, 3]}, is_leaf=lambda value: isinstance(value, list))
    assert found == {"ids": 6}
