"""What a round leaves to the next one is the same in another process: the next broadcasts have the same bytes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from coding import MIXED
from harness import filled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.compression.broadcaster import Broadcast, Broadcaster
from feddkd.compression.broadcaster_state import BroadcasterState
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Encoded
from feddkd.errors import StateError
from feddkd.scheduler.blobs import Blob, BlobStore
from feddkd.scheduler.checkpoint import decode, decode_model, encode, encode_model
from feddkd.scheduler.rule_book import RuleState
from feddkd.tensors import Schema, Tensors, TensorSpec

CHUNK_BYTES = 1024
NAMES = ["fp16", "bf16", "int8", "int4", "eden1", "eden4", "topk:0.1", "randk:0.25"]
CODECS = {name: find(name, unbiased=False) for name in NAMES}
SMALL = Schema(
    [
        TensorSpec("w", torch.float32, (300,)),
        TensorSpec("mean", torch.float32, (2,), trainable=False),
        TensorSpec("v", torch.float64, (3,)),
        TensorSpec("count", torch.int64, (), trainable=False),
    ]
)
OTHER_KIND = Schema([TensorSpec("g", torch.float32, (40,))])


class Process:
    """The server's half, in a process that may be started again."""

    def __init__(self, snapshot: str | None, *, zstd: bool) -> None:
        self._snapshot = CODECS[snapshot] if snapshot is not None else None
        self._zstd = zstd
        self.broadcaster = self._new()

    def _new(self) -> Broadcaster:
        return Broadcaster(CHUNK_BYTES, 5, self._snapshot, zstd=self._zstd)

    def restart(self, store: BlobStore) -> None:
        name = store.write(*encode({}, self.broadcaster.state(), RuleState()))
        algorithm, codecs, rules = decode(store.read(name))
        assert (algorithm, rules) == ({}, RuleState())
        self.broadcaster = self._new()
        self.broadcaster.load(codecs)


def facts(sent: Tensors, broadcast: Broadcast | None = None) -> list[Any]:
    """All that reaches clients, bit for bit."""
    found: list[Any] = [sent.schema, bytes(sent.block.numpy())]
    for field in fields(broadcast) if broadcast is not None else ():
        value = getattr(broadcast, field.name)
        if isinstance(value, Encoded):
            value = [value.encoding.schema, value.encoding.coding, bytes(value.block.numpy())]
        found.append(value.error if field.name == "cost" else value)
    return found


@dataclass
class Script:
    """What an algorithm does with the broadcaster, the same for each process.

    Attributes:
        chosen: makes the choices.
        model: the global one, as the server holds it.
    """

    chosen: random.Random
    codec: Codec
    model: Tensors
    seed: int = 0

    def step(self, broadcaster: Broadcaster) -> list[Any]:
        action = self.chosen.choices(
            ["send", "adopt", "adopt whole", "adopt the mean", "send another kind", "forget", "write"], [8, 6, 1, 2, 2, 0.5, 1]
        )
        return getattr(self, "_" + action[0].replace(" ", "_"))(broadcaster)  # type: ignore[no-any-return]

    def _fresh(self, schema: Schema) -> Tensors:
        self.seed += 1
        return filled(schema, self.seed)

    def _some(self, names: str) -> str:
        return names if self.chosen.random() < 0.5 else "".join(name for name in names if self.chosen.random() < 0.7)

    def _send(self, broadcaster: Broadcaster) -> list[Any]:
        asked, exact = self._some("abcd"), self.chosen.random() < 0.2
        sent, broadcast = broadcaster.broadcast(self.codec, self.model, asked, exact=exact)
        broadcaster.received(broadcast, sent, self._some(asked))
        self.model = sent
        return facts(sent, broadcast)

    def _send_another_kind(self, broadcaster: Broadcaster) -> list[Any]:
        sent, broadcast = broadcaster.broadcast(self.codec, self._fresh(OTHER_KIND), "abc")
        broadcaster.received(broadcast, sent, "abc")
        return facts(sent, broadcast)

    def _adopt(self, broadcaster: Broadcaster) -> list[Any]:
        self.model = broadcaster.adopt(self.codec, self._fresh(self.model.schema), in_mean=self.chosen.random() < 0.6)
        return facts(self.model)

    def _adopt_whole(self, broadcaster: Broadcaster) -> list[Any]:
        self.model = broadcaster.adopt_whole(self._fresh(self.model.schema))
        return facts(self.model)

    def _adopt_the_mean(self, broadcaster: Broadcaster) -> list[Any]:
        held = broadcaster._held.get(self.model.schema)
        if held is not None and held.replica.is_untouched:
            self.model = broadcaster.adopt(self.codec, held.replica.mean.replace({}))
        return facts(self.model)

    def _forget(self, broadcaster: Broadcaster) -> list[Any]:
        broadcaster.forget()
        return []

    def _write(self, broadcaster: Broadcaster) -> list[Any]:
        """As an algorithm that changes the model which it was given."""
        self.model.block.add_(0)
        next(iter(self.model.values())).add_(1)
        return facts(self.model)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    codec=st.sampled_from(NAMES),
    snapshot=st.sampled_from([None, "bf16", "int8"]),
    zstd=st.booleans(),
    often=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_restarts_change_no_byte_of_any_broadcast(
    store: BlobStore, seed: int, codec: str, snapshot: str | None, zstd: bool, often: float
) -> None:
    restarts = random.Random(seed + 1)
    steady, restarted = Process(snapshot, zstd=zstd), Process(snapshot, zstd=zstd)
    scripts = [Script(random.Random(seed), CODECS[codec], filled(SMALL, 0)) for _ in range(2)]
    for _ in range(15):
        if restarts.random() < often:
            restarted.restart(store)
            scripts[1].model = restarted.broadcaster.lent(Tensors.copy_of(SMALL, scripts[1].model))
        assert scripts[0].step(steady.broadcaster) == scripts[1].step(restarted.broadcaster)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("snapshot", [None, "bf16"])
