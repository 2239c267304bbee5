import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from harness import RUN_ID, SCHEMA, filled, mean_of
from hypothesis import given
from hypothesis import strategies as st

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.engines.intake import Intake
from feddkd.engines.upload import Progress
from feddkd.exchange import Evaluation, ExchangeId, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import Verdict, answer_message
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

_T = TypeVar("_T")


class Sender:
    """One client's end: its answer, message by message."""

    def __init__(self, intake: Intake, client: str, contribution: Tensors | None, reply: Reply | None = None) -> None:
        self.intake = intake
        self.client = client
        self.payload = Payload(contribution, CHUNK) if contribution is not None else None
        self.reply = reply or Reply(loss=1.0)

    @property
    def answer(self) -> pb.Answer:
        return pb.ParticipateRequest.FromString(answer_message(EXCHANGE, self.reply, self.payload)).answer

    def steps(self) -> list[Callable[[], Awaitable[pb.Receipt | None]]]:
        """The messages of one answer; each returns the receipt it is given at once."""
        frames = list(self.payload.frames()) if self.payload is not None else []
        return [self._header, *((lambda frame=frame: self._chunk(frame)) for frame in frames)]

    async def send(self) -> list[pb.Receipt]:
        """Everything, as fast as the server takes it."""
        return [receipt for step in self.steps() if (receipt := await step()) is not None]

    async def _header(self) -> pb.Receipt | None:
        _, receipt = self.intake.answered(self.client, self.answer)
        return parsed(receipt)

    async def _chunk(self, frame: bytes) -> pb.Receipt | None:
        return parsed(await self.intake.received(self.intake.uploads[self.client], decode_chunk(frame)))


def parsed(message: bytes | None) -> pb.Receipt | None:
    return pb.ParticipateResponse.FromString(message).receipt if message is not None else None


EXECUTOR = ThreadPoolExecutor(1)


def intake_of(
    weights: Mapping[str, float],
    schema: Schema | None = LARGE,
    staging_bytes: int = 1 << 20,
    ask_again: Callable[[str], None] = lambda _: None,
    stall_timeout_s: float = 100,
) -> Intake:
    return Intake(
        EXCHANGE,
        weights,
        schema,
        rule=WeightedMean,
        chunk_bytes=CHUNK,
        staging_bytes=staging_bytes,
        stall_timeout_s=stall_timeout_s,
        ask_again=ask_again,
        executor=EXECUTOR,
    )


def run(coroutine: Coroutine[None, None, _T]) -> _T:
    return asyncio.run(asyncio.wait_for(coroutine, 100))


CONTRIBUTIONS = {client: filled(LARGE, seed) for seed, client in enumerate("abcd")}
for contribution in CONTRIBUTIONS.values():
    contribution["d"].mul_(math.pi)  # all 53 bits
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 7.0, "d": 2.0}
EXPECTED = mean_of(CONTRIBUTIONS, WEIGHTS).sha256()


