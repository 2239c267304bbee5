"""What waits for one client: in order, counted once, and bounded."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.traffic import Meter
from feddkd.transport.batches import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES
from feddkd.transport.outbox import MAX_WAITING_BYTES, MAX_WAITING_MESSAGES, Outbox, Outgoing


@dataclass
class Broadcast:
    """A work whose frames say whose they are, and how many have been produced."""

    name: bytes
    size: int
    needed: bool = True
    produced: int = 0
    meter: Meter = field(default_factory=Meter)

    @property
    def outgoing(self) -> Outgoing:
        return Outgoing(self._frames(), self.meter, lambda: self.needed, lambda: self.meter.payload_down(1_000))

    def _frames(self) -> Iterator[bytes]:
        for _ in range(self.size):
            self.produced += 1
            yield self.name


class Payload:
    """Something large that frames are made of."""

    def frames(self) -> Iterator[bytes]:
        for _ in range(9):
            yield b"1" if self else b""


def short(*frames: bytes) -> Outgoing:
    return Outgoing(frames, Meter())


def next_frame(outbox: Outbox) -> bytes | None:
    """The next message to a client that takes no batches."""
    batch = outbox.next_batch()
    assert len(batch) <= 1
    return batch[0] if batch else None


def drained(outbox: Outbox) -> list[bytes]:
    return list(iter(lambda: next_frame(outbox), None))


def test_a_broadcast_is_produced_only_as_fast_as_it_is_written() -> None:
    outbox, broadcast = Outbox(), Broadcast(b"w", 10)
    outbox.put_work(broadcast.outgoing)
    assert broadcast.produced == 0
    for written in range(1, 4):
        assert next_frame(outbox) == b"w"
        assert broadcast.produced == written + 1


def test_the_payload_counts_with_the_last_message() -> None:
    outbox, broadcast = Outbox(), Broadcast(b"work", 3)
    outbox.put_work(broadcast.outgoing)
    counted = []
    while next_frame(outbox) is not None:
        traffic = broadcast.meter.traffic
        counted.append((traffic.wire_bytes_down, traffic.payload_bytes_down))
    assert counted == [(4, 0), (8, 0), (12, 1_000)]


def test_who_asks_is_told_when_the_last_message_was_written_and_not_before() -> None:
    written: list[bytes] = []
    outbox = Outbox()
    outbox.put(Outgoing((b"1", b"2"), Meter(), on_written=lambda: written.append(b"2")))
    outbox.put(Outgoing((b"3",), Meter(), on_written=lambda: written.append(b"3")))
    found = []
    while (frame := next_frame(outbox)) is not None:
        found.append((frame, list(written)))
    assert found == [(b"1", []), (b"2", []), (b"3", [b"2"])]
    assert written == [b"2", b"3"]


def test_a_broadcast_that_is_no_longer_needed_ends_and_does_not_count() -> None:
    outbox, broadcast = Outbox(), Broadcast(b"work", 3)
    outbox.put_work(broadcast.outgoing)
    next_frame(outbox)
    broadcast.needed = False
    assert next_frame(outbox) is None
    assert broadcast.meter.traffic.wire_bytes_down == 4
    assert broadcast.meter.traffic.payload_bytes_down == 0


def test_a_broadcast_that_is_never_needed_is_never_produced() -> None:
    outbox, broadcast = Outbox(), Broadcast(b"work", 3, needed=False)
    outbox.put_work(broadcast.outgoing)
    assert next_frame(outbox) is None
    assert broadcast.produced == 0


def test_a_newer_broadcast_replaces_the_one_that_waits() -> None:
    outbox = Outbox()
    first, second = Broadcast(b"1", 2), Broadcast(b"2", 2)
    outbox.put_work(first.outgoing)
    outbox.put(short(b"r"))
    outbox.put_work(second.outgoing)
    assert drained(outbox) == [b"r", b"2", b"2"]
    assert first.produced == 0


def test_a_broadcast_under_way_is_not_kept_once_it_is_not_needed() -> None:
    """Its client reads nothing: the next broadcast frees the payload of the last."""
    outbox, needed = Outbox(), [True]
    payload = Payload()
    freed = weakref.ref(payload)
    outbox.put_work(Outgoing(payload.frames(), Meter(), lambda: needed[0]))
    del payload
    assert next_frame(outbox) == b"1"
    needed[0] = False
    assert freed() is not None
    outbox.put_work(Broadcast(b"2", 1).outgoing)
    gc.collect()
    assert freed() is None
    assert drained(outbox) == [b"2"]


def test_short_messages_are_bounded_in_number() -> None:
    outbox = Outbox()
    assert all(outbox.put(short(b"r")) for _ in range(MAX_WAITING_MESSAGES))
    assert not outbox.put(short(b"r"))
    next_frame(outbox)
    assert outbox.put(short(b"r"))
    assert len(drained(outbox)) == MAX_WAITING_MESSAGES


def test_short_messages_are_bounded_in_bytes() -> None:
    outbox = Outbox()
    half = bytes(MAX_WAITING_BYTES // 2)
    assert outbox.put(short(half, half))
    assert not outbox.put(short(b"r"))
    assert outbox.put(short())
    assert drained(outbox) == [half, half]
    assert outbox.put(short(half, half))


def test_a_broadcast_does_not_count_among_the_short_messages() -> None:
    outbox = Outbox()
    assert all(outbox.put(short(b"r")) for _ in range(MAX_WAITING_MESSAGES))
    outbox.put_work(Broadcast(b"w", 100).outgoing)
    assert len(drained(outbox)) == MAX_WAITING_MESSAGES + 100


def test_it_is_finished_once_it_is_closed_and_everything_is_written() -> None:
    outbox = Outbox()
    outbox.put(short(b"1", b"2"))
    outbox.close()
    assert not outbox.finished
    assert drained(outbox) == [b"1", b"2"]
    assert outbox.finished


def test_waiting_ends_with_a_message_and_with_the_close() -> None:
    async def wait() -> list[bool]:
        outbox = Outbox()
        ends = []
        for change in (lambda: outbox.put(short(b"1")), outbox.close):
            waiting = asyncio.create_task(outbox.changed())
            await asyncio.sleep(0)
            ends.append(waiting.done())
            change()
            await waiting
            next_frame(outbox)
        return ends

    assert asyncio.run(wait()) == [False, False]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("short"), st.integers(0, 3)),
        st.tuples(st.just("work"), st.integers(0, 4)),
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.just("end"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(STEPS)
def test_it_writes_as_a_list_of_what_is_needed_would(steps: list[tuple[str, int]]) -> None:
    """The model: a list of messages with their owners, in which a work has at most one place."""
    outbox, model = Outbox(), list[tuple[bytes, Broadcast | None]]()
    works: list[Broadcast] = []
    begun: Broadcast | None = None
    for step, (kind, number) in enumerate(steps):
        name = b"%d" % step
        if kind == "short":
            outbox.put(short(*[name] * number))
            model += [(name, None)] * number
        elif kind == "work":
            works.append(Broadcast(name, number))
            outbox.put_work(works[-1].outgoing)
            model = [entry for entry in model if entry[1] in (None, begun)]
            model += [(name, works[-1])] * number
        elif kind == "end" and works:
            works[number % len(works)].needed = False
        elif kind == "write":
            for _ in range(number):
                model = [(n, w) for n, w in model if w is None or w.needed]
                expected = model.pop(0) if model else (None, None)
                assert next_frame(outbox) == expected[0]
                begun = expected[1]


def batching() -> Outbox:
    return Outbox(takes_batches=True)


def test_short_messages_and_a_small_broadcast_share_a_batch_in_order() -> None:
    outbox, broadcast = batching(), Broadcast(b"w", 3)
    outbox.put(short(b"r"))
    outbox.put_work(broadcast.outgoing)
    assert outbox.next_batch() == [b"r", b"w", b"w", b"w"]
    traffic = broadcast.meter.traffic
    assert (traffic.wire_bytes_down, traffic.payload_bytes_down) == (3, 1_000)
    assert outbox.next_batch() == []


def test_a_client_that_takes_no_batches_gets_each_message_alone() -> None:
    outbox = Outbox()
    outbox.put(short(b"r", b"s"))
    assert [outbox.next_batch(), outbox.next_batch(), outbox.next_batch()] == [[b"r"], [b"s"], []]


@given(st.lists(st.integers(0, MAX_BATCH_BYTES + 1), max_size=30))
def test_batches_are_short_unless_one_message_is_long_and_none_is_held_back(sizes: list[int]) -> None:
    outbox = batching()
    outbox.put_work(Outgoing((bytes(size) for size in sizes), Meter()))
    batches = list(iter(outbox.next_batch, []))
    assert [len(message) for batch in batches for message in batch] == sizes
    assert all(len(batch) == 1 or sum(map(len, batch)) <= MAX_BATCH_BYTES for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert sum(map(len, batch)) + len(following[0]) > MAX_BATCH_BYTES


def test_no_batch_has_too_many_messages() -> None:
    outbox = batching()
    outbox.put_work(Broadcast(b"w", MAX_BATCH_MESSAGES + 1).outgoing)
    assert [len(outbox.next_batch()), len(outbox.next_batch())] == [MAX_BATCH_MESSAGES, 1]


def test_what_lingers_waits_for_the_next_broadcast() -> None:
    outbox = batching()
    outbox.put(dataclasses.replace(short(b"r"), lingers=True))
    assert outbox.next_batch() == []
    outbox.put_work(Broadcast(b"w", 1).outgoing)
    assert outbox.next_batch() == [b"r", b"w"]


@pytest.mark.parametrize("wake", [Outbox.flush, Outbox.close, lambda outbox: outbox.put(short())])
def test_what_lingers_is_written_when_it_is_flushed_or_the_stream_is_to_end(wake: Callable[[Outbox], object]) -> None:
    outbox = batching()
    outbox.put(dataclasses.replace(short(b"r"), lingers=True))
    wake(outbox)
    assert outbox.next_batch() == [b"r"]


def test_nothing_lingers_in_an_outbox_that_is_closed() -> None:
    outbox = Outbox(takes_batches=True)
    outbox.put(short(b"before"))
    outbox.close()
    assert outbox.next_batch() == [b"before"]
    outbox.put(dataclasses.replace(short(b"r"), lingers=True))
    assert outbox.next_batch() == [b"r"]
    outbox.next_batch()
    assert outbox.finished


def test_nothing_lingers_for_a_client_that_takes_no_batches() -> None:
    outbox = Outbox()
    outbox.put(dataclasses.replace(short(b"r"), lingers=True))
    assert outbox.next_batch() == [b"r"]


def test_who_asks_is_told_after_the_whole_batch() -> None:
    written: list[bytes] = []
    outbox = batching()
    outbox.put(Outgoing((b"1",), Meter(), on_written=lambda: written.append(b"1")))
    outbox.put(short(b"2"))
    assert outbox.next_batch() == [b"1", b"2"]
    assert written == []
    outbox.close()
    assert not outbox.finished
    assert outbox.next_batch() == []
    assert written == [b"1"]
    assert outbox.finished
