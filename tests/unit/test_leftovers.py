"""What codecs left out, through restarts of the client: as if it had never restarted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from coding import MIXED
from harness import FakeWorker, exchange_of, filled
from hypothesis import given, settings
from hypothesis import strategies as st

from feddkd.algorithms.memory import ROUNDS_KEPT
from feddkd.client.held import Held
from feddkd.client.kept_reply import KeptReply
from feddkd.client.leftovers import Leftovers
from feddkd.client.outbox import Outbox
from feddkd.client.state_dir import StateDir
from feddkd.client.work import Work
from feddkd.compression.codecs import find
from feddkd.engines.forms import Forms
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId, Reply
from feddkd.scheduler.state import CHECKPOINTS
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
        self.held = Held(Leftovers(state, "run"))
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
        self.outbox.settle(exchange, self.held.leftovers, counted=counted)

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


Planned = tuple[ExchangeId, str, set[str]]
"""An exchange, what becomes of its reply, and when the client is killed."""


def planned(plan: list[tuple[int, list[list[tuple[str, str, set[str]]]]]]) -> list[Planned]:
    found, number = list[Planned](), 0
    for ahead, tries in plan:
        number += ahead
        for attempt, exchanges in enumerate(tries):
            for step, (name, fate, kills) in enumerate(exchanges):
                found.append((ExchangeId("run", number, attempt, name, step), fate, kills))
    return found


def take_part(client: Client, exchange: ExchangeId, fate: str, kills: Collection[str] = ()) -> KeptReply:
    """Carry out an exchange; what the client contributes to it is the same each time."""
    if "before" in kills:
        client.start()
    reply = client.compute(exchange, filled(MIXED, 100 * exchange.round + 10 * exchange.attempt + exchange.step))
    if "computed" in kills:
        client.start()
    if fate == "silence":
        client.give_up(exchange)
    else:
        client.settle(exchange, counted=fate == "counted")
    if "settled" in kills:
        client.start()
    return reply


def position_after(at: int, exchanges: list[Planned], *, to_round_before: bool) -> int:
    """Where a server goes on that goes back after exchange `at`: at the start of its attempt, or of the round before."""
    begun = [exchange for exchange, *_ in exchanges]
    if not to_round_before:
        return next(index for index, each in enumerate(begun) if (each.round, each.attempt) == (begun[at].round, begun[at].attempt))
    before = [each.round for each in begun if each.round < begun[at].round]
    return next(index for index, each in enumerate(begun) if each.round == max(before, default=begun[at].round))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), rounds), min_size=1, max_size=4),
    st.dictionaries(st.integers(0, 15), st.booleans(), max_size=4),
)
def test_a_server_that_goes_back_gets_what_it_got_before(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, list[list[tuple[str, str, set[str]]]]]], returns: dict[int, bool]
) -> None:
    """To the first exchange of the attempt that is open, or of the round before; with kills of the client and without."""
    exchanges, undisturbed = planned(plan), Client()
    expected = [take_part(undisturbed, exchange, fate) for exchange, fate, _ in exchanges]
    killed, spared = Client(tmp_path_factory.mktemp("state")), Client()
    at = 0
    while at < len(exchanges):
        exchange, fate, kills = exchanges[at]
        assert same(take_part(killed, exchange, fate, kills), expected[at])
        assert same(take_part(spared, exchange, fate), expected[at])
        # Only once, and so never further than a server that has lost one checkpoint.
        at = position_after(at, exchanges, to_round_before=returns.pop(at)) if at in returns else at + 1


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


def test_three_rounds_of_each_exchange_are_kept_and_no_more(tmp_path: Path) -> None:
    settled(Client(tmp_path), *(exchange(number, 0, name) for number in range(1, 6) for name in NAMES))
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"leftover-{name}-{slot}.safetensors" for name in sorted(NAMES) for slot in (1, 2, 3)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "\x00", "x" * 300, "é"])
def test_no_exchange_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    state = StateDir(tmp_path / "state", "site")
    client, leftovers = Client(tmp_path / "state"), Leftovers(state, "run")
    settled(client, exchange(1))
    leftovers.add(exchange(1, 0, name), MODEL)
    leftovers.store(exchange(1, 0, name), "leftover-local_train-1")
    (file,) = state.names("leftover-")
    assert len(file) < 100
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def left_before(tmp_path: Path, begun: ExchangeId) -> str | None:
    """What a client that is started now adds to its reply to an exchange, by its SHA-256."""
    leftovers = Leftovers(StateDir(tmp_path, "site"), "run")
    leftovers.enter(begun)
    found = leftovers.find(begun.name)
    return None if found is None else found.sha256()


def test_a_round_that_is_tried_again_begins_from_what_was_left_before_it(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1))
    expected = left_before(tmp_path, exchange(2))
    settled(Client(tmp_path), exchange(2))
    assert left_before(tmp_path, exchange(3)) not in (None, expected)
    assert left_before(tmp_path, exchange(2, attempt=1)) == expected


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_exchange_that_comes_again_although_its_reply_counted_begins_its_round_again(tmp_path: Path, step: int) -> None:
    """Also for another process of the client: what is left on the disk says enough."""
    settled(Client(tmp_path), exchange(1))
    expected = left_before(tmp_path, exchange(2))
    settled(Client(tmp_path), *(replace(exchange(2), step=number) for number in range(3)))
    assert left_before(tmp_path, replace(exchange(2), step=3)) not in (None, expected)
    assert left_before(tmp_path, replace(exchange(2), step=step)) == expected


def test_what_other_exchanges_of_that_round_left_over_goes_with_it(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1), exchange(1, name="dkd_step"))
    assert left_before(tmp_path, exchange(1)) is None
    assert left_before(tmp_path, exchange(1, name="dkd_step")) is None


def test_a_round_before_the_last_one_begins_from_what_was_left_before_it(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1))
    expected = left_before(tmp_path, exchange(2))
    settled(Client(tmp_path), exchange(2), exchange(3))
    assert left_before(tmp_path, exchange(2)) == expected


def test_a_client_keeps_enough_for_a_server_that_goes_back_as_far_as_it_can() -> None:
    """To the oldest checkpoint: the rounds after that are repeated, also the one that had begun."""
    assert ROUNDS_KEPT == CHECKPOINTS + 1


@pytest.mark.parametrize(("back_to", "warns"), [(3, False), (2, True), (1, False)])
def test_what_is_not_known_any_more_is_worth_a_warning(tmp_path: Path, back_to: int, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Before round 1 there was nothing."""
    settled(Client(tmp_path), *(exchange(number) for number in range(1, 5)))
    assert (left_before(tmp_path, exchange(back_to)) is None) == (back_to < 3)
    expected = ["leftovers of replies before round 2, if any, are lost"]
    assert caplog.messages == (expected if warns else [])


def test_a_disk_that_is_full_changes_nothing_for_a_client_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file does not hold stays in memory, also when the server goes back to before it."""
    client, spared = Client(tmp_path), Client()

    def full(*_: object) -> None:
        raise StateError("no space left on device")

    exchanges = [exchange(1), exchange(2), replace(exchange(2), step=1), exchange(3), exchange(4)]
    for number, each in enumerate([*exchanges, exchange(3), exchange(4)]):
        with monkeypatch.context() as patch:
            if number in (1, 3, 4):
                patch.setattr(StateDir, "rename", full)
            assert same(take_part(client, each, "counted"), take_part(spared, each, "counted"))


def test_what_another_run_left_over_is_not_added_and_is_removed(tmp_path: Path) -> None:
    settled(Client(tmp_path), exchange(1))
    another = Leftovers(StateDir(tmp_path, "site"), "another")
    assert another.find("local_train") is None
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
