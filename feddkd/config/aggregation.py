"""Defines the table `[aggregation]`: how contributions are reduced, and limits on what a client may contribute.

The settings of a rule are in its own file in `feddkd/aggregator`; `name` chooses their class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from feddkd.config.communication import STAND_INS
from feddkd.config.named import ChosenByName, NamedTable
from feddkd.config.table import COUNT_MAX, ImportPath, Table
from feddkd.errors import ConfigError
from feddkd.registry import RULES


def _off_or_factor(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("must be 1 or more, or 0 for no limit")
    return value


OffOrFactor = Annotated[float, Field(ge=0), AfterValidator(_off_or_factor)]
"""A limit in multiples of a median: one below 1 would cut what is usual. 0 for no limit."""


class RuleTable(NamedTable):
    """The settings of one rule.

    Attributes:
        is_mean: what it computes is a mean of the contributions, but for those that stand out.
        by_element: it reduces every element by itself, so it needs contributions that have them all.
    """

    is_mean: ClassVar[bool] = False
    by_element: ClassVar[bool] = False

    @property
    def fewest(self) -> int:
        """Fewest contributions that it can reduce."""
        return 1

    @property
    def single_limit(self) -> float:
        """Length of one contribution in median lengths above which a client is an outlier at once; 0 for none."""
        return 0.0


class CustomRuleConfig(RuleTable):
    """A rule of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides `name`, as the TOML file has them."""
        return dict(self.model_extra or {})


def _rule_table(value: Any) -> Any:
    """`rule = "median"` is short for `rule = { name = "median" }`."""
    return {"name": value} if isinstance(value, str) else value


RuleConfig = Annotated[NamedTable, ChosenByName(RULES, CustomRuleConfig, default="mean"), BeforeValidator(_rule_table)]
"""How contributions are reduced: a name, or a table with its settings."""


class AggregationConfig(Table):
    """How contributions are reduced, and limits on what a client may contribute."""

    rule: RuleConfig = Field(
        {"name": "mean"},
        validate_default=True,
        description='reduces the contributions to every exchange: "median", or { name = "trimmed_mean", trim = 0.2 }',
    )
    rules: dict[str, RuleConfig] = Field(
        {},
        max_length=64,
        description='rules of single exchanges, by exchange name: { dkd_step = "median" }',
    )
    weight_cap: OffOrFactor = Field(
        30.0,
        description="largest weight of a client in multiples of the median of those that reply, "
        "if these are 3 or more; a larger one is reduced to it. 0 for no cap",
    )
    outlier_ratio: OffOrFactor = Field(
        7.0,
        description="a client is an outlier where its gradients go on being longer than the median one, or further "
        "from the result, by this factor, or its updates by 0.6 of it: 5 times as much in all, in one exchange or in "
        "several of the same name. 1 or more, or 0 for never",
    )
    outlier_exchanges: int = Field(3, ge=1, le=COUNT_MAX, description="exchanges in a row after which a client that is an outlier is named")
    max_norm: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        max_length=64,
        description="largest Euclidean norm of a contribution, by exchange name; a contribution above it is refused. "
        "With a codec the norm is that of the decoded tensor, which with eden1 is a fourth longer than the original",
    )

    def rule_of(self, exchange: str) -> RuleTable:
        """Return the settings of the rule that reduces the contributions to an exchange.

        Steps that stand in for `dkd_step` (`dkd.teacher`) have its rule unless they have one.
        """
        found = self.rules.get(exchange) or self.rules.get(STAND_INS.get(exchange, exchange)) or self.rule
        assert isinstance(found, RuleTable)
        return found

    def keys_of_rules(self) -> Iterator[tuple[str, RuleTable]]:
        """List all rules that are chosen, each with its key."""
        chosen = {"aggregation.rule": self.rule} | {f"aggregation.rules.{name}": rule for name, rule in self.rules.items()}
        for key, rule in chosen.items():
            assert isinstance(rule, RuleTable)
            yield key, rule

    def check_exchanges(self, known: Iterable[str]) -> None:
        """Check that every key of `max_norm` and of `rules` is an exchange of the algorithm.

        Raises:
            ConfigError: naming the first key that is not.
        """
        names = sorted(known)
        for table, keys in (("max_norm", self.max_norm), ("rules", self.rules)):
            for name in keys:
                if name not in names:
                    key = f"aggregation.{table}.{name}"
                    raise ConfigError(f"{key}: this algorithm has no such exchange; it has {', '.join(names)}")

    def check_number(self, clients: int, key: str) -> None:
        """Check that a rule can reduce the contributions of so many clients.

        Args:
            clients: the most that an exchange asks.
            key: what says so, for the message.

        Raises:
            ConfigError: naming the first rule that needs more.
        """
        for where, rule in self.keys_of_rules():
            if clients < rule.fewest:
                raise ConfigError(
                    f"{where}: {rule.name} with these settings needs {rule.fewest} clients or more, and {key} gives {clients}"
                )
