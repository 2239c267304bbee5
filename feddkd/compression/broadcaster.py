"""Decide how a model reaches each client: as an encoded step from what it holds, or whole."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from feddkd.compression.broadcaster_state import NO_COST, BroadcasterState, CodecCost, KeptReplica
from feddkd.compression.codec import Codec
from feddkd.compression.encoding import Coding, Encoded, Encoding, derive_seed, relative_error
from feddkd.compression.replica import Replica
from feddkd.tensors import Schema, Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """The forms in which a payload is sent. Receivers keep it, because later broadcasts build on it.

    Attributes:
        content: version of the payload.
        whole: for clients that hold nothing that a step leads from.
        step: for those of `holders`; None if there are none.
        base: version of the model that the step is added to.
        holders: clients that replied when that model was sent.
        in_mean: as in `Replica.advance`.
        take_mean: after the step comes `Replica.take_mean`.
        cost: of the codec.
        has_codec: whether this exchange sends steps; else everybody gets the model whole, as without codecs.
    """

    content: bytes
    whole: Encoded
    step: Encoded | None = None
    base: bytes = b""
    holders: frozenset[str] = frozenset()
    in_mean: bool = False
    take_mean: bool = False
    cost: CodecCost = NO_COST
    has_codec: bool = True


@dataclass(slots=True)
class _Held:
    """What clients hold of one kind of payload, and what they have not been sent yet.

    Attributes:
        base: version of the model that `holders` hold.
        step: leads from there to the replica's model.
        whole: the replica's model as a snapshot, where it was adopted as that.
    """

    replica: Replica
    base: bytes
    holders: frozenset[str] = frozenset()
    step: Encoded | None = None
    in_mean: bool = False
    take_mean: bool = False
    cost: CodecCost = NO_COST
    whole: Encoded | None = None

    def kept(self) -> KeptReplica:
        """Return what another process needs to go on."""
        whole = self.whole if self.whole is not None and self.whole.encoding.coding.codec is not None else None
        return KeptReplica(
            model=self.replica.model,
            mean=self.replica.running_mean,
            mean_count=self.replica.mean_count,
            base=self.base,
            holders=self.holders,
            step=self.step,
            in_mean=self.in_mean,
            take_mean=self.take_mean,
            cost=self.cost,
            is_whole=self.whole is not None,
            whole=whole,
        )

    @classmethod
    def of(cls, kept: KeptReplica, whole: Encoded | None) -> _Held:
        """Go on from what `kept` returned."""
        replica = Replica.of(kept.model, kept.mean, kept.mean_count)
        return cls(replica, kept.base, kept.holders, kept.step, kept.in_mean, kept.take_mean, kept.cost, whole)


class Broadcaster:
    """The server side of the replicas: encodes steps, and tracks which client holds which model.

    Equal sequences of calls give equal codes.

    Attributes:
        num_codes: encoded so far; their number seeds the next one.
    """

    def __init__(self, chunk_bytes: int, seed: int, snapshot: Codec | None = None, *, zstd: bool = False) -> None:
        """Begin with clients that hold nothing.

        Args:
            chunk_bytes: most bytes of elements in one chunk.
            seed: of the run.
            snapshot: encodes whole models; None sends them as they are.
            zstd: compress all chunks without loss.
        """
        self._chunk_bytes = chunk_bytes
        self._seed = seed
        self._snapshot = snapshot
        self._uncoded = Coding(zstd=zstd)
        self._held: dict[Schema, _Held] = {}
        self.num_codes = 0

    def state(self) -> BroadcasterState:
        """Return all that later broadcasts build on, as it is now: write it down before the next call."""
        untouched = (held for held in self._held.values() if held.replica.is_untouched)
        return BroadcasterState(self.num_codes, tuple(held.kept() for held in untouched))

    def load(self, state: BroadcasterState) -> None:
        """Go on from what `state` returned. Raises SchemaError."""
        self.num_codes = state.num_codes
        self._held = {kept.model.schema: _Held.of(kept, self._whole_of(kept)) for kept in state.held}

    def lent(self, model: Tensors) -> Tensors:
        """Return the server's own copy of a model if clients are to hold that one: what is written to it must be noticed."""
        held = self._held.get(model.schema)
        return held.replica.model if held is not None and _same(model, held.replica.model) else model

    def _whole_of(self, kept: KeptReplica) -> Encoded | None:
        """Return the snapshot of a model that was adopted as one: uncoded, it is the model itself."""
        if kept.whole is not None or not kept.is_whole:
            return kept.whole
        return Encoding(kept.model.schema, self._chunk_bytes, self._uncoded).encode(kept.model)

    def forget(self) -> None:
        """Take it that no client holds anything: the next broadcast is whole."""
        self._held.clear()

    def adopt(self, codec: Codec, model: Tensors, *, in_mean: bool = False) -> Tensors:
        """Replace a model by the one that clients will hold once the encoded step to it has arrived.

        The next broadcast of the result sends that step. A second model that is adopted before then
        is sent whole, unless it is the mean of the models in the running mean.
        """
        held = self._untouched(model.schema)
        if held is None:
            return model
        if _same(model, held.replica.model):
            return held.replica.model
        if _same(model, held.replica.mean):
            held.replica.take_mean()
            held.take_mean = True
            return held.replica.model
        if held.step is not None or held.take_mean:
            held.holders = frozenset()  # they would need two steps at once
        held.whole = None
        self._take_step(held, codec, model, in_mean=in_mean)
        return held.replica.model

    def adopt_whole(self, model: Tensors) -> Tensors:
        """Replace a model by what its snapshot leaves of it; the next broadcast of that sends the snapshot to all."""
        self._hold_snapshot(model, self._snapshot, in_mean=False)
        return self._held[model.schema].replica.model

    def broadcast(self, codec: Codec | None, payload: Tensors, clients: Iterable[str], *, exact: bool = False) -> tuple[Tensors, Broadcast]:
        """Decide how `payload` is sent to `clients`.

        Args:
            codec: encodes steps; None sends no steps but those that were adopted.
            exact: clients have to receive every bit of it.

        Returns:
            What they will hold: `payload`, or what codecs leave of it; and how it gets there.
        """
        asked = frozenset(clients)
        held = self._untouched(payload.schema)
        exact = exact or codec is None
        if held is not None and held.whole is not None and _same(payload, held.replica.model):
            return self._whole(held, codec)
        if held is not None and exact and not _same(payload, held.replica.model):
            held = None
        if held is not None and held.holders & asked:
            if codec is not None:
                self.adopt(codec, payload)
            if held.step is None:
                held.step = self._nothing()
        snapshot = self._snapshot if not exact else None
        if held is None or self._whole_is_smaller(held, asked, snapshot):
            in_mean = held is not None and held.in_mean and not held.take_mean
            return self._whole(self._hold_snapshot(payload, snapshot, in_mean=in_mean), codec)
        holders = held.holders & asked
        whole = Encoding(payload.schema, self._chunk_bytes, self._uncoded).encode(held.replica.model)
        version = held.replica.version
        sent = Broadcast(version, whole, held.step, held.base, holders, held.in_mean, held.take_mean, held.cost)
        return held.replica.model, sent

    def received(self, broadcast: Broadcast, payload: Tensors, clients: Collection[str]) -> None:
        """Take in who has received a broadcast; the others hold nothing of use any more."""
        held = self._held[payload.schema]
        held.base, held.holders = broadcast.content, frozenset(clients)
        held.step, held.in_mean, held.take_mean, held.cost, held.whole = None, False, False, NO_COST, None

    def _untouched(self, schema: Schema) -> _Held | None:
        """Return what clients hold of a kind of payload; nothing if an algorithm wrote to the server's copy of it."""
        held = self._held.get(schema)
        if held is not None and not held.replica.is_untouched:
            del self._held[schema]
            return None
        return held

    def _take_step(self, held: _Held, codec: Codec, model: Tensors, *, in_mean: bool) -> None:
        started = time.perf_counter()
        wanted = _difference(model, held.replica.model)
        encoded = Encoding(wanted.schema, self._chunk_bytes, self._coding(codec)).encode(wanted)
        decoded = encoded.decode()
        held.replica.advance(decoded, in_mean=in_mean)
        held.step, held.in_mean, held.take_mean = encoded, in_mean, False
        held.cost = CodecCost(time.perf_counter() - started, relative_error(wanted, decoded))

    def _hold_snapshot(self, model: Tensors, codec: Codec | None, *, in_mean: bool) -> _Held:
        """Take it that no client holds anything, and begin again with a whole model."""
        started = time.perf_counter()
        coding = self._coding(codec) if codec is not None else self._uncoded
        # A copy: what is held must not change with what the algorithm goes on with.
        own = model if codec is not None else Tensors(model.schema, model.block.clone())
        whole = Encoding(model.schema, self._chunk_bytes, coding).encode(own)
        sent = whole.decode()
        replica = Replica(sent, in_mean=in_mean)
        cost = CodecCost(time.perf_counter() - started, relative_error(model, sent)) if codec is not None else NO_COST
        held = _Held(replica, replica.version, in_mean=in_mean, cost=cost, whole=whole)
        self._held[model.schema] = held
        return held

    def _whole(self, held: _Held, codec: Codec | None) -> tuple[Tensors, Broadcast]:
        assert held.whole is not None
        version, model = held.replica.version, held.replica.model
        return model, Broadcast(version, held.whole, in_mean=held.in_mean, cost=held.cost, has_codec=codec is not None)

    def _whole_is_smaller(self, held: _Held, asked: frozenset[str], snapshot: Codec | None) -> bool:
        """Compare sending the step to those who can use it and the model to the others with a snapshot for all."""
        holders = len(held.holders & asked)
        if not holders:
            return True
        assert held.step is not None
        model = held.replica.model.schema
        whole_bytes = model.size_bytes
        coding = Coding(snapshot)
        snapshot_bytes = Encoding(model, self._chunk_bytes, coding).size_bytes
        return len(asked) * snapshot_bytes < holders * held.step.size_bytes + (len(asked) - holders) * whole_bytes

    def _coding(self, codec: Codec) -> Coding:
        self.num_codes += 1
        return Coding(codec, derive_seed(self._seed, "broadcast", self.num_codes), self._uncoded.zstd)

    def _nothing(self) -> Encoded:
        return Encoding(Schema([]), self._chunk_bytes, self._uncoded).encode(Tensors(Schema([])))


def _same(first: Tensors, second: Tensors) -> bool:
    return first is second or torch.equal(first.block, second.block)


def _difference(model: Tensors, held: Tensors) -> Tensors:
    """Return the tensors in which two models differ: differences of those that are lossy, the others as in `model`."""
    changed = [spec for spec in model.schema.specs if not torch.equal(_bits(model[spec.name]), _bits(held[spec.name]))]
    return Tensors.copy_of(
        Schema(changed),
        {spec.name: model[spec.name] - held[spec.name] if spec.lossy else model[spec.name] for spec in changed},
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
