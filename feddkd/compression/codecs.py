"""Find a codec by its name in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from feddkd.compression.cast import BFloat16, Half
from feddkd.compression.codec import Codec
from feddkd.compression.eden import Eden
from feddkd.compression.integer import Integer
from feddkd.errors import ConfigError

_CODECS: dict[str, Callable[[bool], Codec]] = {
    "fp16": lambda _: Half(),
    "bf16": lambda _: BFloat16(),
    "int8": lambda unbiased: Integer("int8", bits=8, block=1024, stochastic=unbiased),
    "int4": lambda unbiased: Integer("int4", bits=4, block=256, stochastic=unbiased),
    **{f"eden{bits}": partial(Eden, bits) for bits in range(1, 5)},
}


def find(name: str, *, unbiased: bool) -> Codec:
    """Find a codec.

    Args:
        name: for instance "int8".
        unbiased: the mean over seeds of what is decoded is the vector, as befits uploads that are
            averaged; otherwise the error of one vector is least, as befits what a server broadcasts.
            Codecs that round to nearest are the same for both.

    Raises:
        ConfigError: there is no such codec.
    """
    try:
        return _CODECS[name](unbiased)
    except KeyError:
        raise ConfigError(f'there is no codec "{name}"; there is {", ".join(_CODECS)}') from None
