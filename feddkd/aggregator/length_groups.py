"""Divides the elements of a contribution into groups that have a length of their own."""

from __future__ import annotations

from collections.abc import Iterator

from feddkd.aggregator.compared import ComparedElements
from feddkd.tensors import Segment


class LengthGroups:
    """Numbers the groups: the trainable tensors, each vector beside the model, each other tensor.

    Attributes:
        number: of groups. The trainable tensors are the first.
        vectors: the groups that may be scaled; the others can only be left out.
        squared_norm: the group that is the squared norm of the update, as the client says; None if there is none.
        variances: where the groups begin in bytes that are running variances of batch normalisation, with their names.
    """

    def __init__(self, compared: ComparedElements) -> None:
        names = {companion.vector for companion in compared.companions if companion.vector}
        by_name = {name: number for number, name in enumerate(sorted(names), start=1)}
        ranges = [(start, stop, 0) for start, stop in compared.ranges]
        self.vectors = range(1 + len(names))
        self.number = 1 + len(names)
        self.squared_norm: int | None = None
        self.variances: dict[int, tuple[int, str]] = {}
        for start, stop, vector, name in compared.companions:
            if not vector:
                if name == "update_norm_squared/value":
                    self.squared_norm = self.number
                if name.rpartition(".")[2] == "running_var":
                    self.variances[self.number] = (start, name)
                ranges.append((start, stop, self.number))
                self.number += 1
            else:
                ranges.append((start, stop, by_name[vector]))
        self._ranges = sorted(ranges)

    def is_vector(self, group: int) -> bool:
        """Tell whether a group is as long as its norm says, so that it can be scaled."""
        return group in self.vectors

    def spans(self, block: Segment) -> Iterator[tuple[int, int, int]]:
        """RowRange a block into the elements [start, stop) of groups, in order."""
        size = block.dtype.itemsize
        for start, stop, group in self._ranges:
            first, last = max(start, block.start), min(stop, block.stop)
            if first < last:
                yield (first - block.start) // size, (last - block.start) // size, group
