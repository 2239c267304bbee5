"""Builds the rule that reduces each exchange, and remembers what the next one of its name is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.history import MOST_CLIENTS, ContributionKind, History, LengthLimits
from feddkd.aggregator.lengths import capped_sizes
from feddkd.aggregator.mean import GuardedMean
from feddkd.aggregator.rule import RegisteredRule, Rule, RuleContext
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.algorithms.base import Algorithm
from feddkd.config import Config, CustomRuleConfig
from feddkd.config.aggregation import AggregationConfig, RuleTable
from feddkd.config.communication import PLAIN
from feddkd.config.scheduler import cohort_size
from feddkd.errors import ConfigError
from feddkd.exchange import Exchange, Outcome
from feddkd.imports import load_object
from feddkd.registry import CODECS, RULES, codec_key
from feddkd.tensors import Schema, Segment, Tensors


@dataclass(frozen=True, slots=True)
class ExchangeMemory:
    """What is known of the exchanges of one name.

    Attributes:
        history: how contributions stood out.
        running: in how many exchanges in a row each client's contribution stood out; those without are left out.
        previous: what the last one was reduced to, for a rule that reads it.
    """

    history: History = field(default_factory=History)
    running: Mapping[str, int] = field(default_factory=dict)
    previous: Tensors | None = None


@dataclass(frozen=True, slots=True)
class RuleState:
    """What the rules of a run build on.

    Attributes:
        past: by the name of the exchange.
    """

    past: Mapping[str, ExchangeMemory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outliers:
    """The clients whose contribution to an exchange stood out, or did so in the exchange before.

    Attributes:
        running: in how many exchanges of its name in a row, by client; 0 for one that does not stand out any more.
        named: clients that have just reached `aggregation.outlier_exchanges`.
    """

    running: Mapping[str, int] = field(default_factory=dict)
    named: tuple[str, ...] = ()


class RuleBook:
    """Knows the rule of every exchange of a run.

    Args:
        fixed: reduces every exchange in place of what the configuration names.
    """

    def __init__(self, aggregation: AggregationConfig, fixed: Rule | None = None) -> None:
        self._aggregation = aggregation
        self._fixed = fixed
        self._past: dict[str, ExchangeMemory] = {}

    def rule(
        self,
        exchange: str,
        reply: Schema | None,
        sizes: Mapping[str, float],
        contribution: ContributionKind = "update",
        base: Tensors | None = None,
    ) -> Rule:
        """Build the rule of the next exchange of a name.

        Args:
            reply: what clients contribute; None where replies are only numbers.
            sizes: the examples of each client, or none where all clients are to be treated alike.
            contribution: what these contributions are.
            base: what the clients receive.
        """
        if self._fixed is not None or reply is None:
            return self._fixed or WeightedMean()
        past, settings = self._past.get(exchange, ExchangeMemory()), self._aggregation.rule_of(exchange)
        previous = past.previous if past.previous is not None and past.previous.schema == reply else None
        # A gradient is a mean over examples: a client that has more of them sends none that is longer.
        sizes = capped_sizes(sizes, self._aggregation.weight_cap) if contribution == "update" else {}
        context = RuleContext(
            ComparedElements.of(reply), previous, past.history, sizes, self._aggregation.outlier_ratio, contribution, base
        )
        return find_rule(settings).of(settings, context)

    def loss(self, exchange: Exchange, outcome: Outcome) -> float | None:
        """Reduce the clients' losses as the numbers beside a contribution are: None if no client reported one.

        With the mean, the losses of clients whose contributions were scaled are left out.
        """
        settings = self._aggregation.rule_of(exchange.id.name)
        if isinstance(exchange.rule, GuardedMean):
            scaled = {client for client, ratio in outcome.ratios.items() if exchange.rule.stands_out(client, ratio)}
            replies = {client: reply for client, reply in outcome.replies.items() if client not in scaled}
            return dataclasses.replace(outcome, replies=replies).mean_loss(exchange.weights_of(outcome.replies))
        losses = {client: reply.loss for client, reply in outcome.replies.items() if reply.loss is not None}
        if self._fixed is not None or exchange.reply_schema is None or isinstance(settings, CustomRuleConfig) or not losses:
            return outcome.mean_loss(exchange.weights_of(outcome.replies))
        weights = exchange.weights_of(outcome.replies)
        rows = [(torch.tensor([loss], dtype=torch.float64), weights[client]) for client, loss in losses.items()]
        out, rule = torch.empty(1, dtype=torch.float64), find_rule(settings).of(settings, RuleContext(ComparedElements(())))
        rule.start(list(losses)).reduce(Segment(torch.float64, 0, out.element_size()), rows, out)
        return float(out)

    def take_in(self, exchange: str, outcome: Outcome, contribution: ContributionKind = "update") -> Outliers:
        """Remember an exchange. Called once for each, in their order; returns who stood out in it."""
        past, settings = self._past.get(exchange, ExchangeMemory()), self._aggregation.rule_of(exchange)
        found = Outliers()
        if 0 < len(outcome.ratios) <= MOST_CLIENTS:
            limits = LengthLimits(self._aggregation.outlier_ratio, settings.single_limit).of(contribution)
            outliers = [client for client, ratio in outcome.ratios.items() if past.history.is_outlier(client, ratio, limits)]
            found = self._count(past.running, outcome.ratios, outliers)
            kept = {client: count for client, count in {**past.running, **found.running}.items() if count}
            past = ExchangeMemory(past.history.after(outcome.ratios, limits), kept, past.previous)
        if self._fixed is None and outcome.reduced is not None and find_rule(settings).keeps_previous:
            past = dataclasses.replace(past, previous=outcome.reduced)
        if past != ExchangeMemory():
            self._past[exchange] = past
        else:
            self._past.pop(exchange, None)
        return found

    def _count(self, before: Mapping[str, int], replied: Collection[str], outliers: Collection[str]) -> Outliers:
        """Count in how many exchanges of a name in a row each client stands out."""
        now = {client: before.get(client, 0) + 1 for client in outliers}
        over = {client: 0 for client in before if client in replied and client not in now}
        named = tuple(client for client, count in now.items() if count == self._aggregation.outlier_exchanges)
        return Outliers({**over, **now}, named)

    def state(self) -> RuleState:
        """Return what later exchanges build on; it does not change."""
        return RuleState(dict(self._past))

    def load(self, state: RuleState) -> None:
        """Go on from what `state` returned."""
        self._past = dict(state.past)


def find_rule(settings: RuleTable) -> type[RegisteredRule]:
    """Find the class of a rule. Raises ConfigError for an import path that leads to none."""
    if not isinstance(settings, CustomRuleConfig):
        known: type[RegisteredRule] = RULES[settings.name]
        return known
    found = load_object(settings.name, "aggregation.rule")
    if not (isinstance(found, type) and callable(getattr(found, "of", None)) and hasattr(found, "keeps_previous")):
        raise ConfigError(
            f"aggregation: {settings.name!r} is no rule: a class with `of` and `keeps_previous` is expected, "
            "as feddkd.aggregator.rule.RegisteredRule describes"
        )
    rule: type[RegisteredRule] = found
    return rule


def check_rules(config: Config, algorithm: Algorithm) -> None:
    """Check that the rules of a configuration can reduce what its clients send.

    Raises:
        ConfigError: a rule needs more clients than an exchange asks, or does not go with the algorithm
            or with a codec; or an import path leads to no rule.
    """
    aggregation, scheduler = config.aggregation, config.scheduler
    if scheduler.cohort_size is not None:
        aggregation.check_number(scheduler.cohort_size, "a round of this configuration")
    elif "clients" in config.partition.model_fields_set:
        # A simulation has these clients; a server that is told of no number may have more than the default.
        number = cohort_size(scheduler.cohort, config.partition.clients)
        aggregation.check_number(number, f"partition.clients = {config.partition.clients}")
    for key, rule in aggregation.keys_of_rules():
        find_rule(rule)
        if not rule.is_mean and algorithm.needs_mean is not None:
            raise ConfigError(f"{key} = {rule.name!r}: {config.algorithm.name} needs the mean, because {algorithm.needs_mean}")
    for name, kind in algorithm.exchanges(config).items():
        codec, rule = config.communication.codec_up(name), aggregation.rule_of(name)
        if kind.reply is not None and rule.by_element and codec != PLAIN and CODECS[codec_key(codec)].error_feedback:
            raise ConfigError(
                f"aggregation: {rule.name} reduces every element by itself, and with {codec} for {name} most clients leave out "
                "most elements: their median is 0. Use another codec, or krum, geometric_median or norm_bounding"
            )
