"""A run of made-up clients on either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from harness import RUN_ID, FakeWorker, serving

from feddkd import algorithms
from feddkd.client.work import TaskRunner
from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine
from feddkd.exchange import DELIVER, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import Observer, RunRecord
from feddkd.scheduler.rounds import Evaluator, Extensions, Scheduler
from feddkd.tensors import Tensors

ENGINES = ["in-process", "grpc"]


@contextmanager
def engine_with(name: str, config: Config, workers: Mapping[str, TaskRunner]) -> Iterator[Engine]:
    """Either engine, with these clients connected."""
    if name == "in-process":
        chunk_bytes, holdout = config.transport.chunk_bytes, config.data.holdout
        with InProcessEngine(workers, chunk_bytes, holdout=holdout) as engine:
            yield engine
        return
    with serving(config, build_initial(config).model.schema) as server:
        for client, worker in workers.items():
            server.agent(client, worker)
        server.wait_for(*workers)
        yield server.engine


def scheduler_on(
    engine: Engine,
    config: Config,
    observers: Sequence[Observer] = (),
    *,
    evaluator: Evaluator | None = None,
    extensions: Extensions | None = None,
) -> Scheduler:
    """A scheduler of the configured algorithm."""
    return Scheduler(
        config,
        algorithms.build(config),
        engine,
        run_id=RUN_ID,
        observers=observers,
        evaluator=evaluator,
        extensions=extensions,
    )


def run_on(
    name: str,
    config: Config,
    workers: Mapping[str, TaskRunner],
    observers: Sequence[Observer] = (),
    *,
    evaluator: Evaluator | None = None,
) -> RunRecord:
    """A whole run with these clients."""
    with engine_with(name, config, workers) as engine:
        scheduler = scheduler_on(engine, config, observers, evaluator=evaluator)
        return scheduler.run(build_initial(config).model)


class Zeros:
    """What a client replies whose contributions are all zeros, in every exchange."""

    def __init__(self, config: Config) -> None:
        self.schema = build_initial(config).model.schema
        self._kinds = algorithms.build(config).exchanges(config)

    def reply(self, task: Task) -> Reply:
        """A reply without tensors in the delivery, and with a loss of 1 in every other exchange."""
        if task.id.name == DELIVER:
            return Reply()
        rule = self._kinds[task.id.name].reply
        return Reply(Tensors(rule(self.schema)) if rule is not None else None, loss=1.0)

    def worker(
        self,
        change: Callable[[Task, Reply], Reply] = lambda _, reply: reply,
        examples: int = 1,
    ) -> FakeWorker:
        """A client that replies this, changed."""
        return FakeWorker(lambda task: change(task, self.reply(task)), self.schema, examples)
