"""Find a codec by its name in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from feddkd.compression.cast import BFloat16, Half
from feddkd.compression.codec import Codec
from feddkd.compression.eden import Eden
from feddkd.compression.integer import Integer
from feddkd.compression.sparse import RandK, TopK
from feddkd.errors import ConfigError

_CODECS: dict[str, Callable[[bool], Codec]] = {
    "fp16": lambda _: Half(),
    "bf16": lambda _: BFloat16(),
    "int8": lambda unbiased: Integer("int8", bits=8, block=1024, stochastic=unbiased),
    "int4": lambda unbiased: Integer("int4", bits=4, block=256, stochastic=unbiased),
    **{f"eden{bits}": partial(Eden, bits) for bits in range(1, 5)},
}
_SPARSE: dict[str, Callable[[str, float], Codec]] = {"topk": TopK, "randk": RandK}
_LARGEST_SHARE = 0.25


def find(name: str, *, unbiased: bool) -> Codec:
    """Find a codec.

    Args:
        name: for instance "int8", or "topk:0.01" to keep one element in a hundred.
        unbiased: the mean over seeds of what is decoded is the vector, as uploads need that are
            averaged; otherwise the error of one vector is least, as a broadcast needs. fp16, bf16,
            topk and randk are the same for both: fp16 and bf16 err by very little, and a sender that
            uses topk or randk sends later what they left out.

    Raises:
        ConfigError: there is no such codec.
    """
    if name in _CODECS:
        return _CODECS[name](unbiased)
    kind, _, text = name.partition(":")
    if kind in _SPARSE:
        return _SPARSE[kind](name, _share(name, text))
    names = ", ".join([*_CODECS, *(f"{kind}:SHARE" for kind in _SPARSE)])
    raise ConfigError(f'there is no codec "{name}"; there is {names}')


def _share(name: str, text: str) -> float:
    """Read the share of elements that is kept. Raises ConfigError if it is out of range."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= _LARGEST_SHARE:
        raise ConfigError(f'codec "{name}": after the colon stands a share above 0 and up to {_LARGEST_SHARE}')
    return share
