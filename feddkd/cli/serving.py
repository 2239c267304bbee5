"""Prepares what `feddkd server` serves, and lets SIGTERM end it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.grpc import GrpcEngine

SECOND_CHANCE_S = 1.0
"""Seconds after SIGTERM until the run is ended in another way, should the first not have worked."""


@contextlib.contextmanager
def ended_by_sigterm(engine: GrpcEngine) -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, and a little later makes the engine fail.

    An exception that arrives in a callback of an extension may be swallowed there (pydantic and Cython do it), and a server
    that was told to stop would wait for clients for ever. Where it did arrive, the engine has finished by then.
    """

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        second_chance = threading.Timer(SECOND_CHANCE_S, engine.abort, ["the server was stopped"])
        second_chance.daemon = True
        second_chance.start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def with_shapes(config: Config) -> Config:
    """Write the data's shape into the configuration, so that clients need not read the server's data to learn it."""
    info = describe(config.data)
    shapes = {"input_shape": info.input_shape, "num_classes": info.num_classes}
    return config.model_copy(update={"data": config.data.model_copy(update=shapes)})
