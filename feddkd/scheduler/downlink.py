"""Encodes the server's broadcasts to the clients of a run with the configured codecs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from feddkd.compression import lossless
from feddkd.compression.broadcaster import Broadcast, Broadcaster
from feddkd.compression.broadcaster_state import BroadcasterState
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.config import Config
from feddkd.config.communication import PLAIN
from feddkd.exchange import DELIVER, Exchange, ExchangeId
from feddkd.tensors import Tensors


class Downlink:
    """Encodes broadcasts, and remembers what clients hold, over all rounds of a run."""

    def __init__(self, config: Config) -> None:
        """Begin with clients that hold nothing. Raises ConfigError for a codec that is not known or not installed."""
        check_codecs(config)
        self._communication = config.communication
        snapshot = named_codec(config.communication.snapshot, unbiased=False)
        self._broadcaster = Broadcaster(config.transport.chunk_bytes, config.seed, snapshot, zstd=config.communication.zstd)

    def _codec(self, exchange: str) -> Codec | None:
        return named_codec(self._communication.codec_down(exchange), unbiased=False)

    @property
    def _sends_steps(self) -> bool:
        communication = self._communication
        names = (communication.down, *(own.down for own in communication.exchanges.values()))
        return any(name not in (None, PLAIN) for name in names)

    @property
    def codes(self) -> int:
        """Broadcasts that were encoded so far: their number seeds the next one."""
        return self._broadcaster.num_codes

    def state(self) -> BroadcasterState:
        """Return what later rounds build on."""
        return self._broadcaster.state()

    def load(self, state: BroadcasterState) -> None:
        """Go on from what `state` returned. Raises SchemaError."""
        self._broadcaster.load(state)

    def lent(self, model: Tensors) -> Tensors:
        """Return the server's own copy of a model, where it has one."""
        return self._broadcaster.lent(model)

    def forget(self, codes: int | None = None) -> None:
        """Take it that no client holds anything.

        Args:
            codes: that were encoded so far, where another process did it.
        """
        self._broadcaster.forget()
        if codes is not None:
            self._broadcaster.num_codes = codes

    def adopt(self, exchange: str, model: Tensors, *, in_mean: bool) -> Tensors:
        """Replace a model by the one that clients will hold once it is sent."""
        codec = self._codec(exchange)
        return model if codec is None else self._broadcaster.adopt(codec, model, in_mean=in_mean)

    def adopt_whole(self, model: Tensors) -> Tensors:
        """Replace a model by what its snapshot leaves of it, where most clients of the next round get that."""
        return self._broadcaster.adopt_whole(model) if self._sends_steps else model

    def broadcast(self, exchange: ExchangeId, payload: Tensors, clients: Mapping[str, float]) -> tuple[Tensors, Broadcast | None]:
        """Decide how a payload is sent; also returns what clients will hold of it."""
        if not self._sends_steps:
            return payload, None
        return self._broadcaster.broadcast(self._codec(exchange.name), payload, clients, exact=exchange.name == DELIVER)

    def received(self, exchange: Exchange, clients: Collection[str]) -> None:
        """Take in which clients have received the payload of an exchange."""
        if exchange.broadcast is not None:
            self._broadcaster.received(exchange.broadcast, exchange.payload, clients)


def check_codecs(config: Config) -> None:
    """Check that what encodes and compresses is installed. Raises ConfigError."""
    if config.communication.zstd:
        lossless.require()


def named_codec(name: str, *, unbiased: bool) -> Codec | None:
    """Find the codec that a configuration names; None for none. Raises ConfigError."""
    return None if name == PLAIN else find(name, unbiased=unbiased)
