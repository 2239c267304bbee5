"""Describes the exchanges of a run by its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from feddkd.compression.constants import NO_CONSTANTS, Constants
from feddkd.config import Config
from feddkd.exchange import DELIVER, Closing, EvaluationForm, ExampleCounts, Exchange, ExchangeId, ExchangeKind
from feddkd.scheduler.downlink import Downlink, named_codec
from feddkd.scheduler.rule_book import RuleBook
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics
from feddkd.tensors import Schema, Tensors


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """What the exchanges of a run have in common.

    Attributes:
        kinds: what travels, by the exchange's name.
        model_schema: of the global model.
        rules: build what reduces the contributions.
        downlink: encodes what is broadcast.
        constants: the network's other tensors.
        metrics: of the task.
    """

    config: Config
    kinds: Mapping[str, ExchangeKind]
    model_schema: Schema
    rules: RuleBook
    downlink: Downlink
    constants: Constants = NO_CONSTANTS
    metrics: TaskMetrics = OF_CLASSIFICATION

    @property
    def first(self) -> str:
        """Name the exchange that a round begins with."""
        return next(iter(self.kinds))

    def weight(self, name: str, counts: ExampleCounts) -> float:
        """Weigh a client in an exchange by what it claims."""
        return self.kinds[name].weight(counts, self.config.scheduler.weights)

    def describe(
        self,
        exchange: ExchangeId,
        clients: Mapping[str, float],
        payload: Tensors,
        *,
        evaluate: bool,
        sizes: Mapping[str, float] | None = None,
    ) -> Exchange:
        """Say everything that can change the outcome of an exchange.

        Args:
            clients: the weight of each client's contribution, by id, in client order.
            sizes: the examples of each client, where weights do not say so.
        """
        kind = self.kinds[exchange.name]
        received, broadcast = self.downlink.broadcast(exchange, payload, clients)
        up = self.config.communication.codec_up(exchange.name)
        reply = kind.reply(self.model_schema) if kind.reply else None
        return Exchange(
            id=exchange,
            clients=clients,
            payload=received,
            reply_schema=reply,
            rule=self.rules.rule(exchange.name, reply, clients if sizes is None else sizes, kind.contribution, received),
            closing=self._closing(exchange.name, len(clients)),
            evaluate=evaluate,
            max_norm=self.config.aggregation.max_norm.get(exchange.name),
            reply_codec=named_codec(up, unbiased=True) if kind.reply else None,
            seed=self.config.seed,
            broadcast=broadcast,
            zstd=self.config.communication.zstd,
            constants=self.constants,
            evaluation_form=self._evaluation_form,
            weight_cap=self.config.aggregation.weight_cap,
        )

    @property
    def _evaluation_form(self) -> EvaluationForm:
        least_loss = -math.inf if self.metrics.task.has_negative_loss else 0.0
        return EvaluationForm(self.metrics.has_one_class, self.metrics.ranges, least_loss)

    def _closing(self, name: str, num_clients: int) -> Closing:
        settings = self.config.scheduler
        # Enough replies make a mean, but every client is to have the final model: only a grace that is asked for
        # ends the delivery before its deadline.
        if settings.enough == "all" or name == DELIVER:
            enough, grace_s = settings.quorum, settings.grace_after_quorum_s
        else:
            wanted = settings.enough
            enough = math.ceil(round(wanted * num_clients, 9)) if isinstance(wanted, float) else wanted
            grace_s = settings.grace_after_quorum_s or 0.0
        return Closing(
            deadline_s=settings.deadline_s,
            enough=max(enough, settings.quorum),
            grace_after_enough_s=grace_s,
            reconnect_grace_s=settings.reconnect_grace_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
