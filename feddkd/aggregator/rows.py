"""Views of the rows that a rule reduces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from feddkd.aggregator.rule import Rows


class RowRange:
    """The elements [start, stop) of rows."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self._rows, self._start, self._stop = rows, start, stop

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        return ((elements[self._start : self._stop], weight) for elements, weight in self._rows)


class Weighed:
    """Rows with other weights."""

    def __init__(self, rows: Rows, weights: Sequence[float]) -> None:
        self._rows, self._weights = rows, weights

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        return ((elements, weight) for (elements, _), weight in zip(self._rows, self._weights, strict=True))
