"""The default rule: the weighted mean, with the contributions of clients that stand out brought to the usual length.

Clipping to the median norm follows Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?
2019, arXiv 1911.07963. Which contributions it is applied to is our own: honest ones keep their bits, because
nothing is clipped that honest clients were seen to send (docs/how-to/robust.md has the measurements).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from feddkd.aggregator.compared import ComparedElements, square_sum
from feddkd.aggregator.history import History, LengthLimits
from feddkd.aggregator.length_groups import LengthGroups
from feddkd.aggregator.lengths import allowances, over_median
from feddkd.aggregator.rows import RowRange, Weighed
from feddkd.aggregator.rule import Reduction, Rows, RuleContext
from feddkd.aggregator.weighted_mean import MeanSum, write_exact_mean
from feddkd.config.aggregation import OffOrFactor, RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Segment, Tensors


class MeanTable(RuleTable):
    """The mean, weighted by examples; contributions of outliers are scaled to the median length."""

    is_mean: ClassVar[bool] = True
    name: Literal["mean"] = "mean"
    longest: OffOrFactor = Field(
        32.0,
        description="a single gradient that is longer than the median one by this factor is scaled to the median length, "
        "an update by 0.6 of it, as are all contributions of an outlier (`outlier_ratio`). 1 or more, or 0 for no such limit",
    )

    @property
    def single_limit(self) -> float:
        return self.longest


MOST_BESIDE = 1000.0
"""A buffer, a counter or a number that is longer than the median one by this factor is left out. It is generous, because
honest ones differ: updates of running variances by factors of up to 500 in runs of a network with batch normalisation,
squared norms by 150 where sizes differ."""


_ROUNDING = 1e-3

_MOST_OF_NORM = 10.0
"""A codec makes an update shorter or longer than the one whose norm its client computed, but not of one client alone."""


@RULES.register("mean")
@dataclass(frozen=True, slots=True)
class GuardedMean:
    """sum_k f_k n_k x_k / sum_k n_k, with f_k = 1 unless a client stands out: then f_k = min(1, median length / ||x_k||).

    The weight n_k of such a client is at most the median weight. A contribution's length is the norm of its
    trainable tensors. A vector beside the model, such as a control variate, has a length of its own, and f_k
    of its own. Where a client has more examples than the median client, its update may be longer, by the root of
    that factor.

    Buffers, counters and numbers beside the model are those of the clients that do not stand out, without
    those that are `MOST_BESIDE` times as long as usual, without running variances that become negative,
    and without squared norms that an update does not have. Lengths are found while blocks are added up.
    Only if something is too long, the blocks are read again.

    Attributes:
        limits: of lengths in this exchange.
        compared: the trainable tensors, and those beside them.
        history: of the exchanges of this name before.
        sizes: the examples of each client; none for gradients, which are means over examples, and where all weigh alike.
        base: what the clients received: a variance that an update makes negative was not computed.
    """

    table: ClassVar[type[RuleTable]] = MeanTable
    keeps_previous: ClassVar[bool] = False
    limits: LengthLimits
    compared: ComparedElements
    history: History = field(default_factory=History)
    sizes: Mapping[str, float] = field(default_factory=dict)
    base: Tensors | None = field(default=None, compare=False)
    passes: int = 1

    @classmethod
    def of(cls, settings: MeanTable, context: RuleContext) -> GuardedMean:
        limits = LengthLimits(context.outlier_ratio, settings.longest).of(context.contribution)
        base = context.base if limits != LengthLimits() else None
        return cls(limits, context.compared, context.history, context.sizes, base)

    def start(self, clients: Sequence[str]) -> Reduction:
        return _GuardedReduction(self, clients)

    def stands_out(self, client: str, ratio: float) -> bool:
        """Tell whether a client's contribution is to be scaled."""
        return self.history.is_outlier(client, ratio, self.limits)


