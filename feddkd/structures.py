"""Work on tensors that lie in tuples, lists, dicts and dataclasses, as the batches of some tasks do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Structure = Any
"""A tensor; or tuples, lists, dicts and dataclasses that hold structures. None stands for nothing, and stays."""


def map_leaves(
    function: Callable[..., Any], first: Structure, *others: Structure, is_leaf: Callable[[Any], bool] | None = None
) -> Structure:
    """Build a structure of the same form from what `function` returns for each leaf.

    Args:
        function: called with the leaf of `first` and the leaves at the same place of `others`. A leaf is
            whatever is no tuple, list, dict or dataclass.
        first: it says the form.
        others: structures of the same form.
        is_leaf: what else is a leaf, as a list of numbers is in raw data.

    Raises:
        ValueError: the forms differ.
    """
    if first is None and all(other is None for other in others):
        return None
    entries = None if is_leaf is not None and is_leaf(first) else _entries(first)
    if entries is None:
        return function(first, *others)
    parts = [_entries(other) for other in others]
    if any(part is None or part.keys() != entries.keys() for part in parts):
        raise ValueError("the structures differ in form")
    found = {}
    for key, entry in entries.items():
        found[key] = map_leaves(function, entry, *(part[key] for part in parts if part is not None), is_leaf=is_leaf)
    return _rebuilt(first, found)


def leaves(structure: Structure) -> Iterator[Any]:
    """Yield the leaves of a structure, in order, but for None."""
    entries = _entries(structure)
    if entries is None:
        if structure is not None:
            yield structure
        return
    for entry in entries.values():
        yield from leaves(entry)


def to_device(batch: Structure, device: torch.device) -> Structure:
    """Copy the tensors of a batch to a device; what is there stays."""
    return batch.to(device) if isinstance(batch, Tensor) else map_leaves(lambda leaf: leaf.to(device), batch)


def stacked(examples: Sequence[Structure]) -> Structure:
    """Put examples of one form together; each tensor gets a first dimension, the number of examples."""
    return map_leaves(lambda *tensors: torch.stack(tensors), *examples)


def rows_of(batch: Structure, chosen: Tensor) -> Structure:
    """Select examples of a batch; `chosen` is int64 [m] or bool [B], on the device of its tensors."""
    return map_leaves(lambda leaf: leaf[chosen], batch)


def _entries(structure: Structure) -> dict[Any, Any] | None:
    """Name what a container holds; None for a leaf."""
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        return {field.name: getattr(structure, field.name) for field in dataclasses.fields(structure)}
    if isinstance(structure, Mapping):
        return dict(structure)
    if isinstance(structure, tuple | list):
        return dict(enumerate(structure))
    return None


def _rebuilt(like: Structure, entries: dict[Any, Any]) -> Structure:
    kind: Any = type(like)
    if dataclasses.is_dataclass(like):
        return dataclasses.replace(like, **entries)  # type: ignore[type-var]  # an instance, as `_entries` found
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return kind(*entries.values())
    return kind(entries) if isinstance(like, Mapping) else kind(entries.values())
