"""A table as the page, the terminal and files show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

NOT_RECORDED = "not recorded"

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Data:
    """The same table for a program: numbers with all their digits, in basic units, None where unknown.

    Attributes:
        fields: names of the columns, with their units; a share is 0 to 1.
    """

    fields: list[str]
    rows: list[list[Value]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a header.

    Attributes:
        colors: of the group that each row belongs to, as `#rrggbb`; empty where rows have none.
        strong: row and column of the cells that stand out.
        caption: what is said of it below its title.
        data: for CSV; None where the text is all there is.
        name: of its files, without a suffix.
        title: what it is, in a few words.
    """

    header: list[str]
    rows: list[list[str]]
    colors: list[str]
    strong: frozenset[tuple[int, int]] = frozenset()
    caption: str = ""
    data: Data | None = None
    name: str = "table"
    title: str = ""

    @property
    def whole_caption(self) -> str:
        """Title and caption, for a file that stands alone."""
        return ". ".join(filter(None, (self.title, self.caption)))


def best_cells(
    column: int, shown: Sequence[str], numbers: Sequence[float | None], choose: Callable[..., float]
) -> Iterator[tuple[int, int]]:
    """Find the best cells of a column: those that read like the one with the best number.

    There are none where all cells read the same.

    Args:
        shown: the text of each cell up to where its rank is decided, such as a mean.
        numbers: None for a cell that takes no part.
        choose: `min` or `max`.
    """
    known = [number for number in numbers if number is not None]
    if not known or (len(known) == len(shown) and len(set(shown)) == 1):
        return
    best = choose(known)
    cells = list(enumerate(zip(shown, numbers, strict=True)))
    texts = {text for _, (text, number) in cells if number == best}
    for row, (text, number) in cells:
        if number is not None and text in texts:
            yield row, column
