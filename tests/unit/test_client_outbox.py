"""The finished reply on a client's disk: what a process leaves there, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_scenes import AgentScene, taking_part
from coding import MIXED
from hand_server import HandServer, HandStream, broadcast, chunk_offsets, exchange, on_loop
from harness import SCHEMA, FakeWorker, exchange_of, filled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import ordinary_tensors

from feddkd.client import backoff
from feddkd.client.kept_reply import KeptReply, save_reply
from feddkd.client.leftovers import Leftovers
from feddkd.client.membership import Membership
from feddkd.client.outbox import OUTBOX, Outbox
from feddkd.client.state_dir import StateDir
from feddkd.client.work import Work
from feddkd.compression.codecs import find
from feddkd.engines.forms import Forms
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.failpoints import planned
from feddkd.tensors import Tensors
from feddkd.transport.messages import Verdict, farewell_message, receipt_message, resend_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

MODEL, UPDATE = filled(SCHEMA, 1), filled(SCHEMA, 2)
SIZE = SCHEMA.size_bytes
CHUNK_BYTES = 64
FILE = f"{OUTBOX}.safetensors"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state", "site")


def computed(contribution: Tensors | None, codec: str = "", *, zstd: bool = False, number: int = 1) -> tuple[pb.Work, KeptReply]:
    """What a client is asked for, and what it makes of that."""
    described = exchange_of(["site"], filled(SCHEMA, 1), round_number=number)
    described = replace(described, reply_codec=find(codec, unbiased=True) if codec else None, seed=5, zstd=zstd)
    forms = Forms(described, CHUNK_BYTES)
    message = pb.ParticipateResponse.FromString(forms.message("site")).work
    work = Work(message, FakeWorker(lambda _: Reply(contribution, loss=0.5, compute_s=2.0)))
    for frame in forms.payload("site").frames():
        work.receive(frame)
    return message, work.compute(work.start())


def run_of(message: pb.Work) -> str:
    return message.id.run_id


# The file.


CODECS = ["", "fp16", "int8", "int4", "eden2", "topk:0.25", "randk:0.25"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.none(), ordinary_tensors), st.sampled_from(CODECS), st.booleans())
def test_another_process_sends_the_same_bytes_from_every_chunk(
    state: StateDir, contribution: Tensors | None, codec: str, zstd: bool
) -> None:
    message, reply = computed(contribution, codec, zstd=zstd)
    Outbox(state, "mine").keep(message, reply)
    stored = Outbox(StateDir(state.path, "site"), "mine").restore(run_of(message))
    assert stored is not None
    assert stored.work == message
    assert list(stored.reply.messages(0)) == list(reply.messages(0))
    assert (stored.reply.payload is None) == (reply.payload is None)
    if reply.payload is not None:
        for piece in reply.payload.encoding.pieces:
            assert list(stored.reply.messages(piece.stop, again=True)) == list(reply.messages(piece.stop, again=True))
    assert (stored.reply.leftover is None) == (reply.leftover is None)
    if reply.leftover is not None and stored.reply.leftover is not None:
        assert stored.reply.leftover.schema == reply.leftover.schema
        assert stored.reply.leftover.sha256() == reply.leftover.sha256()


@pytest.mark.parametrize(("run_id", "configuration"), [("another", "mine"), ("run", "another"), ("run", "")])
def test_what_was_computed_in_another_run_or_with_another_configuration_is_removed(
    state: StateDir, run_id: str, configuration: str
) -> None:
    message, reply = computed(UPDATE)
    Outbox(state, "mine").keep(message, reply)
    if run_id == "run":
        run_id = run_of(message)
    assert Outbox(state, configuration).restore(run_id) is None
    assert not (state.path / FILE).exists()


@pytest.mark.parametrize("position", range(0, 1000, 37))
def test_a_torn_or_changed_file_is_set_aside_at_the_start(state: StateDir, position: int, caplog: pytest.LogCaptureFixture) -> None:
    message, reply = computed(filled(MIXED, 1), "topk:0.25")
    Outbox(state).keep(message, reply)
    content = bytearray((state.path / FILE).read_bytes())
    content[-1 - position * len(content) // 1000] ^= 4
    (state.path / FILE).write_bytes(content)
    assert Outbox(StateDir(state.path, "site")).restore(run_of(message)) is None
    (warning,) = caplog.messages
    assert f"{FILE} is damaged" in warning
    assert warning.endswith(f"is now {FILE}.corrupt-1")


@pytest.mark.parametrize("label", ["", "{}", "[]", '{"work": "AA==", "answer": "", "schema": null, "configuration": ""}', '{"work": 5}'])
def test_the_file_of_another_version_is_removed(state: StateDir, label: str) -> None:
    state.save(OUTBOX, {}, label)
    assert Outbox(state).restore("run") is None
    assert not (state.path / FILE).exists()


def test_a_payload_that_is_not_as_long_as_its_layout_is_not_sent(state: StateDir) -> None:
    message, reply = computed(UPDATE)
    Outbox(state).keep(message, reply)
    stored = state.read(OUTBOX)
    assert stored is not None
    state.save(OUTBOX, {"payload": stored.tensors["payload"][1:].clone()}, stored.label)
    assert Outbox(state).restore(run_of(message)) is None


def test_a_client_without_a_state_directory_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message, reply = computed(UPDATE)
    outbox = Outbox()
    outbox.keep(message, reply)
    outbox.settle(exchange(), Leftovers(), counted=True)
    assert outbox.restore(run_of(message)) is None
    assert list(tmp_path.iterdir()) == []


# The client.


class Counting(FakeWorker):
    """Computes the same every time.

    Attributes:
        tasks: what it was given.
    """

    def __init__(self, contribution: Tensors = UPDATE) -> None:
        super().__init__(lambda _: Reply(contribution, loss=0.5), contribution.schema)
        self.tasks: list[ExchangeId] = []

    def carry_out(self, task: Task) -> Reply:
        self.tasks.append(task.id)
        return super().carry_out(task)


@asynccontextmanager
async def process(
    state: StateDir, worker: FakeWorker, server: HandServer | None = None, computes_with: str = "mine"
) -> AsyncIterator[AgentScene]:
    """One process of the client; leaving kills it."""
    own = StateDir(state.path, "site")
    async with taking_part(worker, Membership(own.instance_id, state=own, computes_with=computes_with), server=server) as scene:
        yield scene


async def reply_sent(state: StateDir, until: Callable[[HandStream], object] = lambda _: None) -> HandStream:
    """Let a client compute and send its reply, and die before it hears anything."""
    async with process(state, Counting()) as scene:
        stream = await scene.stream()
        await stream.send(*broadcast(MODEL))
        await stream.answer()
        until(stream)
        return stream


def held(stream: HandStream) -> tuple[int, int] | None:
    """Round and bytes of what the client says it holds."""
    if not stream.hello.HasField("holding"):
        return None
    assert stream.hello.holding.digest == Payload(MODEL, 16).header.digest
    return stream.hello.holding.id.round, stream.hello.holding.size_bytes


def test_a_client_that_was_killed_sends_its_reply_without_computing_again(state: StateDir) -> None:
    worker = Counting()

    async def scenario() -> None:
        await reply_sent(state)
        async with process(state, worker) as scene:
            stream = await scene.stream()
            assert held(stream) == (1, SIZE)
            await stream.send(broadcast(MODEL)[0])
            answer, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()
            assert answer.loss == 0.5
            await stream.send(receipt_message(exchange(), Verdict.VERDICT_OK))
            assert await scene.part(stream) == []

    on_loop(scenario())
    assert worker.tasks == []
    assert not (state.path / FILE).exists()


def test_its_upload_goes_on_at_every_byte_that_the_server_asks_for(state: StateDir) -> None:
    payload, worker = Payload(UPDATE, 16), Counting()

    async def scenario() -> None:
        await reply_sent(state)
        for offset in [*chunk_offsets(list(payload.frames())), SIZE]:
            async with process(state, worker) as scene:
                stream = await scene.stream()
                assert held(stream) == (1, SIZE)
                await stream.send(resend_message(exchange(), offset))
                answer = (await stream.request()).answer
                assert answer.payload.content_sha256 == payload.content_sha256
                expected = list(payload.frames(offset))
                assert [await stream.read() for _ in expected] == expected

    on_loop(scenario())
    assert worker.tasks == []


@pytest.mark.parametrize("verdict", [v for v in Verdict.values() if v != Verdict.VERDICT_UNSPECIFIED])
def test_any_receipt_lets_the_file_go(state: StateDir, verdict: Verdict.ValueType) -> None:
    async def scenario() -> None:
        await reply_sent(state)
        assert (state.path / FILE).exists()
        async with process(state, Counting()) as scene:
            stream = await scene.stream()
            await stream.send(receipt_message(exchange(), verdict, "so it is"))
            await scene.part(stream)
        assert not (state.path / FILE).exists()
        async with process(state, Counting()) as scene:
            assert held(await scene.stream()) is None

    on_loop(scenario())


def test_work_of_another_exchange_lets_the_file_go(state: StateDir) -> None:
    worker = Counting()

    async def scenario() -> None:
        await reply_sent(state)
        async with process(state, worker) as scene:
            stream = await scene.stream()
            await stream.send(broadcast(MODEL, exchange(2))[0])
            assert held(await scene.back(stream)) == (2, 0)
            assert not (state.path / FILE).exists()

    on_loop(scenario())
    assert worker.tasks == []


def test_another_broadcast_of_the_same_exchange_is_computed_again(state: StateDir) -> None:
    worker = Counting()

    async def scenario() -> None:
        await reply_sent(state)
        async with process(state, worker) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(filled(SCHEMA, 7)))
            await stream.answer()

    on_loop(scenario())
    assert len(worker.tasks) == 1


@pytest.mark.parametrize("ended", [farewell_message(False, "stopped", paused=True), farewell_message(False, "the run failed")])
def test_a_run_that_is_not_completed_leaves_the_reply_for_the_next_process(state: StateDir, ended: bytes) -> None:
    async def scenario() -> None:
        async with process(state, Counting()) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            await stream.send(ended)
            await stream.rest()
        async with process(state, Counting()) as scene:
            assert held(await scene.stream()) == (1, SIZE)

    on_loop(scenario())


def test_another_run_on_the_same_address_hears_nothing_of_the_reply(state: StateDir) -> None:
    """Neither in the process that computed it nor in the next one."""

    async def scenario() -> None:
        async with process(state, Counting()) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await stream.answer()
            scene.server.manifest.run_id = "another"
            assert held(await scene.back(stream)) is None
        await reply_sent(state)
        server = HandServer()
        server.manifest.run_id = "another"
        async with process(state, Counting(), server) as scene:
            assert held(await scene.stream()) is None

    on_loop(scenario())
    assert not (state.path / FILE).exists()


def test_what_a_site_computed_before_its_configuration_changed_is_not_sent(state: StateDir) -> None:
    async def scenario() -> None:
        await reply_sent(state)
        async with process(state, Counting(), computes_with="others") as scene:
            assert held(await scene.stream()) is None

    on_loop(scenario())


def test_the_reply_is_on_the_disk_before_its_first_byte_is_sent(state: StateDir) -> None:
    def look(_: HandStream) -> None:
        assert Outbox(state, "mine").restore("run") is not None

    on_loop(reply_sent(state, look))


@pytest.mark.parametrize("point", ["client.outbox.before_write", "client.state.before_rename"])
def test_a_full_disk_costs_a_client_that_dies_the_computation_and_nothing_else(
    state: StateDir, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with process(state, Counting()) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            _, contribution = await stream.answer()
            assert contribution.sha256() == UPDATE.sha256()
            await stream.send(receipt_message(exchange(), Verdict.VERDICT_OK))
            await scene.part(stream)

    with planned(f"{point}=enospc"):
        on_loop(scenario())
    (warning,) = caplog.messages
    assert warning.startswith("site: after a restart it would compute round 1 local_train again: ")
    assert not (state.path / FILE).exists()


def test_a_reply_that_fails_is_not_kept(state: StateDir) -> None:
    """The next process may have more luck."""

    def fail(_: Task) -> Reply:
        raise RuntimeError("out of memory")

    async def scenario() -> None:
        async with process(state, FakeWorker(fail)) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            assert (await stream.request()).failure.reason == "RuntimeError: out of memory"
        async with process(state, Counting()) as scene:
            assert held(await scene.stream()) is None

    on_loop(scenario())


def test_a_reply_that_was_closed_while_it_was_written_is_removed(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go_on = asyncio.Event(), threading.Event()

    async def scenario() -> None:
        here = asyncio.get_running_loop()

        def slow(*arguments: Any) -> None:
            here.call_soon_threadsafe(writing.set)
            go_on.wait(60)
            save_reply(*arguments)

        monkeypatch.setattr("feddkd.client.outbox.save_reply", slow)
        async with process(state, Counting()) as scene:
            stream = await scene.stream()
            await stream.send(*broadcast(MODEL))
            await writing.wait()
            await stream.send(receipt_message(exchange(), Verdict.VERDICT_DEADLINE_EXCEEDED, "too late"))
            assert held(await scene.back(stream)) is None
            go_on.set()
        assert len(written) == 1

    written = watch_renames(monkeypatch)
    on_loop(scenario())
    assert not (state.path / FILE).exists()


def watch_renames(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which files take their place."""
    names: list[str] = []
    replace_file = Path.replace

    def noted(self: Path, target: Path) -> Path:
        names.extend([target.name] * (target.name == FILE))
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    return names
