"""What codecs take of a server's memory: nothing that grows with the number of clients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from allocations import peak_bytes
from collecting import CHUNK, Scene, Sender
from harness import exchange_of, filled

from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Encoding
from feddkd.engines.forms import Forms
from feddkd.tensors import Schema, Tensors, TensorSpec

FEW, MANY = 3, 24
REDUCED = Schema([TensorSpec("w", torch.float32, (20_000,)), TensorSpec("mean", torch.float32, (64,), trainable=False)])
SENT = Schema([TensorSpec("w", torch.float32, (1 << 20,)), TensorSpec("mean", torch.float32, (64,), trainable=False)])
CODECS = [find(name, unbiased=True) for name in ("int8", "bf16")]

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def reduction(codec: Codec, clients: int) -> tuple[int, int]:
    """Reduce contributions whose chunks come in turns: the peak of torch's memory, and the most that blocks took."""
    weights = {f"{number:02}": 1.0 for number in range(clients)}
    update, used = filled(REDUCED, 1), [0]

    def prepare() -> tuple[Scene, list[Sender]]:
        scene = Scene(weights, REDUCED, codec=codec)
        return scene, [Sender(scene, client, update) for client in weights]

    def compute(prepared: tuple[Scene, list[Sender]]) -> Tensors | None:
        scene, senders = prepared
        for steps in zip(*(sender.steps() for sender in senders), strict=True):
            for step in steps:
                step()
            used[0] = max(used[0], scene.spool.used_bytes)
            scene.reduce()
        return scene.result()

    return peak_bytes(prepare, compute), used[0]


@every_codec
def test_a_reduction_takes_one_model_whatever_the_number_of_clients(codec: Codec) -> None:
    few, many = reduction(codec, FEW), reduction(codec, MANY)
    assert abs(many[0] - few[0]) < 2 * CHUNK
    assert REDUCED.size_bytes <= many[0] < 1.25 * REDUCED.size_bytes
    # What waits, in memory up to a budget and then in a file, is the codes.
    size = Encoding(REDUCED, CHUNK, Scene(codec=codec).collection.exchange.reply_coding("a")).size_bytes
    assert (few[1], many[1]) == (FEW * size, MANY * size)


def broadcasting(clients: int, *, whole: int) -> float:
    """Adopt a model and prepare all messages for clients, some of which need the whole one: the peak in models."""
    names = [f"{number:02}" for number in range(clients)]
    models = filled(SENT, 1), filled(SENT, 2)

    def prepare() -> Broadcaster:
        server = Broadcaster(1 << 16, 3)
        sent, broadcast = server.broadcast(CODECS[0], models[0], names)
        server.received(broadcast, sent, names[whole:])
        return server

    def compute(server: Broadcaster) -> int:
        adopted = server.adopt(CODECS[0], models[1], in_mean=True)
        sent, broadcast = server.broadcast(CODECS[0], adopted, names)
        forms = Forms(replace(exchange_of(names, sent), broadcast=broadcast), 1 << 16, shared=True)
        size = sum(len(forms.message(client)) + sum(map(len, forms.payload(client).frames())) for client in names)
        assert [forms.is_step(client) for client in names] == [number >= whole for number in range(clients)]
        server.received(broadcast, sent, names)
        return size

    return peak_bytes(prepare, compute) / SENT.size_bytes


@pytest.mark.parametrize("whole", [0, 1])
def test_a_broadcast_takes_the_same_memory_for_any_number_of_clients(whole: int) -> None:
    few, many = broadcasting(FEW, whole=whole), broadcasting(MANY, whole=whole)
    assert abs(many - few) < 0.05
    assert many < 4.7  # difference, code, what it says, the model after it, and the mean