class _GuardedReduction:
    """Adds blocks up, and the squares of their elements."""

    def __init__(self, rule: GuardedMean, clients: Sequence[str]) -> None:
        self._rule = rule
        self._clients = clients
        self._groups = LengthGroups(rule.compared)
        self._squares = [[0.0] * len(clients) for _ in range(self._groups.number)]
        self._factors: list[list[float]] | None = None
        self._impossible: set[tuple[int, int]] = set()
        self._outliers: list[bool] = []
        self._weights: Sequence[float] | None = None
        self._ratios: list[float] = []
        self._sum = MeanSum()

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError("a mean reads its contributions once")

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        if self._factors is not None:
            self._reduce_again(block, rows, out)
        elif block.dtype.is_floating_point:
            self._sum.write(rows, out, look=self._look(block))
        else:
            look = self._look(block)
            for number, (elements, _) in enumerate(rows):
                look(number, elements)
            write_exact_mean(block, rows, out)

    def _look(self, block: Segment) -> Callable[[int, Tensor], None]:
        """Return what adds up the squares of one client's elements."""
        spans = list(self._groups.spans(block))

        def look(number: int, elements: Tensor) -> None:
            for start, stop, group in spans:
                self._squares[group][number] += square_sum(elements[start:stop])
                if self._is_negative(group, block.start + start * block.dtype.itemsize, elements[start:stop], block.dtype.itemsize):
                    self._impossible.add((group, number))

        return look

    def _is_negative(self, group: int, begin: int, elements: Tensor, size: int) -> bool:
        """Tell whether a client's update leaves running variances below 0, but for rounding."""
        first, name = self._groups.variances.get(group, (0, ""))
        if self._rule.base is None or name not in self._rule.base:
            return False
        before = self._rule.base[name].flatten()[(begin - first) // size :][: len(elements)]
        return bool((elements + (1 + _ROUNDING) * before < 0).any())

    def _reduce_again(self, block: Segment, rows: Rows, out: Tensor) -> None:
        assert self._factors is not None
        if self._weights is None:
            self._weights = self._lowered([weight for _, weight in rows])
        for start, stop, group in self._groups.spans(block):
            factors, cut = self._factors[group], RowRange(rows, start, stop)
            if self._groups.is_vector(group):
                self._sum.write(Weighed(cut, self._weights), out[start:stop], factors)
                continue
            kept = [weight if factor == 1 else 0.0 for weight, factor in zip(self._weights, factors, strict=True)]
            weighed = Weighed(cut, kept if any(kept) else self._weights)
            if block.dtype.is_floating_point:
                self._sum.write(weighed, out[start:stop])
            else:
                write_exact_mean(block, weighed, out[start:stop])

    def _lowered(self, weights: Sequence[float]) -> Sequence[float]:
        """Lower the weights of outliers to the median: a claim of many examples is not to make up for the scaling."""
        usual = statistics.median([weight for weight in weights if weight > 0] or [0.0])
        return [min(weight, usual) if outlier else weight for weight, outlier in zip(weights, self._outliers, strict=True)]

    def repeats(self) -> bool:
        if self._factors is not None:
            return False
        self._factors = self._found_factors()
        return any(self._outliers) or any(factor != 1 for factors in self._factors for factor in factors)

    def _found_factors(self) -> list[list[float]]:
        """Decide by how much every client's part of every group is multiplied; 0 where it is left out."""
        raw = [over_median([math.sqrt(square) for square in squares]) for squares in self._squares]
        allowed = allowances(self._clients, self._rule.sizes)
        longest = [max(ratios) for ratios in zip(*(raw[group] for group in self._groups.vectors), strict=True)]
        self._impossible |= self._false_norms()
        self._ratios = [ratio / more for ratio, more in zip(longest, allowed, strict=True)]
        self._outliers = [self._rule.stands_out(client, ratio) for client, ratio in zip(self._clients, self._ratios, strict=True)]
        factors = [[self._factor(group, *pair) for pair in zip(ratios, self._outliers, strict=True)] for group, ratios in enumerate(raw)]
        for group, number in self._impossible:
            factors[group][number] = 0.0
        return factors

    def _false_norms(self) -> set[tuple[int, int]]:
        """Find the clients that say of their update that it is longer than it is, more so than others do."""
        group = self._groups.squared_norm
        if group is None or self._rule.limits == LengthLimits():
            return set()
        said = [math.sqrt(square) for square in self._squares[group]]
        found = [number / own if own > 0 else 0.0 for number, own in zip(said, self._squares[0], strict=True)]
        return {(group, number) for number, ratio in enumerate(over_median(found)) if ratio > _MOST_OF_NORM}

    def _factor(self, group: int, ratio: float, outlier: bool) -> float:
        if self._groups.is_vector(group):
            return min(1.0, 1 / ratio) if outlier and ratio > 0 else 1.0
        has_limit = self._rule.limits != LengthLimits()
        return 0.0 if outlier or (has_limit and ratio > MOST_BESIDE) else 1.0

    def ratios(self) -> Sequence[float]:
        return self._ratios
