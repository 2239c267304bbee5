"""Write and read the state after a round: of the algorithm, of the codecs and of the rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from feddkd.aggregator.history import History
from feddkd.compression.broadcaster_state import BroadcasterState, CodecCost, KeptReplica
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Coding, Encoded, Encoding
from feddkd.errors import SchemaError, StateError
from feddkd.scheduler.blobs import Blob
from feddkd.scheduler.rule_book import ExchangeMemory, RuleState
from feddkd.tensors import DTYPE_NAMES, DTYPES, Schema, Tensors, TensorSpec

ALGORITHM = "algorithm/"
"""Begins the names of the algorithm's tensors."""

Spec = tuple[str, str, tuple[int, ...], bool, bool]


@dataclass(frozen=True, slots=True)
class _Code:
    """An `Encoded` without its bytes."""

    specs: list[Spec]
    chunk_bytes: int
    codec: str
    seed: int
    zstd: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """A `KeptReplica` without its tensors."""

    specs: list[Spec]
    mean: list[Spec] | None
    mean_count: int
    base: str
    holders: list[str]
    step: _Code | None
    in_mean: bool
    take_mean: bool
    cost: CodecCost
    is_whole: bool
    whole: _Code | None


@dataclass(frozen=True, slots=True)
class _MemoryText:
    """A `ExchangeMemory` without its tensors."""

    excess: dict[str, float] = dataclasses.field(default_factory=dict)
    running: dict[str, int] = dataclasses.field(default_factory=dict)
    previous: list[Spec] | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A `BroadcasterState` and a `RuleState` without their tensors."""

    num_codes: int
    held: list[_Held] = dataclasses.field(default_factory=list)
    rules: dict[str, _MemoryText] = dataclasses.field(default_factory=dict)


_TEXT = TypeAdapter(_Text)
_NAMES = TypeAdapter(list[str])


def encode_model(model: Tensors) -> tuple[Tensors, str]:
    """Lay out a round's model as the tensors and the text of a blob: the text names the tensors in their order."""
    return model, _NAMES.dump_json(list(model)).decode()


def decode_model(blob: Blob) -> Tensors:
    """Read what `encode_model` laid out, without the network that it is of. Raises StateError."""
    try:
        specs = [TensorSpec(name, blob.tensors[name].dtype, tuple(blob.tensors[name].shape)) for name in _NAMES.validate_json(blob.text)]
        return Tensors.copy_of(Schema(specs), blob.tensors)
    except (ValidationError, SchemaError, KeyError) as error:
        raise StateError(f"the model of a round cannot be read: {error}") from error


def encode(algorithm: Mapping[str, Tensor], codecs: BroadcasterState, rules: RuleState) -> tuple[dict[str, Tensor], str]:
    """Lay out a state as the tensors and the text of a blob.

    Args:
        algorithm: what `Algorithm.state_dict` returned.
        codecs: what `Downlink.state` returned.
        rules: what `RuleBook.state` returned.
    """
    tensors = {f"{ALGORITHM}{name}": value for name, value in algorithm.items()}
    held = []
    for number, kept in enumerate(codecs.held):
        tensors |= _tensors_of(kept, f"codec/{number}/")
        held.append(
            _Held(
                specs=_specs(kept.model.schema),
                mean=_specs(kept.mean.schema) if kept.mean is not None else None,
                mean_count=kept.mean_count,
                base=kept.base.hex(),
                holders=sorted(kept.holders),
                step=_code(kept.step),
                in_mean=kept.in_mean,
                take_mean=kept.take_mean,
                cost=kept.cost,
                is_whole=kept.is_whole,
                whole=_code(kept.whole),
            )
        )
    pasts = {}
    for name, past in rules.past.items():
        if past.previous is not None:
            tensors |= {f"rules/{name}/{path}": value for path, value in past.previous.items()}
        specs = _specs(past.previous.schema) if past.previous is not None else None
        pasts[name] = _MemoryText(dict(past.history.excess), dict(past.running), specs)
    return tensors, _TEXT.dump_json(_Text(codecs.num_codes, held, pasts)).decode()


def decode(blob: Blob) -> tuple[dict[str, Tensor], BroadcasterState, RuleState]:
    """Read what `encode` laid out. Raises StateError."""
    try:
        found = _TEXT.validate_json(blob.text)
        past = {name: _past(own, blob.tensors, f"rules/{name}/") for name, own in found.rules.items()}
        held = tuple(_kept(own, blob.tensors, f"codec/{number}/") for number, own in enumerate(found.held))
    except (ValidationError, SchemaError, KeyError, ValueError) as error:
        raise StateError(f"the state of a round cannot be read: {error}") from error
    algorithm = {name.removeprefix(ALGORITHM): value for name, value in blob.tensors.items() if name.startswith(ALGORITHM)}
    return algorithm, BroadcasterState(found.num_codes, held), RuleState(past)


def _past(own: _MemoryText, tensors: Mapping[str, Tensor], prefix: str) -> ExchangeMemory:
    previous = _tensors(own.previous, tensors, prefix) if own.previous is not None else None
    return ExchangeMemory(History(own.excess), own.running, previous)


def _tensors_of(kept: KeptReplica, prefix: str) -> dict[str, Tensor]:
    tensors = {f"{prefix}model/{name}": value for name, value in kept.model.items()}
    if kept.mean is not None:
        tensors |= {f"{prefix}mean/{name}": value for name, value in kept.mean.items()}
    for name, code in (("step", kept.step), ("whole", kept.whole)):
        if code is not None:
            tensors[f"{prefix}{name}"] = code.block
    return tensors


def _kept(own: _Held, tensors: Mapping[str, Tensor], prefix: str) -> KeptReplica:
    return KeptReplica(
        model=_tensors(own.specs, tensors, f"{prefix}model/"),
        mean=_tensors(own.mean, tensors, f"{prefix}mean/") if own.mean is not None else None,
        mean_count=own.mean_count,
        base=bytes.fromhex(own.base),
        holders=frozenset(own.holders),
        step=_encoded(own.step, tensors, f"{prefix}step"),
        in_mean=own.in_mean,
        take_mean=own.take_mean,
        cost=own.cost,
        is_whole=own.is_whole,
        whole=_encoded(own.whole, tensors, f"{prefix}whole"),
    )


def _specs(schema: Schema) -> list[Spec]:
    return [(spec.name, DTYPE_NAMES[spec.dtype], spec.shape, spec.trainable, spec.extra) for spec in schema.specs]


def _schema(specs: list[Spec]) -> Schema:
    return Schema(TensorSpec(name, DTYPES[dtype], shape, trainable, extra) for name, dtype, shape, trainable, extra in specs)


def _tensors(specs: list[Spec], tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    schema = _schema(specs)
    return Tensors.copy_of(schema, {spec.name: tensors[prefix + spec.name] for spec in schema.specs})


def _code(encoded: Encoded | None) -> _Code | None:
    if encoded is None:
        return None
    encoding = encoded.encoding
    coding = encoding.coding
    return _Code(_specs(encoding.schema), encoding.chunk_bytes, coding.name, coding.seed, coding.zstd)


def _encoded(code: _Code | None, tensors: Mapping[str, Tensor], name: str) -> Encoded | None:
    if code is None:
        return None
    codec = find(code.codec, unbiased=False) if code.codec else None
    encoding = Encoding(_schema(code.specs), code.chunk_bytes, Coding(codec, code.seed, code.zstd))
    block = tensors[name]
    if block.shape != (encoding.size_bytes,):
        raise SchemaError(f"{name} has {block.numel()} bytes, not {encoding.size_bytes}")
    return Encoded(encoding, block)
