"""Keep what an algorithm carried into a round, in case the round has to start again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from feddkd.errors import StateError
from feddkd.tensors import Schema, Tensors, TensorSpec

_PIECE_BYTES = 1 << 20


class Snapshot:
    """A copy of an algorithm's state: in memory if it is small, else in an unnamed temporary file.

    The moments of a server optimizer are up to two models, and only a failed round needs the copy.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        memory_bytes: int = 16 << 20,
        folder: Path | None = None,
    ) -> None:
        """Copy `state` as it is now.

        Args:
            state: what `Algorithm.state_dict` returned.
            memory_bytes: size up to which the copy stays in memory.
            folder: where the file lies; by default where temporary files do.

        Raises:
            StateError: the file cannot be written.
        """
        specs = (TensorSpec(name, value.dtype, tuple(value.shape)) for name, value in state.items())
        self._schema = Schema(specs)
        directory = tempfile.gettempdir() if folder is None else str(folder)
        self._file = tempfile.SpooledTemporaryFile(memory_bytes, dir=directory)  # noqa: SIM115
        try:
            for spec in self._schema.specs:
                flat = state[spec.name].detach().contiguous().view(-1).view(torch.uint8)
                for piece in torch.split(flat, _PIECE_BYTES):
                    self._file.write(piece.numpy().data)
        except OSError as error:
            self._file.close()
            reason = f"cannot keep the algorithm's state in {directory}: {error.strerror}"
            raise StateError(reason) from error

    def state(self) -> dict[str, Tensor]:
        """Read the copy back into new tensors, equal bit for bit."""
        tensors = Tensors.empty(self._schema)
        self._file.seek(0)
        self._file.readinto(tensors.block.numpy().data)
        return dict(tensors)

    def close(self) -> None:
        """Discard the copy."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
