"""Say which keys to change when a device has no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from feddkd.config import Config
from feddkd.errors import ClientError
from feddkd.imports import one_line


@contextmanager
def named_memory_errors(config: Config) -> Iterator[None]:
    """Turn what torch raises, where a device's memory is used up, into a message for the user.

    Raises:
        ClientError: with the keys that lower the need for memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ClientError(
            f"runtime.device = {config.runtime.device!r}: its memory is used up; lower training.batch_size "
            f"({config.training.batch_size}), runtime.eval_batch_size ({config.eval_batch_size}), or the number of processes "
            f"that share the device (runtime.client_processes, or raise runtime.ray_gpus): {one_line(error)}"
        ) from error
