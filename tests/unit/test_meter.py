from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from feddkd.traffic import Meter, Traffic

sizes = st.integers(0, 2**40)
Event = tuple[str, int]
events = st.lists(st.tuples(st.sampled_from(["down", "up", "payload_down", "payload_up"]), sizes))


def count(meter: Meter, event: Event) -> None:
    kind, size = event
    record: Callable[[int], None] = getattr(meter, kind)
    record(size)


def total(counted: list[Event]) -> Traffic:
    def of(kind: str) -> int:
        return sum(size for name, size in counted if name == kind)

    down, up = of("payload_down"), of("payload_up")
    return Traffic(down, up, of("down"), of("up"), dense_bytes_down=down, dense_bytes_up=up)


def test_each_direction_counts_by_itself() -> None:
    meter = Meter()
    meter.down(1)
    meter.up(20)
    meter.payload_down(300)
    meter.payload_up(4000)
    assert meter.traffic == Traffic(300, 4000, 1, 20, dense_bytes_down=300, dense_bytes_up=4000)
    assert meter.traffic.wire_bytes == 21  # payloads are a part of the messages


def test_encoded_tensors_count_beside_what_they_take_without_a_codec() -> None:
    meter = Meter()
    meter.payload_down(10, dense_bytes=320)
    meter.payload_down(20)
    meter.payload_up(3, dense_bytes=96)
    meter.payload_up(0, dense_bytes=7)
    assert meter.traffic == Traffic(30, 3, dense_bytes_down=340, dense_bytes_up=103)


def test_a_snapshot_is_a_part_of_the_payload() -> None:
    meter = Meter()
    meter.payload_down(10, dense_bytes=320)
    meter.payload_down(160, dense_bytes=320, snapshot=True)
    meter.payload_down(320, snapshot=True)
    assert meter.traffic == Traffic(payload_bytes_down=490, dense_bytes_down=960, snapshot_bytes_down=480)


def test_encoded_tensors_that_come_late_count_whole_on_the_next_meter() -> None:
    other = Meter()
    meter = Meter(other)
    assert meter.close() == Traffic()
    meter.payload_down(160, dense_bytes=320, snapshot=True)
    meter.payload_up(3, dense_bytes=96)
    assert meter.traffic == Traffic()
    assert other.traffic == Traffic(160, 3, 0, 0, dense_bytes_down=320, dense_bytes_up=96, snapshot_bytes_down=160)


@given(events, events)
def test_every_message_counts_once_before_the_close_or_after_it(
    before: list[Event],
    after: list[Event],
) -> None:
    other = Meter()
    meter = Meter(other)
    for event in before:
        count(meter, event)
    closed = meter.close()
    for event in after:
        count(meter, event)
    assert closed == total(before)
    assert meter.traffic == total(before)
    assert other.traffic == total(after)


@given(events)
def test_what_several_exchanges_leave_adds_up(late: list[Event]) -> None:
    other = Meter()
    other.up(7)
    meters = [Meter(other) for _ in range(3)]
    for meter in meters:
        meter.down(1)
        meter.close()
    for index, event in enumerate(late):
        count(meters[index % 3], event)
    expected = total([("up", 7), *late])
    assert other.traffic == expected
    assert [meter.traffic for meter in meters] == [Traffic(0, 0, 1, 0)] * 3


def test_closing_again_changes_nothing() -> None:
    other = Meter()
    meter = Meter(other)
    meter.up(5)
    first = meter.close()
    meter.up(3)
    assert meter.close() == first == Traffic(0, 0, 0, 5)
    assert other.traffic == Traffic(0, 0, 0, 3)


def test_a_closed_meter_passes_on_to_the_last_open_one() -> None:
    last = Meter()
    middle = Meter(last)
    first = Meter(middle)
    first.close()
    first.down(1)
    middle.close()
    first.down(10)
    assert (middle.traffic.wire_bytes_down, last.traffic.wire_bytes_down) == (1, 10)


def test_a_meter_that_nothing_comes_after_goes_on_counting() -> None:
    meter = Meter()
    meter.up(1)
    assert meter.close().wire_bytes_up == 1
    meter.up(1)
    assert meter.traffic.wire_bytes_up == 2


def test_counts_that_were_given_out_do_not_change() -> None:
    meter = Meter()
    before = meter.traffic
    meter.down(9)
    assert before == Traffic()
    after = meter.traffic
    after.wire_bytes_down = 0
    assert meter.traffic == Traffic(0, 0, 9, 0)


@given(st.lists(st.builds(Traffic, *[sizes] * 7), max_size=5))
def test_traffic_adds_up_field_by_field(parts: list[Traffic]) -> None:
    summed = Traffic()
    for part in parts:
        summed += part
    assert summed == Traffic(
        sum(part.payload_bytes_down for part in parts),
        sum(part.payload_bytes_up for part in parts),
        sum(part.wire_bytes_down for part in parts),
        sum(part.wire_bytes_up for part in parts),
        sum(part.dense_bytes_down for part in parts),
        sum(part.dense_bytes_up for part in parts),
        sum(part.snapshot_bytes_down for part in parts),
    )