@given(st.integers(0, 2**32), st.sampled_from([0, 20_000, 1 << 20]))
def test_however_the_chunks_of_all_clients_interleave_the_mean_has_the_same_bits(seed: int, staging_bytes: int) -> None:
    """Whichever client is ahead, until its window is full and it is held back."""
    chooser = random.Random(seed)

    async def exchange() -> Tensors | None:
        intake = intake_of(WEIGHTS, staging_bytes=staging_bytes)
        reducing = asyncio.create_task(intake.reduce(100))
        queues = {client: Sender(intake, client, CONTRIBUTIONS[client]).steps() for client in WEIGHTS}
        held: dict[str, asyncio.Task[pb.Receipt | None]] = {}
        while queues or held:
            free = [client for client in queues if client not in held]
            if not free:
                await asyncio.wait(held.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                client = chooser.choice(free)
                held[client] = asyncio.ensure_future(queues[client].pop(0)())
                await asyncio.sleep(0)
            for client in [client for client, step in held.items() if step.done()]:
                assert held.pop(client).result() is None
                if not queues[client]:
                    del queues[client]
        return await reducing

    mean = run(exchange())
    assert mean is not None
    assert mean.sha256() == EXPECTED


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
def test_clients_that_answer_one_after_another_give_the_same_bits_in_any_order(order: str) -> None:
    async def exchange() -> Tensors | None:
        intake = intake_of(WEIGHTS)
        for client in order:
            assert await Sender(intake, client, CONTRIBUTIONS[client]).send() == []
        return await intake.reduce(100)

    mean = run(exchange())
    assert mean is not None
    assert mean.sha256() == EXPECTED


def test_a_client_that_is_ahead_is_held_back_when_its_window_is_full() -> None:
    async def exchange() -> None:
        intake = intake_of({"a": 1.0, "b": 1.0}, staging_bytes=20 * CHUNK)
        steps = Sender(intake, "a", CONTRIBUTIONS["a"]).steps()
        await steps.pop(0)()
        taken = 0
        while True:
            step = asyncio.ensure_future(steps.pop(0)())
            await asyncio.sleep(0)
            taken += 1
            if not step.done():
                break
        assert taken == 11  # half of the staging memory; two chunks are small ones
        assert intake.uploads["a"].ready
        intake.lose("a", "enough")
        await step

    run(exchange())


def test_the_window_of_a_client_is_two_chunks_at_least() -> None:
    async def exchange() -> Tensors | None:
        intake = intake_of(WEIGHTS, staging_bytes=1)
        senders = [asyncio.create_task(Sender(intake, client, CONTRIBUTIONS[client]).send()) for client in WEIGHTS]
        mean = await intake.reduce(100)
        for sender in senders:
            assert await sender == []
        return mean

    mean = run(exchange())
    assert mean is not None
    assert mean.sha256() == EXPECTED


def test_when_a_client_is_lost_in_the_middle_those_whose_chunks_were_used_are_asked_again() -> None:
    async def exchange() -> tuple[Tensors | None, list[str]]:
        asked: list[str] = []
        again: list[asyncio.Task[list[pb.Receipt]]] = []

        def ask_again(client: str) -> None:
            asked.append(client)
            again.append(asyncio.create_task(Sender(intake, client, CONTRIBUTIONS[client]).send()))

        intake = intake_of(WEIGHTS, staging_bytes=1, ask_again=ask_again)
        reducing = asyncio.create_task(intake.reduce(100))
        first = [asyncio.create_task(Sender(intake, client, CONTRIBUTIONS[client]).send()) for client in "acd"]
        steps = Sender(intake, "b", CONTRIBUTIONS["b"]).steps()
        for step in steps[:5]:
            await step()
        assert intake.uploads["b"].consumed > 0
        assert not intake.interrupt("b")
        # Those who are still sending the first time run into the second: a stream has an order, so they end first.
        for sender in first:
            sender.cancel()
        return await reducing, asked

    mean, asked = run(exchange())
    assert asked == ["a", "c", "d"]
    assert mean is not None
    assert mean.sha256() == mean_of({client: CONTRIBUTIONS[client] for client in "acd"}, WEIGHTS).sha256()


def test_who_was_asked_again_may_still_lose_its_connection_and_come_back() -> None:
    async def exchange() -> Tensors | None:
        again: list[asyncio.Task[list[pb.Receipt]]] = []

        def ask_again(client: str) -> None:
            assert intake.interrupt(client)
            again.append(asyncio.create_task(Sender(intake, client, CONTRIBUTIONS[client]).send()))

        intake = intake_of({"a": 1.0, "b": 1.0}, staging_bytes=1, ask_again=ask_again)
        reducing = asyncio.create_task(intake.reduce(100))
        first = asyncio.create_task(Sender(intake, "a", CONTRIBUTIONS["a"]).send())
        for step in Sender(intake, "b", CONTRIBUTIONS["b"]).steps()[:5]:
            await step()
        intake.lose("b", "gone")
        first.cancel()
        return await reducing

    mean = run(exchange())
    assert mean is not None
    assert mean.sha256() == CONTRIBUTIONS["a"].sha256()


def test_a_connection_that_breaks_before_anything_was_used_may_come_back() -> None:
    async def exchange() -> Tensors | None:
        intake = intake_of({"a": 1.0})
        for step in Sender(intake, "a", CONTRIBUTIONS["a"]).steps()[:5]:
            await step()
        assert intake.interrupt("a")
        assert intake.awaits("a")
        assert await Sender(intake, "a", CONTRIBUTIONS["a"]).send() == []
        assert not intake.interrupt("a")  # all is here: the connection is no longer needed
        return await intake.reduce(100)

    mean = run(exchange())
    assert mean is not None
    assert mean.sha256() == CONTRIBUTIONS["a"].sha256()


def test_an_answer_after_a_broken_connection_must_have_the_same_content() -> None:
    async def exchange() -> list[pb.Receipt]:
        intake = intake_of({"a": 3.0})
        await Sender(intake, "a", CONTRIBUTIONS["a"]).steps()[0]()
        intake.interrupt("a")
        return await Sender(intake, "a", CONTRIBUTIONS["b"]).send()

    (receipt,) = run(exchange())
    assert receipt.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert "sent again with other content" in receipt.reason


def test_nobody_answering_gives_no_mean_and_says_why() -> None:
    intake = intake_of({"a": 1.0, "b": 1.0})

    async def exchange() -> Tensors | None:
        intake.lose("a", "not connected")
        return await intake.reduce(0.001)

    assert run(exchange()) is None
    assert {client: upload.reason for client, upload in intake.uploads.items()} == {
        "a": "not connected",
        "b": "no answer within 0.001 s",
    }


def test_an_exchange_without_clients_ends_at_once() -> None:
    assert run(intake_of({}).reduce(100)) is None


def test_a_complete_answer_cannot_be_lost_any_more() -> None:
    async def exchange() -> Intake:
        intake = intake_of({"a": 1.0})
        await Sender(intake, "a", CONTRIBUTIONS["a"]).send()
        intake.lose("a", "too late")
        return intake

    assert run(exchange()).uploads["a"].progress is Progress.COMPLETE


def test_the_first_reason_for_a_loss_stands() -> None:
    intake = intake_of({"a": 1.0})
    intake.lose("a", "first")
    intake.lose("a", "second")
    assert intake.uploads["a"].reason == "first"


def test_a_stalled_upload_is_given_up() -> None:
    async def exchange() -> tuple[Tensors | None, Intake]:
        intake = intake_of({"a": 1.0, "b": 1.0}, staging_bytes=1, stall_timeout_s=0.01)
        reducing = asyncio.create_task(intake.reduce(100))
        for step in Sender(intake, "a", CONTRIBUTIONS["a"]).steps()[:4]:
            sending = asyncio.ensure_future(step())
            await asyncio.sleep(0)
        intake.lose("b", "gone")
        mean = await reducing
        await sending
        return mean, intake

    mean, intake = run(exchange())
    assert mean is None
    assert intake.uploads["a"].reason == "its answer stalled for 0.01 s"


def test_numbers_alone_make_an_answer_where_numbers_are_expected() -> None:
    reply = Reply(loss=0.25, evaluation=Evaluation(10, 7, 3.0), compute_s=1.5)

    async def exchange() -> Intake:
        intake = intake_of({"a": 1.0}, schema=None)
        assert await Sender(intake, "a", None, reply).send() == []
        assert await intake.reduce(100) is None
        duplicate = await Sender(intake, "a", None, reply).send()
        assert [receipt.verdict for receipt in duplicate] == [Verdict.VERDICT_DUPLICATE]
        return intake

    assert run(exchange()).uploads["a"].numbers == reply


def test_an_empty_payload_is_complete_with_its_header() -> None:
    nothing = Schema([TensorSpec("w", torch.float32, (0,))])

    async def exchange() -> Tensors | None:
        intake = intake_of({"a": 1.0}, schema=nothing)
        assert await Sender(intake, "a", Tensors(nothing)).send() == []
        return await intake.reduce(100)

    mean = run(exchange())
    assert mean is not None
    assert mean.schema == nothing


def test_a_contribution_of_another_schema_is_refused_and_takes_no_window() -> None:
    async def exchange() -> tuple[list[pb.Receipt], Intake]:
        intake = intake_of({"a": 1.0})
        return await Sender(intake, "a", filled(SCHEMA, 1)).send(), intake

    (receipt,), intake = run(exchange())
    assert receipt.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert intake.uploads["a"].reason == f"refused: {receipt.reason}"
