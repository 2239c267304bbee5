"""Defines what a reduction rule is: it reads contributions block by block, always in client order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.history import ContributionKind, History
from feddkd.errors import FedDKDError
from feddkd.tensors import Segment, Tensors


class RuleError(FedDKDError):
    """The contributions that came cannot be reduced by this rule: the round is tried again."""


class Rows(Protocol):
    """One block of every contribution with the client's weight, in client order.

    A row is fetched when it is asked for, and may be reused once the next is, so that memory does not
    grow with the number of clients. They can be read several times; each time they are fetched again.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, float]]: ...


class Reduction(Protocol):
    """The reduction of the contributions to one exchange."""

    def survey(self, block: Segment, rows: Rows) -> None:
        """Look at one block of every contribution; called for each block, in order, in every pass but the last.

        Raises RuleError.
        """

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        """Write the reduction of one block, in the block's dtype, into `out`; called for each block in the last pass.

        Raises RuleError.
        """

    def repeats(self) -> bool:
        """Say after the last block whether the last pass has to run again, with what it has found."""

    def ratios(self) -> Sequence[float]:
        """Return how far each contribution stands out, in client order, once all is reduced.

        That is its length, or its distance from the result, divided by the median of all, and by the
        root of the client's size in median sizes if that is above 1; empty where the rule does not know it.
        """


class Rule(Protocol):
    """A way to reduce contributions: a value that an `Exchange` holds and compares by.

    Attributes:
        passes: how often the contributions are read. One pass reduces while uploads are under way; further passes
            come before it and read what was kept of them.
    """

    @property
    def passes(self) -> int: ...

    def start(self, clients: Sequence[str]) -> Reduction:
        """Begin the reduction of one exchange.

        Args:
            clients: whose contributions there are, in client order.
        """


@dataclass(frozen=True, slots=True)
class RuleContext:
    """What a rule is built for: one exchange.

    Attributes:
        compared: the elements that are compared: the trainable ones.
        previous: what the exchange of this name before was reduced to; None for the first.
        history: how the clients' contributions stood out in the exchanges of this name before.
        sizes: the examples of each client, at most `aggregation.weight_cap` times the median.
        outlier_ratio: what goes on being above it makes a client an outlier; 0 for never.
        contribution: what clients contribute: the limits of updates are lower.
        base: what the clients received.
    """

    compared: ComparedElements
    previous: Tensors | None = None
    history: History = field(default_factory=History)
    sizes: Mapping[str, float] = field(default_factory=dict)
    outlier_ratio: float = 0.0
    contribution: ContributionKind = "update"
    base: Tensors | None = None


class RegisteredRule(Protocol):
    """A class of rules that `RULES` knows, or that a configuration names by its import path.

    Attributes:
        table: the class of its settings; not used for an import path, whose settings are a `CustomRuleConfig`.
        keeps_previous: it reads `RuleContext.previous`.
    """

    table: ClassVar[type[Any]]
    keeps_previous: ClassVar[bool]

    @classmethod
    def of(cls, settings: Any, context: RuleContext) -> Rule:
        """Build the rule of one exchange."""
