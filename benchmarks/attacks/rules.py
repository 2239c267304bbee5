"""The rules that are measured, as overrides of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attacks.cells import Cell

MEAN, DEFAULTS = "mean", "defaults"

EXPECTED = 2
"""Attackers that a rule is told to expect where there are none."""

CAP = "aggregation.weight_cap=2"
"""Of the rules that an operator chooses: no client counts for more than two."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A rule in the tables.

    Attributes:
        title: what a table calls it.
        settings: overrides; `{attackers}` is the number that it is told to expect, `{share}` that
            of ten clients.
    """

    title: str
    settings: tuple[str, ...] = ()

    def overrides(self, cell: Cell) -> list[str]:
        """Return the overrides of one cell: a rule that is told the number of attackers is told the
        true one.
        """
        expected = cell.attackers or EXPECTED
        return [setting.format(attackers=expected, share=expected / 10) for setting in self.settings]


def _named(name: str, *settings: str) -> tuple[str, ...]:
    return (f"aggregation.rule.name={name}", *settings, CAP)


RULES = {
    MEAN: Measured(
        "mean, no protection",
        ("aggregation.rule.longest=0", "aggregation.outlier_ratio=0", "aggregation.weight_cap=0"),
    ),
    DEFAULTS: Measured("defaults"),
    "norm_bounding": Measured("norm bounding", _named("norm_bounding")),
    "trimmed_mean": Measured("trimmed mean", _named("trimmed_mean", "aggregation.rule.trim={share}")),
    "median": Measured("median", _named("median")),
    "multi_krum": Measured("multi-Krum", _named("krum", "aggregation.rule.hostile={attackers}")),
    "geometric_median": Measured("geometric median", _named("geometric_median")),
    "centred_clipping": Measured("centred clipping", _named("centred_clipping")),
}
