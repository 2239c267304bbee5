"""Define the interface of a codec: it encodes the elements of one chunk into a known number of bytes, and back."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor


class Codec(Protocol):
    """Encodes float32 vectors into bytes, and decodes them.

    A codec has no state: equal elements and equal seeds give equal bytes on one machine. `decode`
    computes with operations whose result does not depend on the machine, so that every receiver of
    a code has the same bits: additions, subtractions, multiplications and look-ups, element by
    element in a fixed order, without sums over many elements and without subnormal numbers.

    Attributes:
        name: as in the configuration, for instance "eden2".
        error_feedback: whether a sender adds what earlier codes left out to the next vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def error_feedback(self) -> bool: ...

    def size_bytes(self, num_elements: int) -> int:
        """Compute the size of the code of so many elements."""

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        """Encode a vector.

        Args:
            elements: float32 [n], contiguous, on any device, n >= 1; it needs no gradient.
            seed: 0 <= seed < 2**63; draws signs, positions and rounding.

        Returns:
            uint8 [size_bytes(n)] on the device of `elements`.

        Raises:
            ValueError: an element is not finite, or the code could decode to a vector whose norm is
                above 1e18, which every receiver refuses.
        """

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        """Decode a vector.

        Args:
            code: uint8 [size_bytes(num_elements)] on any device.
            seed: what the vector was encoded with.

        Returns:
            float32 [num_elements] on the device of `code`; all finite.

        Raises:
            SchemaError: no encoder makes such a code: a scale that is not finite, a position out of range.
        """

    def check(self, code: Tensor, num_elements: int) -> None:
        """Look for what no encoder makes, at less cost than `decode`. Raises SchemaError like it."""


class RegisteredCodec(Codec, Protocol):
    """A codec that a configuration can name: its class is registered in `CODECS`."""

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        """Make the codec.

        Args:
            name: one of those that the class is registered under; with a number in place of `SHARE`.
            unbiased: see `codecs.find`.

        Raises:
            ConfigError: the number is out of range.
        """
