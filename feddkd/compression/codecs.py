"""Find a codec by its name in the configuration."""

from __future__ import annotations

from feddkd.compression.codec import Codec
from feddkd.errors import ConfigError
from feddkd.registry import CODECS, codec_key


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
    known = CODECS.get(codec_key(name))
    if known is None:
        raise ConfigError(f'there is no codec "{name}"; there is {", ".join(CODECS)}')
    codec: Codec = known.of(name, unbiased=unbiased)
    return codec
