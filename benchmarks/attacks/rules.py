"""The rules that are measured, as overrides of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attacks.cells import Cell

MEAN, DEFAULTS = "mean", "defaults"


@dataclass(frozen=True, slots=True)
class Measured:
    """A rule in the tables.

    Attributes:
        title: what a table calls it.
        settings: overrides that hold for every cell; `{attackers}` is how many there are, at least 1.
    """

    title: str
    settings: tuple[str, ...] = ()

    def overrides(self, cell: Cell) -> list[str]:
        """Return the overrides of one cell: a rule that is told the number of attackers is told the true one."""
        return [setting.format(attackers=max(1, cell.attackers)) for setting in self.settings]


RULES = {
    MEAN: Measured("mean, no protection"),
    DEFAULTS: Measured("defaults"),
}
