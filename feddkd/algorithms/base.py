"""What an algorithm is: a server half that asks for exchanges, and a client half that answers them.

To write a new one, subclass `Algorithm` and `ClientHalf` in one file and name it in the
configuration: `algorithm.name = "my_package.my_module:MyAlgorithm"`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

from pydantic import ValidationError
from torch import Tensor

from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, CustomAlgorithmConfig, Table
from feddkd.config.problems import describe
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeKind, Reply, Task
from feddkd.tensors import Tensors

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=Table)


class Cohort(Protocol):
    """The clients of one round, as the server half sees them.

    Attributes:
        weights: of those that answered the first exchange, in client order; until then, of those that were selected.
        share: the sum of `weights` as a share of all clients' weight; in (0, 1].
    """

    @property
    def weights(self) -> Sequence[float]: ...

    @property
    def share(self) -> float: ...

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        """Broadcast `payload`, let every client run its method `name`, and return the weighted mean of the answers.

        Raises:
            QuorumError: too few clients answered. The scheduler handles it; algorithms let it pass.
        """


class ClientHalf:
    """The client's side of an algorithm: one method for each exchange, `method(task) -> Reply`."""

    def __init__(self, site: Site) -> None:
        self.site = site


class Algorithm(ABC):
    """The server's side of an algorithm.

    Attributes:
        client_half: answers the exchanges at a site.
        local_objective: what its clients minimise, where that is not for the configuration to choose.
    """

    client_half: ClassVar[type[ClientHalf]]
    local_objective: ClassVar[type[LocalObjective] | None] = None

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        """Say what travels in each exchange, by its name; nothing else may be asked of a client.

        The server and its clients call it with the same configuration.
        """

    @abstractmethod
    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        """Take the global model of one round to that of the next.

        Must be replayable: run again with the same model, the same `state_dict` and exchanges that
        return what they returned before, it asks for the same exchanges and returns the same bits.
        So everything that outlives a round belongs into `state_dict`, and nothing here draws
        random numbers or looks at a clock.
        """

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return everything that the server half carries from round to round besides the model.

        The tensors need not be copies, but what comes later must not change them: replace them, do not write into them.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  # nothing to carry is the usual case
        """Go back to what `state_dict` returned; the tensors must not be changed here either."""


def answer(half: ClientHalf, task: Task) -> Reply:
    """Run the client half's method for one exchange."""
    reply: Reply = getattr(half, task.id.name)(task)
    return reply


def within(name: str, number: float, low: float, high: float) -> float:
    """Bring a mean of numbers that clients reported into the range of honest ones, and warn if it was outside.

    A mean does not tell who reported what; the range keeps a single client from deciding the outcome.

    Args:
        name: what the number is, for the warning.
        number: may be anything, NaN included.
        low: the least that honest clients report.
        high: the most.
    """
    if low <= number <= high:
        return number
    bounded = high if number > high else low
    logger.warning("%s is %g at the mean of the clients, outside of [%g, %g]: %g is used", name, number, low, high, bounded)
    return bounded


def own_settings(config: Config, table: type[Settings]) -> Settings:
    """The table `[algorithm]` as `table`, also where it names a subclass of that table's algorithm by its import path.

    Raises:
        ConfigError: a key or a value is not `table`'s.
    """
    found = config.algorithm
    if isinstance(found, table):
        return found
    assert isinstance(found, CustomAlgorithmConfig)
    try:
        return table.model_validate(found.settings)
    except ValidationError as error:
        raise ConfigError(f"[algorithm] of {found.name}: {describe(error, table)}") from None
