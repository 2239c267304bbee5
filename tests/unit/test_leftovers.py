"""What codecs left out, through restarts of the client: as if it had never restarted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from coding import MIXED
from harness import FakeWorker, exchange_of, filled
from hypothesis import given, settings
from hypothesis import strategies as st

from feddkd.client.held import Held
from feddkd.client.kept_reply import KeptReply
from feddkd.client.leftovers import Leftovers
from feddkd.client.outbox import Outbox
from feddkd.client.state_dir import StateDir
from feddkd.client.work import Work
from feddkd.compression.codecs import find
from feddkd.engines.forms import Forms
from feddkd.exchange import ExchangeId, Reply
from feddkd.tensors import Tensors
from feddkd.transport.pb import federation_pb2 as pb

MODEL = filled(MIXED, 0)
NAMES = ("local_train", "dkd_step")


def work_message(exchange: ExchangeId) -> tuple[pb.Work, list[bytes]]:
    described = exchange_of(["site"], MODEL)
    described = replace(described, id=exchange, reply_codec=find("topk:0.05", unbiased=True))
    forms = Forms(described, 4096)
    return pb.ParticipateResponse.FromString(forms.message("site")).work, list(forms.payload("site").frames())


def reply_of(held: Held, exchange: ExchangeId, contribution: Tensors) -> tuple[pb.Work, KeptReply]:
    message, frames = work_message(exchange)
    work = Work(message, FakeWorker(lambda _: Reply(contribution), MIXED), held)
    for frame in frames:
        work.receive(frame)
    return message, work.compute(work.start())


@dataclass
class Client:
    """A client that is killed between any two steps and started again; without a folder it is never killed."""

    folder: Path | None = None
    held: Held = field(init=False)
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> KeptReply | None:
        """Begin as a new process does; returns the reply that it finds."""
        state = StateDir(self.folder, "site", durable=False) if self.folder is not None else None
        self.outbox = Outbox(state)
        self.held = Held(Leftovers(state, "run") if state is not None else None)
        stored = self.outbox.restore("run")
        if stored is None:
            return None
        if stored.reply.leftover is not None:
            self.held.resume(stored.exchange, stored.reply.leftover)
        return stored.reply

    def compute(self, exchange: ExchangeId, contribution: Tensors) -> KeptReply:
        message, reply = reply_of(self.held, exchange, contribution)
        self.outbox.keep(message, reply)
        return reply

    def settle(self, exchange: ExchangeId, *, counted: bool) -> None:
        self.held.settle(counted=counted)
        self.outbox.settle(exchange, counted=counted)

    def give_up(self, exchange: ExchangeId) -> None:
        self.outbox.discard(exchange)


def same(one: KeptReply, other: KeptReply) -> bool:
    return one.payload is not None and other.payload is not None and one.payload.content_sha256 == other.payload.content_sha256


steps = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["counted", "refused", "silence"]),
    st.sets(st.sampled_from(["before", "computed", "settled"])),
)
"""An exchange, what becomes of its reply, and when the client is killed."""
attempts = st.lists(steps, min_size=1, max_size=3)
rounds = st.lists(attempts, min_size=1, max_size=2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2), rounds), min_size=1, max_size=4))
def test_a_client_that_is_killed_anywhere_sends_what_it_would_have_sent(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, list[list[tuple[str, str, set[str]]]]]]
) -> None:
    """Over rounds, attempts at them, steps, replies that count, that do not, and of which nothing is heard."""
    killed, spared = Client(tmp_path_factory.mktemp("state")), Client()
    number = seed = 0
    for ahead, tries in plan:
        number += ahead
        for attempt, exchanges in enumerate(tries):
            for step, (name, fate, kills) in enumerate(exchanges):
                seed += 1
                exchange, contribution = ExchangeId("run", number, attempt, name, step), filled(MIXED, seed)
                if "before" in kills:
                    killed.start()
                reply, expected = killed.compute(exchange, contribution), spared.compute(exchange, contribution)
                assert same(reply, expected)
                if "computed" in kills:
                    found = killed.start()
                    assert found is not None
                    assert same(found, expected)
                for client in (killed, spared):
                    if fate == "silence":
                        client.give_up(exchange)
                    else:
                        client.settle(exchange, counted=fate == "counted")
                if "settled" in kills:
                    assert killed.start() is None


def exchange(number: int, attempt: int = 0, name: str = "local_train") -> ExchangeId:
    return ExchangeId("run", number, attempt, name, 0)


def settled(client: Client, *exchanges: ExchangeId) -> None:
    for seed, each in enumerate(exchanges):
        client.compute(each, filled(MIXED, seed))
        client.settle(each, counted=True)


def test_what_is_left_over_makes_a_difference(tmp_path: Path) -> None:
    """Without this the test above would pass for a client that adds nothing."""
    client = Client(tmp_path)
    settled(client, exchange(1))
    kept = client.compute(exchange(2), filled(MIXED, 9))
    assert not same(kept, Client().compute(exchange(2), filled(MIXED, 9)))


def test_two_rounds_of_each_exchange_are_kept_and_no_more(tmp_path: Path) -> None:
    settled(Client(tmp_path), *(exchange(number, 0, name) for number in range(1, 6) for name in NAMES))
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"leftover-{name}-{slot}.safetensors" for name in sorted(NAMES) for slot in ("even", "odd")]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "\x00", "x" * 300, "é"])
def test_no_exchange_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    state = StateDir(tmp_path, "site")
    found = Leftovers(state, "run").slot(exchange(1, 0, name))
    assert (tmp_path / f"{found}.safetensors").resolve().parent == tmp_path.resolve()
    assert len(found) < 100


def test_a_round_that_is_tried_again_begins_from_what_was_left_before_it(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1))
    expected = Leftovers(StateDir(tmp_path, "site"), "run").find(exchange(2))
    settled(Client(tmp_path), exchange(2))
    again = Leftovers(StateDir(tmp_path, "site"), "run")
    again.enter(exchange(2, attempt=1))
    found = again.find(exchange(2, attempt=1))
    assert expected is not None
    assert found is not None
    assert found.sha256() == expected.sha256()


def test_what_another_run_left_over_is_not_added_and_is_removed(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1))
    another = Leftovers(StateDir(tmp_path, "site"), "another")
    assert another.find(exchange(2)) is None
    another.enter(exchange(2))
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_receipt_for_numbers_does_not_settle_the_reply_before_it(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.compute(exchange(1), filled(MIXED, 1))
    message, frames = work_message(exchange(1, name="deliver"))
    work = Work(message, FakeWorker(lambda _: Reply(), MIXED), client.held)
    for frame in frames:
        work.receive(frame)
    client.outbox.keep(message, work.compute(work.start()))
    client.settle(exchange(1, name="deliver"), counted=True)
    assert list(tmp_path.glob("*.safetensors")) == []
    assert client.held.with_leftover("local_train", MODEL) is MODEL
