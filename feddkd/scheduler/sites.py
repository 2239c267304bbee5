"""Collects the numbers that are kept by client, and compares sites by them.

All other numbers that clients report are kept as a weighted mean. These few are kept for each client, so that a
site can see whether distillation helps it, and whether its labels may be wrong. Nothing is decided by them,
because a client can report anything.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from feddkd.algorithms.feddkd import LABEL_DISAGREEMENT, TEACHER_ACCURACY, TEACHER_SCORE
from feddkd.evaluation import judged
from feddkd.exchange import Exchange, Outcome, Reply
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics

CLIENT_ACCURACY = "client_accuracy"
"""The broadcast model's accuracy on what one client holds out."""

CLIENT_LOSS = "client_loss"
"""Its mean loss on the same examples, in nats."""

CLIENT_EXAMPLES = "client_examples"
"""How many these are."""

COMPUTE_SECONDS = "seconds"
"""What one client computed, evaluation included."""

OF_CLIENT = "client_"
"""What the name of each further metric begins with: the broadcast model's, on what one client holds out."""

UNBOUNDED = (CLIENT_LOSS, CLIENT_EXAMPLES, COMPUTE_SECONDS, "loss")
"""These are not negative. All other numbers lie in [0, 1], but for further metrics, which may be any."""

LOSS = "loss"
"""One client's mean loss over its local training, in nats."""

LOCAL_TRAIN = "local_train"

MOST_CLIENTS = 1000
"""Numbers of single clients are left out where there are more."""

FEWEST_SITES = 3
"""Fewer sites have no median that one of them differs from."""

MARGIN = 0.1
RATIO = 3.0
"""A site stands out where its disagreement is above the median by `MARGIN`, and `RATIO` times the median."""

RUNNING = 3
"""Rounds in which a site stands out, one after the other, before it is found: honest sites do so once or twice."""


def numbers_by_client(exchange: Exchange, outcome: Outcome, metrics: TaskMetrics = OF_CLASSIFICATION) -> dict[str, dict[str, float]]:
    """Collect the numbers that are kept for each client, by name and client.

    Args:
        metrics: of the task.

    Returns:
        `teacher_accuracy`, `client_accuracy` and `label_disagreement` in [0, 1], the `loss` of local
        training and `client_loss`, `client_examples`, `seconds` of computing, the task's further metrics
        as `client_NAME`, and its metric of the teacher as `teacher_score`, each for the clients that said
        one in range; names that nobody said one for are left out. Empty for more than `MOST_CLIENTS`
        clients, and for steps after the first.
    """
    if len(exchange.clients) > MOST_CLIENTS or exchange.id.step > 0:
        return {}
    found: dict[str, dict[str, float]] = {}
    for client, reply in outcome.replies.items():
        for name, value in _numbers(exchange.id.name, reply).items():
            if 0 <= value <= (math.inf if name in UNBOUNDED else 1) and math.isfinite(value):
                found.setdefault(name, {})[client] = value
        for name, value in _scores(reply, metrics):
            found.setdefault(name, {})[client] = value
    return found


def _numbers(exchange: str, reply: Reply) -> dict[str, float]:
    """Read the numbers of one reply, as the client said them."""
    found = {name: reply.metrics[name] for name in (TEACHER_ACCURACY, LABEL_DISAGREEMENT) if name in reply.metrics}
    if reply.evaluation is not None:
        if reply.evaluation.correct is not None:
            found[CLIENT_ACCURACY] = reply.evaluation.correct / reply.evaluation.examples
        found[CLIENT_LOSS] = reply.evaluation.loss
        found[CLIENT_EXAMPLES] = float(reply.evaluation.examples)
        found[COMPUTE_SECONDS] = reply.compute_s
    if exchange == LOCAL_TRAIN and reply.loss is not None:
        found[LOSS] = reply.loss
    return found


def _scores(reply: Reply, metrics: TaskMetrics) -> Iterator[tuple[str, float]]:
    """Compute the metrics of one client from the states that it sent, and read its teacher's; those that are defined and finite."""
    if math.isfinite(score := reply.metrics.get(TEACHER_SCORE, math.nan)):
        yield TEACHER_SCORE, score
    if reply.evaluation is not None:
        yield from ((f"{OF_CLIENT}{name}", value) for name, value in judged(reply.evaluation, metrics).scores.items())


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a site's labels may be wrong.

    Attributes:
        disagreement: share of the site's labels that are not its teacher's most likely class.
        median: of that share over all sites of the round.
        round: when it had stood out `RUNNING` times running.
    """

    disagreement: float
    median: float
    round: int


class LabelDoubts:
    """Finds sites whose teachers contradict their labels far more than the teachers of the others do.

    A site stands out in a round where its `label_disagreement` is above both `RATIO` times the median
    of the sites and the median plus `MARGIN`. Teachers that know little yet differ widely, and now and
    then the training of one goes wrong. So a site is found that stands out `RUNNING` times running,
    among the rounds it took part in.

    It compares sites, so it sees nothing where most of them have wrong labels. Nor does it where a
    teacher has learnt wrong labels by heart, as it does with few of them.

    Attributes:
        found: by client, at most `MOST_CLIENTS` of them.
    """

    def __init__(self) -> None:
        self.found: dict[str, Doubt] = {}
        self._stood_out: dict[str, set[int]] = {}

    def see(self, round_number: int, by_client: Mapping[str, Mapping[str, float]]) -> None:
        """Take in what `numbers_by_client` found in an exchange; most hold nothing of interest here."""
        disagreement = by_client.get(LABEL_DISAGREEMENT, {})
        if len(disagreement) < FEWEST_SITES:
            return
        median = statistics.median(disagreement.values())
        for client, value in disagreement.items():
            if value <= max(RATIO * median, median + MARGIN):
                self._stood_out.pop(client, None)
            elif client not in self.found and len(self.found) < MOST_CLIENTS and self._rounds_running(client, round_number) >= RUNNING:
                self.found[client] = Doubt(value, median, round_number)

    def _rounds_running(self, client: str, round_number: int) -> int:
        """Count the rounds in which a client stands out, this one included, once for all attempts at it."""
        rounds = self._stood_out.setdefault(client, set())
        rounds.add(round_number)
        return len(rounds)
