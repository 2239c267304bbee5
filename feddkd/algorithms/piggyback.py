"""Let one gradient of the distillation ride along with the update of a round that averages.

The client trains, takes the gradient at the model that it received, with the model that it has just
trained as teacher, and sends both in one message: no exchange more than FedAvg. The server averages
as its algorithm does, and takes one optimizer step from there. The update has drifted towards each
client's own data; the gradient has not, because it is taken where all clients start.

Around which algorithms this stands: those whose round is one exchange, in which the global model
goes down and the global model of the next round comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from feddkd.algorithms.base import Algorithm, ClientSide, Cohort, CohortAround, answer
from feddkd.algorithms.distiller import distiller_of
from feddkd.algorithms.feddkd import FedDKD, server_optimizer_of, with_moved_buffers
from feddkd.algorithms.registry import find
from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.dkd.scope import in_scope
from feddkd.dkd.steps import clipped
from feddkd.errors import ConfigError
from feddkd.exchange import SCALAR, ExchangeKind, Reply, Task, as_scalar, read_scalar
from feddkd.tensors import Schema, Tensors

MOST_RISE = 2.0
"""Share by which the loss may be above the lowest since averages are taken, before they count as worse."""

MOST_ABOVE_UNTRAINED = 0.05
"""Share by which it may be above the loss that the run began with."""

PATIENCE = 8
"""Rounds in a row that may average without a new lowest loss."""

GOOD_FALL = 0.1
"""Share by which averages have to lower the loss before the next failure costs half as many rounds."""

GRADIENT, RECEIVED_LOSS = "gradient", "received_loss"

AVERAGED = "averaged"
"""Metric of a round: 1 where its model is an average and a step, 0 where it is a step alone."""


class PiggybackClient(ClientSide):
    """Replies as the algorithm's client does and, beside it, with a gradient and the loss at w_t."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._inner = find(site.config.algorithm.name).client_side(site)
        self._distiller = distiller_of(site)

    def local_train(self, task: Task) -> Reply:
        reply = answer(self._inner, task)
        site, found = self.site, self._distiller.gradient_of_new_teacher(task)
        # On all labelled examples: no noise of a batch, and no teacher that changes with the round.
        task.payload.load_into(site.module)
        loss = site.loss_on(site.labelled, task)
        assert reply.contribution is not None
        return dataclasses.replace(
            reply,
            contribution=reply.contribution.beside(**{GRADIENT: found.gradient, RECEIVED_LOSS: as_scalar(loss)}),
            gradient_evaluations=reply.gradient_evaluations + found.examples,
            metrics={**reply.metrics, RECEIVED_LOSS: loss},
        )


class Averaging:
    """Decides whether rounds average, by the losses of the models that the averages led to.

    Attributes:
        at_lowest: whether the round that was decided last begins with the lowest loss since
            averages are taken.
    """

    NONE = -1.0

    def __init__(self, state: Tensor | None = None) -> None:
        """Begin before round 1, or go on from `state`."""
        values: list[float] = [0, self.NONE, self.NONE, self.NONE, 0, 0, 1] if state is None else state.tolist()
        self._rounds, self._untrained, self._lowest, self._credited, self._stale, self._pause, self._next_pause = values
        self.at_lowest = False

    def decide(self, loss: float, last_round: int) -> Literal["back", "alone", "average"]:
        """Decide for the next round.

        Args:
            loss: at the model that it begins with; a negative one is not true, and decides nothing.
            last_round: the number of the run's last one.

        Returns:
            "back": averages are worse, so go back to where the loss was lowest. "alone": take the
            step without averaging. "average": do both.
        """
        self._rounds += 1
        self._untrained = loss if self._untrained == self.NONE and loss >= 0 else self._untrained
        first = self._lowest == self.NONE
        self.at_lowest = loss >= 0 and (first or loss < self._lowest)
        if not first and loss >= 0 and self._are_worse(loss):
            self._pause, self._next_pause, self._lowest = self._next_pause, 2 * self._next_pause, self.NONE
            return "back"
        if self._pause > 0 or (first and 1 < self._rounds >= last_round):
            self._pause = max(self._pause - 1, 0.0)
            return "alone"
        if self.at_lowest:
            self._lowest, self._stale = loss, 0.0
            self._credited = self._lowest if first else self._credited
        return "average"

    def _are_worse(self, loss: float) -> bool:
        """Judge the averages by the loss that the last one led to."""
        if self.at_lowest:
            if loss < (1 - GOOD_FALL) * self._credited:
                self._next_pause, self._credited = max(self._next_pause / 2, 1.0), loss
            return False
        self._stale += 1
        worse_than_none = loss > (1 + MOST_ABOVE_UNTRAINED) * self._untrained
        return worse_than_none or loss > (1 + MOST_RISE) * self._lowest or self._stale >= PATIENCE

    def state(self) -> Tensor:
        """Return what to go on from; float64 [7]."""
        values = [self._rounds, self._untrained, self._lowest, self._credited, self._stale, self._pause, self._next_pause]
        return torch.tensor(values, dtype=torch.float64)