def test_a_step_that_was_not_sent_yet_is_sent_by_the_next_process(store: BlobStore, codec: str, snapshot: str | None) -> None:
    found = []
    for is_restarted in (False, True):
        process = Process(snapshot, zstd=False)
        sent, broadcast = process.broadcaster.broadcast(CODECS[codec], filled(MIXED, 1), "ab")
        process.broadcaster.received(broadcast, sent, "ab")
        adopted = process.broadcaster.adopt(CODECS[codec], filled(MIXED, 2), in_mean=True)
        if is_restarted:
            process.restart(store)
            adopted = Tensors.copy_of(MIXED, dict(adopted))
        sent, broadcast = process.broadcaster.broadcast(CODECS[codec], adopted, "ab")
        assert broadcast.step is not None
        assert broadcast.in_mean
        found.append(facts(sent, broadcast))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_running_mean_goes_on_with_the_models_that_are_in_it(store: BlobStore, count: int) -> None:
    found = []
    for is_restarted in (False, True):
        process = Process(None, zstd=False)
        for seed in range(count):
            model = process.broadcaster.adopt(CODECS["int8"], filled(SMALL, seed), in_mean=True)
            sent, broadcast = process.broadcaster.broadcast(CODECS["int8"], model, "ab")
            process.broadcaster.received(broadcast, sent, "ab")
            if is_restarted:
                process.restart(store)
        held = process.broadcaster._held[SMALL].replica
        found.append([held.mean_count, held.running_mean and bytes(held.running_mean.block.numpy()), held.version])
    assert found[0] == found[1]


def test_the_algorithms_tensors_come_back_beside_those_of_the_codecs(store: BlobStore) -> None:
    algorithm = {
        "momentum/layer.weight": torch.randn(3, 4),
        "rounds": torch.tensor(7),
        "": torch.tensor([True, False]),
        "codec/0/model/w": torch.zeros(0, 3, dtype=torch.float64),
    }
    process = Process("int8", zstd=True)
    process.broadcaster.adopt_whole(filled(SMALL, 3))
    state = process.broadcaster.state()
    found, codecs, _ = decode(store.read(store.write(*encode(algorithm, state, RuleState()))))
    assert found.keys() == algorithm.keys()
    assert all(found[name].dtype == value.dtype and found[name].equal(value) for name, value in algorithm.items())
    assert (codecs.num_codes, len(codecs.held)) == (state.num_codes, 1)


def test_a_run_without_codecs_leaves_the_algorithms_tensors_alone(store: BlobStore) -> None:
    name = store.write(*encode({"x": torch.ones(2)}, BroadcasterState(3, ()), RuleState()))
    algorithm, codecs, _ = decode(store.read(name))
    assert list(algorithm) == ["x"]
    assert (codecs.num_codes, codecs.held) == (3, ())


def laid_out() -> tuple[dict[str, Tensor], str]:
    process = Process(None, zstd=False)
    sent, broadcast = process.broadcaster.broadcast(CODECS["int8"], filled(SMALL, 0), "ab")
    process.broadcaster.received(broadcast, sent, "ab")
    process.broadcaster.adopt(CODECS["int8"], filled(SMALL, 1))
    return encode({}, process.broadcaster.state(), RuleState())


def test_a_state_that_lacks_something_is_refused() -> None:
    tensors, text = laid_out()
    decode(Blob(tensors, text))
    for name in tensors:
        with pytest.raises(StateError, match="the state of a round cannot be read"):
            decode(Blob({other: value for other, value in tensors.items() if other != name}, text))


def test_a_state_of_other_sizes_is_refused() -> None:
    tensors, text = laid_out()
    for name, value in tensors.items():
        with pytest.raises(StateError, match="the state of a round cannot be read"):
            decode(Blob({**tensors, name: torch.cat([value.reshape(-1), value.reshape(-1)[:1]])}, text))


@pytest.mark.parametrize(
    "change", [{"base": "xy"}, {"specs": [["w", "float128", [3], True, False]]}, {"mean_count": "many"}, {"holders": 3}]
)
def test_a_text_that_says_something_else_is_refused(change: dict[str, Any]) -> None:
    tensors, text = laid_out()
    found = json.loads(text)
    found["held"][0] |= change
    for damaged in (json.dumps(found), "", "[]", text[:-1]):
        with pytest.raises(StateError, match="the state of a round cannot be read"):
            decode(Blob(tensors, damaged))


def test_a_model_comes_back_with_its_tensors_in_order(store: BlobStore) -> None:
    model = filled(MIXED, 4)
    found = decode_model(store.read(store.write(*encode_model(model))))
    assert list(found) == list(model)
    assert found.sha256() == model.sha256()


def test_a_model_that_lacks_a_tensor_is_refused() -> None:
    tensors, text = encode_model(filled(SMALL, 4))
    with pytest.raises(StateError, match="the model of a round cannot be read"):
        decode_model(Blob({"w": tensors["w"]}, text))
