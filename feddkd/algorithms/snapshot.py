"""Keep what an algorithm carried into a round, in case the round has to start again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from feddkd.errors import StateError

_PIECE_BYTES = 1 << 20


class _Kept(NamedTuple):
    """What is needed to read a tensor back from its bytes."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


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
            state: what `Algorithm.state_dict` returned: dense tensors of any dtype, on any device.
            memory_bytes: size up to which the copy stays in memory.
            folder: where the file lies; by default where temporary files do.

        Raises:
            StateError: the file cannot be written.
        """
        self._kept = [_Kept(name, value.dtype, value.shape, value.device) for name, value in state.items()]
        directory = tempfile.gettempdir() if folder is None else str(folder)
        self._file = tempfile.SpooledTemporaryFile(memory_bytes, dir=directory)  # noqa: SIM115
        try:
            for value in state.values():
                plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
                for piece in torch.split(_bytes_of(plain), _PIECE_BYTES):
                    self._file.write(piece.numpy().data)
        except OSError as error:
            self._file.close()
            reason = f"cannot keep the algorithm's state in {directory}: {error.strerror}"
            raise StateError(reason) from error

    def state(self) -> dict[str, Tensor]:
        """Read the copy back into new tensors, equal bit for bit and on the same devices."""
        self._file.seek(0)
        return {kept.name: self._read(kept) for kept in self._kept}

    def _read(self, kept: _Kept) -> Tensor:
        """Read the tensor whose bytes come next."""
        value = torch.empty(kept.shape, dtype=kept.dtype)
        self._file.readinto(_bytes_of(value).numpy().data)
        return value.to(kept.device)

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


def _bytes_of(value: Tensor) -> Tensor:
    """View a contiguous tensor as uint8 [bytes]."""
    # Not view(-1): it keeps the stride of a single element, which may be 2, and view(dtype) refuses it.
    return value.as_strided((value.numel(),), (1,)).view(torch.uint8)
