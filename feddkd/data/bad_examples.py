"""Counts the examples of one data set that cannot be used, and stops when there are too many."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from feddkd.errors import BadExamplesError

logger = logging.getLogger(__name__)

MOST_NAMED = 10
"""Bad examples that the log names; further ones are counted."""


class BadExamples:
    """The examples that are skipped from now on, by their position.

    At least one is accepted where any share is: of a few hundred files, one is often damaged.

    Attributes:
        found: why each of them cannot be used.
    """

    def __init__(self, where: str, total: int, max_share: float, before: int = 0) -> None:
        """Accept `max_share` (`data.max_bad_share`) of `total` examples; `before` of them are bad already.

        Args:
            where: names the data set, for messages.
        """
        self.found: dict[int, str] = {}
        self._where = where
        self._total = total
        self._max_share = max_share
        self._accepted = max(1, math.floor(max_share * total)) if max_share > 0 else 0
        self._before = before

    @property
    def count(self) -> int:
        """How many there are, those of before included."""
        return self._before + len(self.found)

    def add(self, position: int, name: str, problem: str) -> None:
        """Take in that the example at `position`, called `name`, cannot be used; tell it once.

        Raises:
            BadExamplesError: there are more than the accepted share.
        """
        if position in self.found:
            return
        self.found[position] = problem
        if self.count > self._accepted:
            raise BadExamplesError(
                f"{self._where}: cannot use {name} ({problem}): {self.count} of {self._total} examples are bad, "
                f"more than data.max_bad_share = {self._max_share:g} accepts"
            )
        if self.count <= MOST_NAMED:
            more = "; further ones are only counted" if self.count == MOST_NAMED else ""
            logger.warning("%s: %s is skipped (%s): %d of %d%s", self._where, name, problem, self.count, self._total, more)


def name_of(dataset: Any, position: int) -> str:
    """Name an example by its file, where the data set says which that is, else by its number."""
    if isinstance(dataset, Subset):
        return name_of(dataset.dataset, int(dataset.indices[position]))
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            if position < len(part):  # type: ignore[arg-type]
                return name_of(part, position)
            position -= len(part)  # type: ignore[arg-type]
    for files in (getattr(dataset, "paths", None), getattr(dataset, "samples", None)):
        if isinstance(files, list) and position < len(files):
            file = files[position]
            return str(file[0] if isinstance(file, tuple) else file)
    return f"example {position}"
