from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import CLIENTS, write_record

from feddkd.errors import ConfigError
from feddkd.observability.record_lines import ExchangeLine
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import (
    Link,
    Parts,
    exchange_parts,
    parse_rate,
    parse_time,
    parts_by_round,
    seconds_by_round,
    total_parts,
)

LINK = Link(uplink=8e3, downlink=4e3, rtt_s=0.5)
rates = st.floats(1e3, 1e12)


def exchange(**fields: object) -> ExchangeLine:
    known: dict[str, object] = {"round": 1, "exchange": "x", "seconds": 9.0, "client_seconds": 6.0, "clients_selected": 3}
    known |= {"clients_reported": 3, "wire_bytes_down": 3000, "wire_bytes_up": 6000}
    return ExchangeLine.model_validate(known | fields)


def test_an_exchange_takes_a_round_trip_one_clients_bytes_and_the_mean_clients_computing() -> None:
    assert exchange_parts(exchange(), LINK) == Parts(trips=0.5, down=2.0, compute=2.0, up=2.0)


def test_bytes_and_computing_are_shared_among_those_who_replied() -> None:
    two = exchange_parts(exchange(clients_selected=3, clients_reported=2), LINK)
    assert two == Parts(trips=0.5, down=3.0, compute=3.0, up=3.0)
    nobody = exchange_parts(exchange(clients_reported=0, wire_bytes_up=0, client_seconds=0.0), LINK)
    assert nobody == Parts(trips=0.5, down=2.0, compute=0.0, up=0.0)


def test_a_record_that_does_not_say_how_long_clients_computed_has_no_estimate(tmp_path: Path) -> None:
    assert exchange_parts(exchange(client_seconds=None), LINK) is None
    old = RunFolder.load(write_record(tmp_path / "old", old=True))
    assert (parts_by_round(old, LINK), total_parts(old, LINK), seconds_by_round(old, LINK)) == (None, None, {})


def test_a_run_is_the_sum_of_its_exchanges_and_of_what_they_leave_of_the_rounds(tmp_path: Path) -> None:
    run = RunFolder.load(write_record(tmp_path / "run", rounds=2))
    link = Link(uplink=8000.0, downlink=16_000.0, rtt_s=0.1)
    # Of each exchange: 1100 bytes down and 1000 up and a second of computing for four clients; the last round has a delivery.
    one = Parts(trips=0.1, down=1100 / CLIENTS / 2000, compute=0.25, up=1000 / CLIENTS / 1000)
    rounds = parts_by_round(run, link)
    assert rounds is not None
    # A round's clock ran 0.25 s longer than its exchanges; the writer counts the delivery as well, a real one does not.
    for number, count, server in ((1, 3, 0.25), (2, 4, 0.75)):
        expected = sum([one] * count, Parts(server=server))
        assert rounds[number].total == pytest.approx(expected.total)
        assert rounds[number].server == pytest.approx(server)
    total = total_parts(run, link)
    assert total is not None
    assert seconds_by_round(run, link) == {1: pytest.approx(rounds[1].total), 2: pytest.approx(total.total)}


def test_a_run_without_rounds_has_no_estimate(tmp_path: Path) -> None:
    assert total_parts(RunFolder.load(write_record(tmp_path / "run", rounds=0, finished=False)), LINK) is None


@given(rates, rates, st.floats(0, 10), st.floats(1.01, 100))
def test_a_faster_line_never_takes_longer(uplink: float, downlink: float, rtt_s: float, factor: float) -> None:
    link = Link(uplink, downlink, rtt_s)
    slow = exchange_parts(exchange(), link)
    assert slow is not None
    for faster in (replace(link, uplink=factor * uplink), replace(link, downlink=factor * downlink), replace(link, rtt_s=rtt_s / factor)):
        fast = exchange_parts(exchange(), faster)
        assert fast is not None
        assert fast.total <= slow.total


@pytest.mark.parametrize(
    ("text", "bits_per_s"),
    [("10Mbit", 1e7), ("10 mbit/s", 1e7), ("500kbit", 5e5), ("1.5Gbit", 1.5e9), ("9600bit", 9600.0), (" 1Mbit ", 1e6)],
)
def test_rates(text: str, bits_per_s: float) -> None:
    assert parse_rate(text, "--uplink") == bits_per_s


@pytest.mark.parametrize("text", ["", "10", "0Mbit", "-1Mbit", "10MB", "1.2.3Mbit", "10Mbits", "nanMbit", "9" * 400 + "bit"])
def test_what_is_no_rate_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--uplink .* is not a rate such as 10Mbit"):
        parse_rate(text, "--uplink")


@pytest.mark.parametrize(("text", "seconds"), [("40ms", 0.04), ("0.2s", 0.2), ("0ms", 0.0), ("1 s", 1.0)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text, "--rtt") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "40", "-1ms", "1h", "..s", "9" * 400 + "s"])
def test_what_is_no_time_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--rtt .* is not a time such as 40ms"):
        parse_time(text, "--rtt")


def test_a_link_says_itself() -> None:
    assert str(Link.parse("10Mbit", "1.5Gbit", "40ms")) == "10 Mbit/s up, 1.5 Gbit/s down, round trip 40 ms"
    assert str(Link(500e3, 800.0, 0.0)) == "500 kbit/s up, 800 bit/s down, round trip 0 ms"
