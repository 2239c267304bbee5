"""Defines the table `[scheduler]`: participation and timeouts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, StringConstraints, model_validator

from feddkd.client_ids import PATTERN
from feddkd.config.table import CLIENTS_MAX, COUNT_MAX, SECONDS_MAX, Table

CLIENT_NAME = f"^{PATTERN}$"

ClientName = Annotated[str, StringConstraints(pattern=CLIENT_NAME)]

MAX_CLIENTS = 100_000


class SchedulerConfig(Table):
    """Which clients take part in a round, how long the server waits, and what it does if too few reply."""

    clients: (
        Annotated[list[ClientName], Field(min_length=1, max_length=CLIENTS_MAX, fail_fast=True)]
        | Annotated[StrictInt, Field(ge=1, le=CLIENTS_MAX)]
        | None
    ) = Field(
        None,
        description="names of the federation's clients, or their number; "
        "round 1 waits for all of them, and min_clients defaults to all of them",
    )
    cohort: Literal["all"] | StrictInt | float = Field(
        "all",
        union_mode="left_to_right",
        description='participation: clients sampled per round; "all", a number (8), or a fraction (0.1)',
    )
    min_clients: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="quorum: an exchange with fewer replies fails; default: all of `clients` that a round asks, else 1",
    )
    wait_for_clients: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="clients that must have joined before round 1; default: all of `clients`, else min_clients",
    )
    enough: Literal["all"] | StrictInt | float = Field(
        "all",
        union_mode="left_to_right",
        description="replies after which an exchange may close early: all, a number, or a share of the clients asked",
    )
    grace_after_quorum_s: float | None = Field(
        None,
        ge=0,
        le=SECONDS_MAX,
        description="seconds that an exchange stays open for more replies after `enough` "
        '(if that is "all": min_clients) have arrived; '
        "default: until the deadline, or 0 if `enough` is set",
    )
    weights: Literal["examples", "uniform"] = Field(
        "examples", description="weights of the clients in a mean: by their number of examples, or all equal"
    )
    max_examples: int = Field(
        10_000_000,
        ge=1,
        le=2**53,
        description="largest number of examples that a client may claim; a client with more is refused at its join",
    )
    max_examples_of: dict[str, Annotated[int, Field(ge=1, le=2**53)]] = Field(
        {},
        max_length=CLIENTS_MAX,
        description="largest number of examples that single clients may claim, by client, in place of max_examples",
    )
    max_clients: int | None = Field(
        None,
        ge=1,
        le=CLIENTS_MAX,
        description="clients that may have joined; one more is refused at its join, and the others go on; "
        "default: all of `clients`, or 100,000 if these are fewer",
    )
    deadline_s: float = Field(
        7200.0,
        gt=0,
        le=SECONDS_MAX,
        description="seconds that an exchange waits for a client's reply",
    )
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        le=SECONDS_MAX,
        description="seconds without a chunk after which an upload is given up",
    )
    reconnect_grace_s: float = Field(
        15.0,
        ge=0,
        le=SECONDS_MAX,
        description="seconds that a client has to reconnect after its connection broke, within an exchange or between two",
    )
    retries: int = Field(
        2,
        ge=0,
        le=COUNT_MAX,
        description="times that a round below quorum is retried before the run pauses",
    )
    pause_timeout_s: float = Field(
        86400.0,
        ge=0,
        le=SECONDS_MAX,
        description="seconds that a paused run waits for clients before it fails",
    )
    share_client_metrics: bool = Field(
        True,
        description="keep numbers of single clients in the record, the report and the metrics; without them, sites whose "
        "labels may be wrong are not found",
    )
    deliver: Literal["last", "best"] = Field(
        "last",
        description="model that clients get in the end: that of the last round, or of the evaluated round with the best `task.metric`",
    )
    keep_checkpoints: int = Field(
        0,
        ge=0,
        le=1000,
        description="models of the last evaluated rounds that stay in the record, beside the best and the last one",
    )
    stop_at: float | None = Field(
        None,
        allow_inf_nan=False,
        description="value of `task.metric` (for classification the accuracy) that ends the run once a round reaches it; "
        "default: run all rounds",
    )
    patience: int = Field(
        0,
        ge=0,
        le=COUNT_MAX,
        description="early stopping: end the run after this many evaluated rounds without a better `task.metric`; 0: never",
    )
    durability: Literal["exchange", "round", "none"] = Field(
        "exchange",
        description="when the run's state is synced to disk: after each exchange, after each round, or never (no resume)",
    )
    resume_grace_s: float = Field(
        120.0,
        ge=0,
        le=SECONDS_MAX,
        description="seconds that a restarted server waits for the clients of the open round",
    )

    @property
    def num_clients(self) -> int | None:
        """Number of clients that make up the federation, or None where it is not said."""
        return len(self.clients) if isinstance(self.clients, list) else self.clients

    @property
    def quorum(self) -> int:
        """Fewest answers with which an exchange succeeds: `min_clients`, or what it defaults to."""
        if self.min_clients is not None:
            return self.min_clients
        return self.cohort_size or 1

    @property
    def cohort_size(self) -> int | None:
        """Clients that a round asks when all are connected, or None without `clients`."""
        if self.num_clients is None:
            return None
        return cohort_size(self.cohort, self.num_clients)

    @property
    def starting_clients(self) -> int:
        """Clients that must have joined before round 1."""
        return self.wait_for_clients or self.num_clients or self.quorum

    @property
    def key_of_starting_clients(self) -> str:
        """The key that says how many clients must have joined before round 1."""
        if self.wait_for_clients:
            return "wait_for_clients"
        return "clients" if self.num_clients else "min_clients"

    @property
    def admitted_clients(self) -> int:
        """Clients that may have joined: `max_clients`, or what it defaults to."""
        return self.max_clients or max(MAX_CLIENTS, self.starting_clients)

    @model_validator(mode="after")
    def _shares_are_sensible(self) -> Self:
        for name, value, noun in (
            ("cohort", self.cohort, "client"),
            ("enough", self.enough, "answer"),
        ):
            if isinstance(value, float) and not 0 < value <= 1:
                raise ValueError(f"{name}: a fraction must be in (0, 1], not {value}")
            if isinstance(value, int) and not 1 <= value <= COUNT_MAX:
                problem = f"at least 1 {noun} is needed, not {value}" if value < 1 else f"{value} is too large"
                raise ValueError(f"{name}: {problem}")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        repeated = first_repeated(self.clients) if isinstance(self.clients, list) else None
        if repeated is not None:
            raise ValueError(f"clients: {repeated!r} is listed twice")
        return self

    @model_validator(mode="after")
    def _limits_are_of_clients(self) -> Self:
        known = set(self.clients) if isinstance(self.clients, list) else None
        for name in self.max_examples_of:
            if known is not None and name not in known:
                raise ValueError(f"max_examples_of: {name!r} is not in scheduler.clients")
            if not re.fullmatch(CLIENT_NAME, name):
                raise ValueError(f"max_examples_of: {name!r} is no client id")
        return self

    @model_validator(mode="after")
    def _numbers_can_be_reached(self) -> Self:
        number = self.num_clients
        if number is not None and (self.wait_for_clients or 0) > number:
            waiting = self.wait_for_clients
            raise ValueError(f"wait_for_clients: {waiting} clients can never join, scheduler.clients has {number}")
        if self.starting_clients > self.admitted_clients:
            raise ValueError(f"max_clients: {self.starting_clients} clients are waited for, and {self.admitted_clients} may join")
        if number is not None and self.quorum > number:
            raise ValueError(f"min_clients: {self.quorum} clients can never answer, scheduler.clients has {number}")
        if isinstance(self.cohort, int) and self.cohort < self.quorum:
            raise ValueError(f"cohort: {self.cohort} clients can never reach min_clients = {self.quorum}")
        enough = self.enough
        if isinstance(enough, float) and self.cohort_size is not None:
            enough = cohort_size(enough, max(self.cohort_size, self.quorum))
        if isinstance(enough, int) and enough < self.quorum:
            raise ValueError(f"enough: {enough} answers are fewer than min_clients = {self.quorum}; lower that as well")
        return self


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that equals an earlier one, or None if all differ; in linear time."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def cohort_size(cohort: str | int | float, available: int) -> int:
    """Return how many of the available clients a round asks: all, a number, or a fraction, rounded up."""
    if isinstance(cohort, int):
        return min(cohort, available)
    if isinstance(cohort, float):
        # A product such as 0.1 * 30 is a little more than 3, and must not become 4.
        return math.ceil(round(cohort * available, 9))
    return available
