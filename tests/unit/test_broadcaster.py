"""How a model reaches each client, and that what they then hold is what the server says."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable

import pytest
import torch
from coding import MIXED
from harness import filled
from hypothesis import given, settings
from hypothesis import strategies as st

from feddkd.compression.broadcaster import Broadcast, Broadcaster
from feddkd.compression.broadcaster_state import CodecCost
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import derive_seed, relative_error
from feddkd.compression.replica import Replica, version_of
from feddkd.compression.running_mean import RunningMean
from feddkd.tensors import Schema, Tensors, TensorSpec

CHUNK_BYTES = 1024
INT8, EDEN2, BF16 = (find(name, unbiased=False) for name in ("int8", "eden2", "bf16"))
MODEL, OTHER, THIRD, FOURTH = (filled(MIXED, seed) for seed in range(4))
FLOATS = Schema([TensorSpec("w", torch.float32, (1000,)), TensorSpec("b", torch.float32, (1000,))])


def broadcaster(snapshot: Codec | None = None, seed: int = 5) -> Broadcaster:
    return Broadcaster(CHUNK_BYTES, seed, snapshot)


def send(
    server: Broadcaster,
    payload: Tensors,
    clients: str = "ab",
    *,
    codec: Codec | None = INT8,
    exact: bool = False,
    replied: str | None = None,
) -> tuple[Tensors, Broadcast]:
    """Broadcast to clients, all of whom reply, or those of `replied`."""
    sent, broadcast = server.broadcast(codec, payload, clients, exact=exact)
    server.received(broadcast, sent, clients if replied is None else replied)
    return sent, broadcast


def begun(*, snapshot: Codec | None = None, clients: str = "ab") -> Broadcaster:
    """One whose clients hold MODEL."""
    server = broadcaster(snapshot)
    send(server, MODEL, clients, exact=True)
    return server


def shifted(model: Tensors, names: Iterable[str]) -> Tensors:
    """The model with other values in some tensors."""
    return model.replace({name: OTHER[name] for name in names})


# Who is sent what.


def test_the_first_broadcast_is_whole_and_exact() -> None:
    sent, broadcast = send(broadcaster(), MODEL)
    assert sent.block.equal(MODEL.block)
    assert (broadcast.step, broadcast.holders, broadcast.base) == (None, frozenset(), b"")
    assert broadcast.whole.block.equal(MODEL.block)
    assert broadcast.content == version_of(MODEL)
    assert broadcast.cost == CodecCost()


def test_after_that_holders_are_sent_the_encoded_step() -> None:
    server = begun()
    sent, broadcast = send(server, OTHER)
    assert broadcast.step is not None
    # By hand: the differences of what is lossy, the rest as it is.
    wanted = Tensors.copy_of(MIXED, {name: OTHER[name] - MODEL[name] if MIXED.by_name[name].lossy else OTHER[name] for name in OTHER})
    names = broadcast.step.encoding.schema.by_name
    assert "nothing" not in names  # nor does any bit of it differ
    seed = derive_seed(5, "broadcast", 1)
    assert (broadcast.step.encoding.coding.name, broadcast.step.encoding.coding.seed) == ("int8", seed)
    decoded = broadcast.step.decode()
    replica = Replica(MODEL)
    replica.advance(decoded)
    assert sent.block.equal(replica.model.block)
    assert broadcast.content == version_of(sent)
    assert broadcast.base == version_of(MODEL)
    assert broadcast.holders == {"a", "b"}
    assert broadcast.cost.error == relative_error(wanted.select(decoded.schema), decoded) > 0
    assert broadcast.cost.seconds > 0
    for name in ("mean", "count", "mask"):
        assert sent[name].equal(OTHER[name])
    assert not sent["weight"].equal(OTHER["weight"])


def test_who_is_new_is_sent_the_model_with_every_bit() -> None:
    server = begun()
    sent, broadcast = send(server, OTHER, "abc")
    assert broadcast.holders == {"a", "b"}
    assert broadcast.whole.block.equal(sent.block)
    assert broadcast.whole.encoding.coding.codec is None
    _, broadcast = send(server, THIRD, "abc")
    assert broadcast.holders == {"a", "b", "c"}


def test_who_did_not_reply_is_sent_the_model_the_next_time() -> None:
    server = begun()
    send(server, OTHER, "ab", replied="a")
    _, broadcast = send(server, THIRD, "ab")
    assert broadcast.holders == {"a"}


def test_who_was_not_asked_is_sent_the_model_the_next_time() -> None:
    server = begun(clients="abc")
    send(server, OTHER, "ab")
    _, broadcast = send(server, THIRD, "abc")
    assert broadcast.holders == {"a", "b"}


def test_where_nobody_holds_the_base_the_model_itself_is_sent() -> None:
    """And so it loses nothing to a step that nobody would use."""
    server = begun()
    sent, broadcast = send(server, OTHER, "cd")
    assert broadcast.step is None
    assert sent.block.equal(OTHER.block)


def test_a_step_holds_only_the_tensors_that_changed() -> None:
    server = begun()
    _, broadcast = send(server, shifted(MODEL, ["bias", "mean"]))
    assert broadcast.step is not None
    assert list(broadcast.step.encoding.schema.by_name) == ["bias", "mean"]


def test_a_change_of_one_bit_is_a_change() -> None:
    model = MODEL.replace({"mean": MODEL["mean"].clone()})
    model["mean"][0] = -0.0
    negative = model.replace({})
    model["mean"][0] = 0.0
    server = broadcaster()
    send(server, model)
    sent, broadcast = send(server, negative)
    assert broadcast.step is not None
    assert list(broadcast.step.encoding.schema.by_name) == ["mean"]
    assert math.copysign(1, float(sent["mean"][0])) == -1


def test_a_model_with_nothing_new_is_an_empty_step() -> None:
    server = begun()
    for codec in (INT8, None):
        sent, broadcast = send(server, MODEL.replace({}), codec=codec)
        assert broadcast.step is not None
        assert broadcast.step.size_bytes == 0
        assert broadcast.content == broadcast.base == version_of(MODEL)
        assert sent.block.equal(MODEL.block)
        assert broadcast.cost == CodecCost()


def test_payloads_of_another_kind_have_a_base_of_their_own() -> None:
    server, floats = begun(), filled(FLOATS, 1)
    _, broadcast = send(server, floats)
    assert broadcast.step is None
    _, broadcast = send(server, OTHER)
    assert broadcast.base == version_of(MODEL)
    _, broadcast = send(server, filled(FLOATS, 2))
    assert broadcast.base == version_of(floats)


def test_after_forget_everything_is_whole() -> None:
    server = begun()
    server.forget()
    sent, broadcast = send(server, OTHER)
    assert broadcast.step is None
    assert sent.block.equal(OTHER.block)


# Exact delivery.


@pytest.mark.parametrize(("codec", "exact"), [(INT8, True), (None, False)])
def test_what_has_to_arrive_exactly_is_not_encoded_on_its_way(codec: Codec | None, exact: bool) -> None:
    server = begun(snapshot=BF16)
    sent, broadcast = send(server, OTHER, codec=codec, exact=exact)
    assert sent.block.equal(OTHER.block)
    assert broadcast.step is None
    assert broadcast.whole.encoding.coding.codec is None


@pytest.mark.parametrize(("codec", "exact"), [(INT8, True), (None, False)])
def test_an_adopted_model_is_delivered_exactly_by_its_step(codec: Codec | None, exact: bool) -> None:
    server = begun(snapshot=BF16)
    adopted = server.adopt(INT8, OTHER)
    sent, broadcast = send(server, adopted, "abc", codec=codec, exact=exact)
    assert sent.block.equal(adopted.block)
    assert broadcast.holders == {"a", "b"}
    assert broadcast.step is not None
    assert broadcast.step.encoding.coding.name == "int8"
    assert broadcast.whole.encoding.coding.codec is None


# Adopting.


def test_there_is_nothing_to_adopt_before_the_first_broadcast() -> None:
    assert broadcaster().adopt(INT8, MODEL) is MODEL


def test_an_adopted_model_is_the_one_that_clients_will_hold() -> None:
    server, plain = begun(), begun()
    adopted = server.adopt(INT8, OTHER)
    sent, broadcast = send(server, adopted)
    expected, alike = send(plain, OTHER)
    assert adopted.block.equal(expected.block)
    assert sent.block.equal(adopted.block)
    assert broadcast.step is not None
    assert alike.step is not None
    assert broadcast.step.block.equal(alike.step.block)  # it was encoded once
    assert broadcast.cost.error == alike.cost.error > 0


def test_to_adopt_what_was_adopted_changes_nothing() -> None:
    server = begun()
    adopted = server.adopt(INT8, OTHER)
    assert server.adopt(EDEN2, adopted).block.equal(adopted.block)
    _, broadcast = send(server, adopted)
    assert broadcast.step is not None
    assert broadcast.step.encoding.coding.name == "int8"


def test_of_two_models_adopted_in_a_row_the_second_is_sent_whole() -> None:
    server = begun()
    server.adopt(INT8, OTHER)
    second = server.adopt(INT8, THIRD)
    sent, broadcast = send(server, second)
    assert broadcast.step is None
    assert sent.block.equal(second.block)
    _, broadcast = send(server, FOURTH)
    assert broadcast.holders == {"a", "b"}


def test_a_payload_that_is_not_the_adopted_model_is_sent_whole() -> None:
    server = begun()
    server.adopt(INT8, OTHER)
    sent, broadcast = send(server, THIRD)
    assert broadcast.step is None
    assert sent.block.equal(THIRD.block)


# The mean.


def students(server: Broadcaster, *models: Tensors) -> tuple[RunningMean, Tensors]:
    """Adopt models of which a round ends with the mean; all but the last are sent."""
    mean, adopted = RunningMean(), MODEL
    for number, model in enumerate(models):
        adopted = server.adopt(INT8, model, in_mean=True)
        mean.add(adopted)
        if number < len(models) - 1:
            send(server, adopted)
    return mean, adopted


def test_the_mean_of_the_last_models_is_not_sent() -> None:
    server = begun()
    mean, last = students(server, OTHER, THIRD, FOURTH)
    expected = mean.of(last)
    adopted = server.adopt(EDEN2, expected)
    assert adopted.block.equal(expected.block)
    sent, broadcast = send(server, adopted)
    assert sent.block.equal(expected.block)
    assert (broadcast.in_mean, broadcast.take_mean) == (True, True)
    assert broadcast.step is not None
    assert broadcast.step.encoding.coding.name == "int8"  # that of the last model
    assert broadcast.content == version_of(expected)
    _, broadcast = send(server, OTHER)
    assert (broadcast.in_mean, broadcast.take_mean) == (False, False)


def test_a_mean_whose_models_were_all_sent_takes_no_bytes() -> None:
    server = begun()
    mean, last = students(server, OTHER, THIRD)
    send(server, last)
    _, broadcast = send(server, mean.of(last))
    assert broadcast.step is not None
    assert (broadcast.step.size_bytes, broadcast.take_mean, broadcast.in_mean) == (0, True, False)


def test_a_model_between_them_ends_the_mean() -> None:
    server = begun()
    mean, _ = students(server, OTHER)
    send(server, server.adopt(INT8, THIRD))
    mean.add(server.adopt(INT8, FOURTH, in_mean=True))
    _, broadcast = send(server, mean.of(FOURTH))
    assert not broadcast.take_mean


def test_a_model_that_is_sent_whole_may_begin_the_mean() -> None:
    server, mean = begun(), RunningMean()
    sent, broadcast = send(server, server.adopt(INT8, OTHER, in_mean=True), "cd")
    assert (broadcast.step, broadcast.in_mean) == (None, True)
    mean.add(sent)
    last = server.adopt(INT8, THIRD, in_mean=True)
    mean.add(last)
    _, broadcast = send(server, mean.of(last), "cd")
    assert broadcast.take_mean


def test_who_is_new_is_sent_the_mean_itself() -> None:
    server = begun()
    mean, last = students(server, OTHER, THIRD)
    sent, broadcast = send(server, mean.of(last), "abc")
    assert broadcast.whole.block.equal(sent.block)


# Snapshots.


def test_a_snapshot_is_sent_to_all_where_that_is_smaller() -> None:
    """The model has 8000 bytes, 4000 as a snapshot, and a step 2000 with a scale of 4 bytes for each of 8 chunks."""
    model, after = filled(FLOATS, 1), filled(FLOATS, 2)
    for holders, fresh in ((1, 1), (2, 1), (1, 2), (5, 3), (3, 5), (9, 1)):
        server = broadcaster(BF16)
        old = "abcdefghi"[:holders]
        send(server, model, old)
        _, broadcast = send(server, after, old + "vwxyz"[:fresh])
        with_step = holders * 2032 + fresh * 8000
        all_snapshots = (holders + fresh) * 4000
        assert (broadcast.step is None) is (all_snapshots < with_step)
        if broadcast.step is None:
            assert broadcast.whole.encoding.coding.name == "bf16"
            assert broadcast.whole.size_bytes == 4000
        else:
            assert broadcast.step.size_bytes == 2032
            assert broadcast.whole.size_bytes == 8000


def test_a_snapshot_is_what_its_receivers_hold() -> None:
    server = broadcaster(BF16)
    sent, broadcast = send(server, MODEL)
    assert broadcast.whole.encoding.coding.name == "bf16"
    assert sent.block.equal(broadcast.whole.decode().block)
    assert broadcast.content == version_of(sent)
    assert not sent.block.equal(MODEL.block)
    assert sent["mean"].equal(MODEL["mean"])
    assert broadcast.cost.error == relative_error(MODEL, sent) > 0
    _, broadcast = send(server, OTHER)
    assert broadcast.base == version_of(sent)


# Whatever happens.


def test_equal_calls_give_equal_codes() -> None:
    def codes() -> list[bytes]:
        server = broadcaster(BF16)
        found = []
        for seed in range(6):
            model = filled(MIXED, seed)
            adopted = server.adopt(EDEN2, model) if seed % 3 else model
            _, broadcast = send(server, adopted, "abc"[: 1 + seed % 3])
            found += [bytes(form.block.tolist()) for form in (broadcast.whole, broadcast.step) if form is not None]
            if seed == 3:
                server.forget()
        return found

    assert codes() == codes()
    assert len(set(codes())) == len(codes())


def test_another_seed_of_the_run_gives_other_codes() -> None:
    blocks = []
    for seed in (1, 2):
        server = broadcaster(seed=seed)
        send(server, MODEL)
        _, broadcast = send(server, OTHER, codec=EDEN2)
        assert broadcast.step is not None
        blocks.append(broadcast.step.block)
    assert not blocks[0].equal(blocks[1])


class Client:
    """Applies what it is sent, as `Forms` and `IncomingBroadcast` do over the wire.

    Attributes:
        fresh: it was started since the last broadcast that it has received.
        late: it may not have all models of the mean.
        asked: how often it asked for the whole model.
    """

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.fresh = True
        self.asked = 0
        self.late = False

    def restart(self) -> None:
        self.replica, self.fresh, self.late = None, True, False

    def receive(self, broadcast: Broadcast, *, step: bool) -> Tensors:
        if step and not self._takes(broadcast):
            self.asked += 1
            step = False
        if not step:
            in_mean = broadcast.in_mean and not broadcast.take_mean
            self.replica = Replica(broadcast.whole.decode(), in_mean=in_mean)
            self.late = True  # it may lack earlier models of the mean
        self.fresh = False
        assert self.replica is not None
        return self.replica.model

    def _takes(self, broadcast: Broadcast) -> bool:
        replica = self.replica
        if replica is None or replica.version != broadcast.base:
            assert self.fresh, "the server knows what a client holds that went on"
            return False
        assert broadcast.step is not None
        if broadcast.step.encoding.pieces:
            replica.advance(broadcast.step.decode(), in_mean=broadcast.in_mean)
        if broadcast.take_mean:
            replica.take_mean()
            if replica.version != broadcast.content:
                assert self.late, "who has all models of a mean has the mean"
                return False
            self.late = False
        elif broadcast.step.encoding.pieces and not broadcast.in_mean:
            self.late = False
        assert replica.version == broadcast.content
        return True


class Federation:
    """A server half and its clients, driven by chance."""

    def __init__(self, chooser: random.Random, snapshot: Codec | None) -> None:
        self.chooser = chooser
        self.server = Broadcaster(64, 5, snapshot)
        self.clients = {name: Client() for name in "abcd"}
        self.model = self.any_model()
        self.mean = RunningMean()

    def any_model(self) -> Tensors:
        """Another model, in all tensors or in some."""
        new = filled(SMALL, self.chooser.randrange(1 << 30))
        if not hasattr(self, "model"):
            return new
        kept = [name for name in SMALL.by_name if self.chooser.random() < 0.3]
        return new.replace({name: self.model[name] for name in kept})

    def adopt(self) -> None:
        in_mean = self.chooser.random() < 0.6
        self.model = self.server.adopt(INT8, self.any_model(), in_mean=in_mean)
        if not in_mean:
            self.mean = RunningMean()
        else:
            self.mean.add(self.model)

    def adopt_mean(self) -> None:
        self.model = self.server.adopt(INT8, self.mean.of(self.model))
        self.mean = RunningMean()

    def change(self) -> None:
        self.model = self.any_model()

    def restart(self) -> None:
        self.clients[self.chooser.choice("abcd")].restart()

    def forget(self) -> None:
        self.server.forget()

    def broadcast(self) -> None:
        asked = self.some(self.clients)
        exact = self.chooser.random() < 0.2
        codec = self.chooser.choice([INT8, INT8, EDEN2, None])
        sent, broadcast = self.server.broadcast(codec, self.model, asked, exact=exact)
        if exact or codec is None:
            assert sent.block.equal(self.model.block)
        assert broadcast.content == version_of(sent)
        assert broadcast.holders <= set(asked)
        reached = self.some(asked)
        for name in reached:
            assert self.clients[name].receive(broadcast, step=name in broadcast.holders).block.equal(sent.block)
        self.server.received(broadcast, sent, self.some(reached))
        self.model = sent

    def some(self, names: Collection[str]) -> list[str]:
        """Some of them: often all."""
        return sorted(names) if self.chooser.random() < 0.4 else [name for name in sorted(names) if self.chooser.random() < 0.7]


SMALL = Schema(
    [
        TensorSpec("w", torch.float32, (20,)),
        TensorSpec("mean", torch.float32, (2,), trainable=False),
        TensorSpec("v", torch.float64, (3,)),
        TensorSpec("count", torch.int64, (), trainable=False),
    ]
)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from([None, BF16]))
def test_whatever_happens_clients_hold_what_the_server_says(seed: int, snapshot: Codec | None) -> None:
    """Models are adopted, or not; clients are restarted, are not asked, are not reached, or do not reply."""
    federation = Federation(random.Random(seed), snapshot)
    actions = {
        federation.broadcast: 10,
        federation.adopt: 8,
        federation.adopt_mean: 2,
        federation.change: 2,
        federation.restart: 1,
        federation.forget: 0.3,
    }
    for action in federation.chooser.choices(list(actions), list(actions.values()), k=40):
        action()


def test_a_client_that_went_on_never_asks_for_the_model() -> None:
    """Without restarts and with everybody asked and replying, all but the first broadcast are steps."""
    federation = Federation(random.Random(3), None)
    federation.some = sorted  # type: ignore[method-assign, assignment]
    federation.broadcast()
    for number in range(60):
        federation.adopt()
        if number % 7 == 6:
            federation.adopt_mean()
        federation.broadcast()
    assert all(client.asked == 0 for client in federation.clients.values())
