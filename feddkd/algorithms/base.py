"""Define an algorithm: a server side that asks for exchanges, a client side that answers them.

To write a new one, subclass `Algorithm` and `ClientSide` in one file and name it in the
configuration: `algorithm.name = "my_package.my_module:MyAlgorithm"`. A file in this package gives it a
name of its own, with a table of settings: `@ALGORITHMS.register("mine")`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

from pydantic import ValidationError
from torch import Tensor

from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, CustomAlgorithmConfig, NamedTable, Table, TrainingConfig
from feddkd.config.problems import describe
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeKind, Reply, Task
from feddkd.tensors import Tensors

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=Table)


class Cohort(Protocol):
    """The clients of one round, as the server side sees them.

    Attributes:
        weights: of those that answered the first exchange, in client order; until then, of those
            that were selected.
        share: the sum of `weights` as a share of all clients' weight; in (0, 1].
        most_examples: the largest number of examples of one client in the round, labelled or not.
        loss: weighted mean of the losses that came with the latest exchange's replies, or None if none did.
        sent: what the clients received in the latest exchange: its payload, or what a codec left of it.
            Replies are computed at it, so the server goes on from it. After `adopt`, its result.
    """

    @property
    def weights(self) -> Sequence[float]: ...

    @property
    def share(self) -> float: ...

    @property
    def most_examples(self) -> int: ...

    @property
    def loss(self) -> float | None: ...

    @property
    def sent(self) -> Tensors: ...

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        """Replace a model by the one that clients will hold once it is sent.

        With a codec, the step from what clients hold to `model` is encoded at once, and the server
        goes on from what the code says. Without one, this is `model`.

        Args:
            name: the exchange whose codec is used.
            in_mean: the model belongs to a mean that the round may end with; see `RunningMean`.
        """

    def note(self, name: str, value: float) -> None:
        """Add a number to the record of the round, among its metrics."""

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        """Broadcast `payload`, let every client run its method `name`, and return the mean reply.

        Raises:
            QuorumError: too few clients replied. The scheduler handles it; algorithms do not.
        """


class CohortAround:
    """Passes everything on to another cohort; override what should change on its way."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort

    @property
    def weights(self) -> Sequence[float]:
        return self.cohort.weights

    @property
    def share(self) -> float:
        return self.cohort.share

    @property
    def most_examples(self) -> int:
        return self.cohort.most_examples

    @property
    def loss(self) -> float | None:
        return self.cohort.loss

    @property
    def sent(self) -> Tensors:
        return self.cohort.sent

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        return self.cohort.adopt(name, model, in_mean=in_mean)

    def note(self, name: str, value: float) -> None:
        self.cohort.note(name, value)

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        return self.cohort.exchange(name, payload, step)


class ClientSide:
    """What an algorithm does at a client: one method for each exchange, `method(task) -> Reply`."""

    def __init__(self, site: Site) -> None:
        self.site = site


class Algorithm(ABC):
    """What an algorithm does at the server.

    Attributes:
        table: the class of its settings, of `[algorithm]`; not used for an algorithm that the
            configuration names by its import path.
        spoken: what reports call it, where that is not the name of its class; not inherited.
        client_side: the class that answers its exchanges at a client.
        local_objective: what its clients minimise; None leaves the choice to the configuration.
        broadcasts_model: the first exchange of a round broadcasts the model that the round before it
            returned; a codec then encodes the step to it before it is evaluated.
        takes_steps: its rounds take the steps of `[dkd]`, so a preset proposes settings for them.
        distils_own_teachers: a site may train a network of its own, and distil it into the shared one (`[teacher]`).
        no_piggyback: why its update cannot carry a gradient (`dkd.piggyback`); None if it can.
        needs_mean: why its contributions have to be reduced to their mean (`aggregation.rule`); None if another rule will do.
        needs_labels: it works with logits [B, C] and one class of each example.
    """

    table: ClassVar[type[NamedTable]]
    client_side: ClassVar[type[ClientSide]]
    spoken: ClassVar[str | None] = None
    broadcasts_model: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = False
    distils_own_teachers: ClassVar[bool] = False
    no_piggyback: ClassVar[str | None] = None
    needs_mean: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = False
    local_objective: ClassVar[type[LocalObjective] | None] = None

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod  # noqa: B027  # may accept all
    def check_training(cls, training: TrainingConfig) -> None:
        """Check that the algorithm's mathematics hold for this local training, before a run starts.

        Raises:
            ConfigError: naming the key that they do not hold for.
        """

    @classmethod
    @abstractmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        """Say what travels in each exchange, by its name; nothing else may be asked of a client.

        The server and its clients call it with the same configuration.
        """

    @abstractmethod
    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        """Take the global model of one round to that of the next.

        A round can be replayed: run again with the same model, the same `state_dict` and exchanges
        that return what they returned before, it asks for the same exchanges and returns the same
        bits. So keep what outlives a round in `state_dict`, draw no random numbers and read no
        clock.
        """

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return everything that the server side carries from round to round besides the model.

        The tensors need not be copies, but must not change afterwards: replace them, do not write
        into them.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  # may do nothing
        """Go back to what `state_dict` returned; do not write into the tensors."""


def answer(client_side: ClientSide, task: Task) -> Reply:
    """Call the method that a task's exchange is named after."""
    reply: Reply = getattr(client_side, task.id.name)(task)
    return reply


def within(name: str, number: float, low: float, high: float) -> float:
    """Bring a mean of numbers that clients reported into a range, and warn if it was outside.

    The range is that of honest clients; it keeps a single client from deciding the outcome.

    Args:
        name: what the number is, for the warning.
        number: may be anything, NaN included.
        low: the least that honest clients report.
        high: the most.
    """
    if low <= number <= high:
        return number
    bounded = high if number > high else low
    message = "%s is %g at the mean of the clients, outside of [%g, %g]: %g is used"
    logger.warning(message, name, number, low, high, bounded)
    return bounded


def own_settings(config: Config, table: type[Settings]) -> Settings:
    """Read `[algorithm]` as `table`, also where it names a custom algorithm by an import path.

    Raises:
        ConfigError: `table` does not have a key, or not with this value.
    """
    settings = config.algorithm
    if isinstance(settings, table):
        return settings
    assert isinstance(settings, CustomAlgorithmConfig)
    try:
        return table.model_validate(settings.settings)
    except ValidationError as error:
        raise ConfigError(f"[algorithm] of {settings.name}: {describe(error, table)}") from None
