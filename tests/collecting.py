"""A collection and the clients that send to it, on a clock that the test moves, without a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from harness import RUN_ID, filled, mean_of

from feddkd.aggregator.rule import Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.compression.codec import Codec
from feddkd.compression.encoding import Encoding
from feddkd.engines.collection import Arrival, Collection, Judgement
from feddkd.engines.fold import Fold
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.exchange import Closing, Exchange, ExchangeId, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import answer_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

EXCHANGE = ExchangeId(RUN_ID, 1, 0, "local_train", 0)
CHUNK = 1024
LARGE = Schema(
    [
        TensorSpec("w", torch.float32, (100, 97)),
        TensorSpec("d", torch.float64, (500,)),  # the bits of its mean show the order of summation
        TensorSpec("n", torch.int64, (33,)),
        TensorSpec("h", torch.float16, (1001,)),
        TensorSpec("b", torch.bool, (1500,)),
    ]
)
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 7.0, "d": 2.0}
CONTRIBUTIONS = {client: filled(LARGE, seed) for seed, client in enumerate("abcd")}
for contribution in CONTRIBUTIONS.values():
    contribution["d"].mul_(math.pi)  # all 53 bits


def expected(*clients: str) -> str:
    """The SHA-256 of the mean of these clients' contributions."""
    return mean_of({client: CONTRIBUTIONS[client] for client in clients}, WEIGHTS).sha256()


class Scene:
    """One exchange as an engine would carry it out; nothing happens but what the test asks for.

    Attributes:
        now: seconds on the clock.
    """

    def __init__(
        self,
        weights: Mapping[str, float] = WEIGHTS,
        schema: Schema | None = LARGE,
        *,
        rule: Rule = WeightedMean(),  # noqa: B008
        closing: Closing = Closing(100.0),  # noqa: B008
        max_norm: float | None = None,
        budget_bytes: int = 1 << 20,
        max_evaluated: Mapping[str, int] | None = None,
        evaluate: bool = True,
        codec: Codec | None = None,
        hashes_bytes: bool = False,
    ) -> None:
        self.now = 0.0
        self.spool = Spool(budget_bytes, CHUNK if codec is None else CHUNK + CODE_MARGIN_BYTES)
        payload = Tensors(schema or Schema([]))
        exchange = Exchange(EXCHANGE, weights, payload, schema, rule, closing, evaluate, max_norm, reply_codec=codec)
        self.collection = Collection(
            exchange, self.spool, chunk_bytes=CHUNK, now=0.0, max_evaluated=max_evaluated, hashes_bytes=hashes_bytes
        )
        self.fold = Fold(self.collection, schema, CHUNK) if schema is not None else None

    def advance_to(self, now: float) -> None:
        """Move the clock, and give up those whose time is over."""
        self.now = now
        self.collection.expire(now)

    def reduce(self) -> None:
        """Reduce as far as possible."""
        assert self.fold is not None
        while (step := self.fold.next_step()) is not None:
            step()
            self.fold.step_done()

    def result(self) -> Tensors | None:
        self.reduce()
        assert self.fold is not None
        assert self.fold.finished
        return self.fold.result

    def missing(self) -> dict[str, str]:
        return {client: missing.reason for client, missing in self.collection.missing().items()}


class Sender:
    """One client's end: its reply, message by message."""

    def __init__(self, scene: Scene, client: str, contribution: Tensors | None, reply: Reply | None = None) -> None:
        self.scene = scene
        self.client = client
        how = scene.collection.exchange.reply_coding(client)
        self.payload = None if contribution is None else Payload.of(Encoding(contribution.schema, CHUNK, how).encode(contribution))
        self.reply = reply or Reply(loss=1.0)

    @property
    def answer(self) -> pb.Answer:
        return pb.ParticipateRequest.FromString(answer_message(EXCHANGE, self.reply, self.payload)).answer

    def steps(self, offset: int = 0) -> list[Callable[[], Judgement | None]]:
        """The messages of one reply, with the chunks from `offset` on; each returns what the client is told at once."""
        frames = list(self.payload.frames(offset)) if self.payload is not None else []
        return [lambda: self.header(again=offset > 0), *((lambda frame=frame: self.chunk(frame)) for frame in frames)]

    def send(self, offset: int = 0) -> list[Judgement]:
        """Send everything."""
        return [judgement for step in self.steps(offset) if (judgement := step()) is not None]

    def header(self, *, again: bool = False) -> Judgement | None:
        answer = self.answer
        if again and self.payload is not None:
            answer.payload.content_sha256 = self.payload.content_sha256
        return self.scene.collection.reply(self.client, answer, self.scene.now)

    def chunk(self, frame: bytes) -> Judgement | None:
        accepted = self.scene.collection.accept(self.client, decode_chunk(frame))
        if isinstance(accepted, Arrival):
            accepted.write()
            return self.scene.collection.store(accepted, self.scene.now)
        return accepted
