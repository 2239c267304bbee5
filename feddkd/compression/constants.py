"""Name the tensors of a network that a client receives once, by their content."""

from __future__ import annotations

from dataclasses import dataclass, field

from feddkd.compression.replica import version_of
from feddkd.tensors import Schema, Tensors

CONSTANT = "constant"
"""Where they travel beside a broadcast, tensor "a.weight" is "constant/a.weight"."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Frozen parameters, constant buffers, and the first values of buffers that clients keep for themselves.

    Equal versions are equal constants.

    Attributes:
        tensors: with their values.
        version: the first 16 bytes of the SHA-256 of the values; empty where there are no tensors.
    """

    tensors: Tensors = field(default_factory=lambda: Tensors(Schema([])), compare=False)
    version: bytes = b""

    @classmethod
    def of(cls, tensors: Tensors) -> Constants:
        """Name tensors by their content."""
        return cls(tensors, version_of(tensors) if len(tensors) else b"")

    @property
    def schema(self) -> Schema:
        return self.tensors.schema


NO_CONSTANTS = Constants()
