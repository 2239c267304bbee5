"""Compares the lengths of contributions, with an allowance for clients that have more examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from feddkd.aggregator.compared import ComparedElements, square_sum
from feddkd.aggregator.history import FEWEST
from feddkd.tensors import Segment


def over_median(found: Sequence[float]) -> list[float]:
    """Divide numbers by the median of those that are not 0, of two by the smaller; all 1 if fewer than 3 numbers are there."""
    positive = [number for number in found if number > 0]
    if len(found) < FEWEST or len(positive) < 2:
        return [1.0] * len(found)
    usual = statistics.median(positive) if len(positive) >= FEWEST else min(positive)
    return [number / usual for number in found]


def allowances(clients: Sequence[str], sizes: Mapping[str, float]) -> list[float]:
    """Return by what factor the contribution of each client may be longer: the root of its size in median sizes, at least 1."""
    return [math.sqrt(max(1.0, more)) for more in over_median([sizes.get(client, 1.0) for client in clients])]


def allowed_ratios(lengths: Sequence[float], allowed: Sequence[float]) -> list[float]:
    """Divide lengths, or distances, by their median and by what is allowed."""
    return [ratio / more for ratio, more in zip(over_median(lengths), allowed, strict=True)]


def capped_sizes(sizes: Mapping[str, float], cap: float) -> dict[str, float]:
    """Reduce numbers of examples to `cap` times their median, if 3 or more are not 0; 0 for no cap."""
    positive = [size for size in sizes.values() if size > 0]
    most = cap * statistics.median(positive) if cap > 0 and len(positive) >= FEWEST else math.inf
    return {client: min(size, most) for client, size in sizes.items()}


def compared_square_sum(compared: ComparedElements, block: Segment, elements: Tensor) -> float:
    """Sum the squares of those elements of a block that are compared, in float64."""
    return math.fsum(square_sum(elements[start:stop]) for start, stop, counts in compared.parts(block) if counts)