class Piggyback(Algorithm):
    """w_{t+1} = ServerOptimizer( the algorithm's w_{t+1}, sum_k p_k g_k ), g_k as in FedDKD, but taken at w_t.

    Where averaging is bad, each round is one step of FedDKD that starts at the previous model:

    - The clients report the loss of the model that a round begins with: the cross-entropy on all
      their labelled examples, so it changes with the model alone. It is compared with the lowest that a
      round began with since averages are taken. Averages are worse if it is more than `MOST_RISE`
      above that, or more than `MOST_ABOVE_UNTRAINED` above the first one of the run, or if
      `PATIENCE` rounds have not lowered it. (With two classes a client, where averaging works, the
      loss still doubles in single rounds. With one class it rises above that of an untrained model.)
    - Then w_{t+1} is the model that the gradient alone would have led to from where the loss was
      lowest, which the server has kept with its optimizer's moments; the replies of this round are
      not used. The algorithm starts again without momentum.
    - The next round is a step alone, without averaging: w_{t+1} = ServerOptimizer(w_t, sum_k p_k g_k).
      After it the server tries an average again. Averages that are worse double the number of such
      rounds each time, and those that lower the loss by `GOOD_FALL` halve it, down to one.
    - The last round tries no average, because no later one could judge it.

    The metric `averaged` says which rounds averaged.
    """

    client_side = PiggybackClient

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._inner = find(config.algorithm.name)(config)
        self._server_optimizer = server_optimizer_of(config.dkd)
        self._averaging = Averaging()
        self._alone: dict[str, Tensor] = {}  # the model to go back to
        self._moments: dict[str, Tensor] = {}  # and the optimizer's state there

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        kind = find(config.algorithm.name).exchanges(config)["local_train"]

        def reply(model: Schema) -> Schema:
            assert kind.reply is not None
            return kind.reply(model).beside({GRADIENT: in_scope(model, config.dkd.scope), RECEIVED_LOSS: SCALAR})

        return {"local_train": dataclasses.replace(kind, reply=reply)}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        reply = cohort.exchange("local_train", model)
        decision = self._averaging.decide(read_scalar(reply, RECEIVED_LOSS), self.config.rounds)
        cohort.note(AVERAGED, float(decision == "average"))
        if decision == "back":
            return self._go_back(model.schema)
        start, step = with_moved_buffers(cohort.sent, reply), self._step(reply, model.schema)
        if decision == "alone":
            return _moved(start, step)
        if self._averaging.at_lowest:
            self._alone, self._moments = dict(_moved(start, step)), self._server_optimizer.state_dict()
        return _moved(self._inner.run_round(_Replied(cohort, reply, model.schema), model), step)

    def _go_back(self, model: Schema) -> Tensors:
        """Take the model that was kept, as if no average had been tried since."""
        kept = Tensors.copy_of(model, self._alone)
        self._inner.load_state_dict({})
        self._server_optimizer.load_state_dict(self._moments)
        self._alone, self._moments = {}, {}
        return kept

    def _step(self, reply: Tensors, model: Schema) -> Tensors:
        """Take the optimizer's step from zero: it depends on the gradients alone, not on the model."""
        scope = in_scope(model, self.config.dkd.scope)
        self._server_optimizer.start_round()
        return self._server_optimizer.step(Tensors(scope), clipped(reply.part(GRADIENT, scope), self.config.dkd.clip_norm))

    def state_dict(self) -> Mapping[str, Tensor]:
        parts = {
            "algorithm": self._inner.state_dict(),
            "optimizer": self._server_optimizer.state_dict(),
            "alone": self._alone,
            "moments": self._moments,
        }
        state = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return {"averaging": self._averaging.state(), **state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"algorithm": {}, "optimizer": {}, "alone": {}, "moments": {}}
        for path, value in state.items():
            part, _, name = path.partition("/")
            if part in parts:
                parts[part][name] = value
        self._averaging = Averaging(state.get("averaging"))
        self._inner.load_state_dict(parts["algorithm"])
        self._server_optimizer.load_state_dict(parts["optimizer"])
        self._alone, self._moments = parts["alone"], parts["moments"]


class _Replied(CohortAround):
    """A cohort whose one exchange is over: gives the algorithm its own part of the reply."""

    def __init__(self, cohort: Cohort, reply: Tensors, model: Schema) -> None:
        super().__init__(cohort)
        self._reply = reply
        self._model = model

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        own = (spec for spec in self._reply.schema.specs if spec.name.partition("/")[0] not in (GRADIENT, RECEIVED_LOSS))
        return self._reply.select(Schema(own))


def _moved(model: Tensors, step: Tensors) -> Tensors:
    """Add a step to the parameters that it has."""
    return model.replace(model.select(step.schema) + step)


def check_piggyback(config: Config) -> None:
    """Check that a gradient can ride along with what the configured algorithm sends.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    algorithm = find(config.algorithm.name)
    reason = algorithm.no_piggyback
    if reason is None and issubclass(algorithm, FedDKD):
        steps = config.dkd.steps
        reason = f"dkd.steps = {steps} takes steps anyway; set it to 0" if steps > 0 else None
    elif reason is None and set(algorithm.exchanges(config)) != {"local_train"}:
        reason = "its round is more than the exchange local_train"
    if reason is not None:
        raise ConfigError(f"dkd.piggyback: algorithm {config.algorithm.name} cannot carry a gradient: {reason}")
