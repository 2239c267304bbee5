"""A client that computes until it is cancelled, and what it can do then."""

from __future__ import annotations

import threading
from collections.abc import Callable

from harness import SCHEMA, FakeWorker, filled

from feddkd.exchange import Reply, Task


class Blocking(FakeWorker):
    """Computes until its task is cancelled, and then does what `after` does."""

    def __init__(self, after: Callable[[Task], Reply]) -> None:
        super().__init__(self._block)
        self.started = threading.Event()
        self.ended = threading.Event()
        self._after = after

    def _block(self, task: Task) -> Reply:
        self.started.set()
        task.cancelled.wait()
        self.ended.set()
        return self._after(task)


def give_up(task: Task) -> Reply:
    task.check_cancelled()
    raise AssertionError


def reply_all_the_same(_: Task) -> Reply:
    return Reply(filled(SCHEMA, 1))


def fail(_: Task) -> Reply:
    raise ValueError("something else")
