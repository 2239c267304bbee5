"""What a client does with the exchange in hand, at every moment at which a connection can break."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from hand_server import HandServer, HandStream, broadcast, chunk_offsets, exchange, on_loop
from harness import SCHEMA, FakeWorker, filled

from feddkd.client import backoff
from feddkd.client.agent import Agent, Farewell
from feddkd.client.held import Held
from feddkd.client.membership import Membership
from feddkd.client.recent import Recent
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.work import MAX_SENDS_WITHOUT_PROGRESS
from feddkd.config import Config
from feddkd.errors import HandshakeError, RefusedError, UnreachableError
from feddkd.exchange import Reply, Task
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.client import ServerConnection
from feddkd.transport.messages import SERVER_HEARTBEAT, Verdict, farewell_message, receipt_message, resend_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

MODEL, UPDATE = filled(SCHEMA, 1), filled(SCHEMA, 2)
SIZE = SCHEMA.size_bytes
OK = receipt_message(exchange(), Verdict.VERDICT_OK)
BYE = farewell_message(True, "all rounds are done")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)


class GatedWorker(FakeWorker):
    """Computes when the test says so.

    Attributes:
        begun: released once for every computation that begins.
        tasks: what it was given.
    """

    def __init__(self, *, open_gate: bool = True, contribution: Tensors = UPDATE, respond: Callable[[Task], Reply] | None = None) -> None:
        super().__init__(self._compute, contribution.schema)
        self._then = respond or (lambda _: Reply(contribution, loss=0.5))
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.tasks: list[Task] = []
        if open_gate:
            self.gate.set()

    def _compute(self, task: Task) -> Reply:
        self.tasks.append(task)
        self.begun.release()
        self.gate.wait(60)
        task.check_cancelled()
        return self._then(task)

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


class Scene:
    """A client that takes part, and the server side of it."""

    def __init__(self, server: HandServer, worker: GatedWorker, executor: ThreadPoolExecutor, running: asyncio.Task[Farewell]) -> None:
        self.server = server
        self.worker = worker
        self.running = running
        self._executor = executor

    async def stream(self) -> HandStream:
        return await self.server.stream()

    async def back(self, stream: HandStream) -> HandStream:
        """Break the connection, and return the one that follows."""
        stream.end()
        return await self.server.stream()

    async def computed(self) -> None:
        """Return once the computations that were begun are over."""
        await asyncio.get_running_loop().run_in_executor(self._executor, lambda: None)

    async def part(self, stream: HandStream) -> tuple[Farewell, list[bytes]]:
        """Say farewell; returns it as the client has it, and what the client had still sent."""
        await stream.send(BYE)
        rest = await stream.rest()
        return await self.running, rest


@asynccontextmanager
async def taking_part(
    worker: GatedWorker | None = None,
    server: HandServer | None = None,
    membership: Membership | None = None,
    executor: ThreadPoolExecutor | None = None,
    retry_for_s: float | None = None,
) -> AsyncIterator[Scene]:
    worker, pool = worker or GatedWorker(), executor or ThreadPoolExecutor(1)
    async with (server or HandServer()).serving() as server:
        agent = Agent(server.address, "site", worker, pool, retry_for_s=retry_for_s, membership=membership)
        running = asyncio.create_task(agent.run())
        try:
            yield Scene(server, worker, pool, running)
        finally:
            worker.gate.set()
            running.cancel()
            await asyncio.wait([running])
            await asyncio.to_thread(pool.shutdown)


def held(stream: HandStream) -> tuple[int, int] | None:
    """Round and bytes of what the client says it holds."""
    if not stream.hello.HasField("holding"):
        return None
    assert stream.hello.holding.digest == Payload(MODEL, 16).header.digest
    return stream.hello.holding.id.round, stream.hello.holding.size_bytes


def test_a_break_while_receiving_costs_only_the_rest_of_the_broadcast() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            assert held(stream) is None
            work, *chunks = broadcast(MODEL)
            assert len(chunks) > 2
            await stream.send(work, chunks[0])
            await stream.send(SERVER_HEARTBEAT)
            stream = await scene.back(stream)
            assert held(stream) == (1, chunk_offsets(chunks)[1])
            await stream.send(*broadcast(MODEL, offset=chunk_offsets(chunks)[1]))
            _, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()
            await stream.send(OK)
            farewell, rest = await scene.part(stream)
            assert (farewell, rest) == (Farewell("run", True, "all rounds are done"), [])
        (task,) = scene.worker.tasks
        assert task.payload.sha256() == MODEL.sha256()

    on_loop(scenario())


def test_a_break_while_computing_neither_ends_nor_repeats_the_computation() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            for _ in range(3):
                stream = await scene.back(stream)
                assert held(stream) == (1, SIZE)
                await stream.send(broadcast(MODEL)[0])
            scene.worker.gate.set()
            _, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()
            (task,) = scene.worker.tasks
            assert not task.cancelled.is_set()
            await stream.send(OK)
            _, rest = await scene.part(stream)
            assert rest == []

    on_loop(scenario())


def test_a_reply_computed_during_the_break_waits_until_the_server_asks_for_it() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            stream = await scene.back(stream)
            scene.worker.gate.set()
            await scene.computed()
            await stream.send(broadcast(MODEL)[0])
            _, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()
            _, rest = await scene.part(stream)
            assert rest == []  # so it was sent once
        assert len(scene.worker.tasks) == 1

    on_loop(scenario())


@pytest.mark.parametrize("asked_by", ["resend", "work"])
def test_a_break_while_sending_costs_only_what_the_server_asks_for(asked_by: str) -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            assert (await stream.request()).WhichOneof("message") == "answer"
            first = await stream.read()
            stream = await scene.back(stream)
            assert held(stream) == (1, SIZE)
            arrived = chunk_offsets(list(Payload(UPDATE, 16).frames()))[1] if asked_by == "resend" else 0
            await stream.send(resend_message(exchange(), arrived) if asked_by == "resend" else broadcast(MODEL)[0])
            again = [await stream.read() for _ in range(1 + len(list(Payload(UPDATE, 16).frames(arrived))))]
            assert pb.ParticipateRequest.FromString(again[0]).answer.id.round == 1
            whole = [first, *again[1:]] if asked_by == "resend" else again[1:]
            assert whole == list(Payload(UPDATE, 16).frames())
            await stream.send(OK)
            _, rest = await scene.part(stream)
            assert rest == []
        assert len(scene.worker.tasks) == 1

    on_loop(scenario())


def test_a_break_while_waiting_for_the_receipt_costs_nothing() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            stream = await scene.back(stream)
            assert held(stream) == (1, SIZE)
            await stream.send(OK)
            stream = await scene.back(stream)
            assert held(stream) is None
            _, rest = await scene.part(stream)
            assert rest == []
        assert len(scene.worker.tasks) == 1

    on_loop(scenario())


def test_after_a_break_between_two_exchanges_the_next_one_is_carried_out() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            await stream.send(OK)
            stream = await scene.back(stream)
            assert held(stream) is None
            await stream.send(*broadcast(MODEL, exchange(2)))
            answer, _ = await stream.answer()
            assert answer.id.round == 2
        assert [task.id.round for task in scene.worker.tasks] == [1, 2]

    on_loop(scenario())


def test_a_server_that_asks_while_the_client_computes_gets_the_reply_when_it_is_there() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            stream = await scene.back(stream)
            await stream.send(resend_message(exchange(), 0), SERVER_HEARTBEAT)
            scene.worker.gate.set()
            _, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()

    on_loop(scenario())


def test_the_same_exchange_with_another_broadcast_is_computed_again() -> None:
    other = filled(SCHEMA, 3)

    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            stream = await scene.back(stream)
            await stream.send(*broadcast(other))
            scene.worker.gate.set()
            await stream.answer()
            _, rest = await scene.part(stream)
            assert rest == []
        first, second = scene.worker.tasks
        assert first.cancelled.is_set()
        assert second.payload.sha256() == other.sha256()

    on_loop(scenario())


@pytest.mark.parametrize("ends_it", ["another exchange", "refusal", "farewell"])
def test_what_the_server_no_longer_wants_is_cancelled(ends_it: str) -> None:
    messages = {
        "another exchange": broadcast(MODEL, exchange(2)),
        "refusal": [receipt_message(exchange(), Verdict.VERDICT_DEADLINE_EXCEEDED, "too late")],
        "farewell": [],
    }[ends_it]

    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            await stream.send(*messages)
            if ends_it == "farewell":
                _, rest = await scene.part(stream)
                assert rest == []
            task = scene.worker.tasks[0]
            await asyncio.to_thread(task.cancelled.wait)
            scene.worker.gate.set()
            await scene.computed()
            if ends_it == "another exchange":
                answer, _ = await stream.answer()  # the first message: nothing of round 1 was sent
                assert answer.id.round == 2
            elif ends_it == "refusal":
                _, rest = await scene.part(stream)
                assert rest == []

    on_loop(scenario())


def test_a_receipt_for_another_exchange_ends_nothing() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            await stream.send(receipt_message(exchange(7), Verdict.VERDICT_FAILED_PRECONDITION, "closed"), SERVER_HEARTBEAT)
            stream = await scene.back(stream)
            assert held(stream) == (1, SIZE)
            assert not scene.worker.tasks[0].cancelled.is_set()

    on_loop(scenario())


def test_a_refused_reply_is_not_sent_to_its_end() -> None:
    large = Tensors(Schema([TensorSpec("w", torch.float32, (2_000_000,))]))  # more than the buffers of a connection hold
    worker = GatedWorker(contribution=large)

    async def scenario() -> None:
        async with taking_part(worker, HandServer(schema=large.schema)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(large, chunk_bytes=1 << 16))
            assert (await stream.request()).WhichOneof("message") == "answer"
            await stream.send(receipt_message(exchange(), Verdict.VERDICT_INVALID_ARGUMENT, "the loss is odd"))
            await asyncio.to_thread(worker.tasks[0].cancelled.wait)
            _, rest = await scene.part(stream)
            assert len(rest) < len(large.schema.chunks(1 << 16))

    on_loop(scenario())


def test_a_damaged_broadcast_comes_again_from_its_start() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            work, first, second, *_ = broadcast(MODEL)
            await stream.send(work, first, second[:-1] + bytes([second[-1] ^ 1]))
            stream = await scene.stream()
            assert held(stream) is None
            await stream.send(*broadcast(MODEL))
            await stream.answer()

    on_loop(scenario())


def test_a_server_that_sends_from_the_start_what_is_here_already_finds_its_way() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            work, first, *_ = broadcast(MODEL)
            await stream.send(work, first)
            stream = await scene.back(stream)
            assert held(stream) == (1, chunk_offsets([first, *broadcast(MODEL)[2:]])[1])
            await stream.send(work, first)
            stream = await scene.stream()
            assert held(stream) is None
            await stream.send(*broadcast(MODEL))
            await stream.answer()

    on_loop(scenario())


NONSENSE = b"\xff\xff\xff"
TRIES = 8


async def refused_streams(monkeypatch: pytest.MonkeyPatch, before: list[bytes]) -> Farewell:
    """Let the server send `before` and then nonsense on each stream, 10 s apart, to a client with 25 s of patience.

    The server says farewell to a client that is still there after 8 streams.
    """
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    async with taking_part(retry_for_s=25.0) as scene:
        for _ in range(TRIES):
            following = asyncio.create_task(scene.stream())
            await asyncio.wait([following, scene.running], return_when=asyncio.FIRST_COMPLETED)
            if scene.running.done():
                following.cancel()
                return scene.running.result()
            await following.result().send(*before, NONSENSE)
        await (await scene.stream()).send(BYE)
        return await scene.running


def test_a_server_that_only_sends_nonsense_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match=r"\(gave up after 25 s\)$"):
        on_loop(refused_streams(monkeypatch, []))


def test_a_server_that_made_sense_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_loop(refused_streams(monkeypatch, [SERVER_HEARTBEAT])).completed


def raising(task: Task) -> Reply:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_failure_is_said_again_after_a_break() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(respond=raising)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            for _ in range(2):
                failure = (await stream.request()).failure
                assert failure.reason == "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
                stream = await scene.back(stream)
                assert held(stream) == (1, SIZE)
                await stream.send(broadcast(MODEL)[0])
        assert len(scene.worker.tasks) == 1

    on_loop(scenario())


def test_a_broadcast_that_the_client_cannot_take_is_refused_and_its_chunks_are_dropped() -> None:
    other = filled(Schema([TensorSpec("layer.weight", torch.float32, (5, 4))]), 1)

    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(other), *broadcast(MODEL, exchange(2)))
            first = await stream.request()
            while first.WhichOneof("message") == "failure":  # unless the next exchange was faster
                assert first.failure.id.round == 1
                assert first.failure.reason == "tensor 'norm.count' is missing"
                first = await stream.request()
            assert first.answer.id.round == 2

    on_loop(scenario())


def test_a_resend_of_what_is_not_at_hand_is_answered_by_a_failure() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(resend_message(exchange(4), 0))
            failure = (await stream.request()).failure
            assert (failure.id.round, failure.reason) == (4, "the reply is no longer at hand")

    on_loop(scenario())


def test_a_resend_from_the_middle_of_a_chunk_ends_the_connection() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            await stream.send(resend_message(exchange(), 3))
            stream = await scene.stream()
            assert held(stream) == (1, SIZE)

    on_loop(scenario())


def test_a_resend_of_a_part_of_what_is_not_computed_yet_ends_the_connection_and_not_the_computation() -> None:
    async def scenario() -> None:
        async with taking_part(GatedWorker(open_gate=False)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await scene.worker.has_begun()
            await stream.send(resend_message(exchange(), 8))
            stream = await scene.stream()
            assert held(stream) == (1, SIZE)
            await stream.send(resend_message(exchange(), 0))
            scene.worker.gate.set()
            await stream.answer()
        assert len(scene.worker.tasks) == 1

    on_loop(scenario())


def test_a_reply_that_is_asked_for_for_ever_is_given_up() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            for _ in range(MAX_SENDS_WITHOUT_PROGRESS - 1):
                await stream.answer()
                await stream.send(resend_message(exchange(), 0))
            await stream.answer()
            await stream.send(resend_message(exchange(), SIZE))
            assert (await stream.request()).WhichOneof("message") == "answer"  # the server has more now, so all is well
            for _ in range(MAX_SENDS_WITHOUT_PROGRESS):
                await stream.send(resend_message(exchange(), 0))
                while (request := await stream.request()).WhichOneof("message") == "chunk":
                    pass
            assert "is asked for again" in request.failure.reason

    on_loop(scenario())


class CountingExecutor(ThreadPoolExecutor):
    """Counts what waits or runs."""

    def __init__(self) -> None:
        super().__init__(1)
        self.pending = 0
        self.most_pending = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        future = super().submit(*arguments, **named)
        future.add_done_callback(lambda _: setattr(self, "pending", self.pending - 1))
        return future


def test_a_flood_of_work_leaves_one_computation_and_one_broadcast_at_the_client() -> None:
    worker, executor = GatedWorker(open_gate=False), CountingExecutor()

    async def scenario() -> None:
        async with taking_part(worker, executor=executor) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await worker.has_begun()
            tasks_before = len(asyncio.all_tasks())
            for number in range(2, 200):
                await stream.send(*broadcast(MODEL, exchange(number)))
            await stream.send(*broadcast(MODEL, exchange(500)))
            stream = await scene.back(stream)
            assert held(stream) == (500, SIZE)
            await stream.send(broadcast(MODEL, exchange(500))[0])
            worker.gate.set()
            answer, _ = await stream.answer()
            assert answer.id.round == 500
            assert len(asyncio.all_tasks()) <= tasks_before
        assert [task.id.round for task in worker.tasks] == [1, 500]
        assert executor.most_pending == 1

    on_loop(scenario())


def test_the_deadline_reaches_the_task() -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
        assert scene.worker.tasks[0].deadline_s == 60.0

    on_loop(scenario())


def test_what_the_server_says_is_printed_without_its_escape_sequences(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Farewell:
        async with taking_part() as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            await stream.send(receipt_message(exchange(), Verdict.VERDICT_INVALID_ARGUMENT, "\x1b[2Jbad\nworse"))
            await stream.send(farewell_message(True, "\x1b]0;owned\x07" + "x" * 1000))
            await stream.rest()
            return await scene.running

    farewell = on_loop(scenario())
    assert farewell.reason.startswith("\\x1b]0;owned\\x07xxx")
    assert len(farewell.reason) <= 200
    assert "not counted in round 1 local_train: \\x1b[2Jbad\\nworse" in caplog.text


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_client_whose_place_was_taken_or_that_is_not_understood_does_not_come_back(code: grpc.StatusCode) -> None:
    async def scenario() -> None:
        async with taking_part() as scene:
            stream = await scene.stream()
            stream.end(code, "'site' opened a \x1b[31mnewer stream")
            with pytest.raises(RefusedError, match=r"^server 127\.0\.0\.1:\d+: 'site' opened a \\x1b\[31mnewer stream$"):
                await scene.running
            assert len(scene.server.joins) == 1

    on_loop(scenario())


def test_a_restarted_client_shows_the_secret_of_its_state_directory(tmp_path: Path) -> None:
    async def joined() -> str:
        membership = Membership(StateDir(tmp_path, "site").instance_id)
        async with taking_part(membership=membership) as scene:
            await scene.stream()
            return scene.server.joins[0].instance_id

    secrets = {on_loop(joined()) for _ in range(2)}
    assert secrets == {(tmp_path / "instance").read_text().strip()}


def test_a_server_that_runs_another_configuration_at_the_first_join_is_refused() -> None:
    known = ServerConfig(Config().to_toml())
    other = HandServer(Config.load(overrides=["training.lr=0.9", "rounds=3"]).to_toml())

    async def scenario() -> None:
        async with taking_part(server=other, membership=Membership(config=known)) as scene:
            with pytest.raises(RefusedError, match=r"another configuration now \(differs in training\.lr\); start this client again$"):
                await scene.running

    on_loop(scenario())


def test_a_server_that_comes_back_with_another_configuration_is_refused() -> None:
    async def scenario() -> None:
        async with taking_part(server=HandServer(Config().to_toml())) as scene:
            stream = await scene.stream()
            await stream.send(SERVER_HEARTBEAT)
            scene.server.manifest.config_toml = Config.load(overrides=["seed=5"]).to_toml()
            stream.end()
            with pytest.raises(RefusedError, match=r"differs in seed\)"):
                await scene.running

    on_loop(scenario())


def test_models_of_clients_that_make_room_are_written_beside_the_loop(tmp_path: Path) -> None:
    """The heartbeats of all clients of a process are sent by its loop."""
    put_away_by: list[threading.Thread] = []
    in_memory: Recent[str, Held] = Recent(1, lambda _: put_away_by.append(threading.current_thread()))
    in_memory.use("another", Held)
    membership = Membership(state=StateDir(tmp_path, "site", durable=False), in_memory=in_memory)

    async def scenario() -> None:
        loops = threading.current_thread()
        async with taking_part(membership=membership) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            assert len(put_away_by) == 1
            assert put_away_by[0] is not loops
            await stream.send(OK)
            await scene.part(stream)

    on_loop(scenario())


@pytest.mark.parametrize("has_taken_part", [True, False])
def test_only_a_client_that_never_took_part_gives_up_where_tls_fails(has_taken_part: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    join, fails = ServerConnection.join, iter([not has_taken_part, has_taken_part, has_taken_part, False])

    async def join_or_fail(connection: ServerConnection, *arguments: Any) -> pb.JoinResponse:
        if next(fails):
            raise HandshakeError("it does not accept the certificate")
        return await join(connection, *arguments)

    monkeypatch.setattr(ServerConnection, "join", join_or_fail)

    async def take_part() -> None:
        async with taking_part() as scene:
            if has_taken_part:
                (await scene.stream()).end()
                await (await scene.stream()).send(BYE)
                assert (await scene.running).completed
            else:
                with pytest.raises(HandshakeError):
                    await scene.running

    on_loop(take_part())
