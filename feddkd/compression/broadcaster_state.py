"""The state of broadcasts that survives a server process: what clients hold, and what they were not sent yet."""

from __future__ import annotations

from dataclasses import dataclass

from feddkd.compression.encoding import Encoded
from feddkd.tensors import Tensors


@dataclass(frozen=True, slots=True)
class CodecCost:
    """What the codec of a broadcast cost.

    Attributes:
        seconds: spent on it at the server.
        error: ||what is sent - what was to be sent|| over the norm of the step that was to be taken.
    """

    seconds: float = 0.0
    error: float = 0.0


NO_COST = CodecCost()


@dataclass(frozen=True, slots=True, eq=False)
class KeptReplica:
    """The models that clients hold of one kind of payload, as stored for the next process.

    Attributes:
        model: what the server holds, and clients once they have taken `step`.
        mean: the running mean of the trainable parameters; None if it is empty.
        mean_count: models in it.
        base: as in `Broadcast`, like `holders`, `step`, `in_mean`, `take_mean` and `cost`.
        is_whole: `model` was adopted as a snapshot.
        whole: the snapshot's code, where it has a codec.
    """

    model: Tensors
    mean: Tensors | None
    mean_count: int
    base: bytes
    holders: frozenset[str]
    step: Encoded | None
    in_mean: bool
    take_mean: bool
    cost: CodecCost
    is_whole: bool
    whole: Encoded | None


@dataclass(frozen=True, slots=True, eq=False)
class BroadcasterState:
    """Everything that the broadcasts of a run build on.

    Attributes:
        num_codes: as in `Broadcaster`.
        held: for each kind of payload.
    """

    num_codes: int
    held: tuple[KeptReplica, ...]
