"""Estimates how long a recorded run would take over a given network.

An exchange takes

    rtt + down / downlink + compute + up / uplink

with the bytes and the computing time of one client. A round is the sum of its exchanges and of the server's time
between them: evaluation, and the algorithm's own part. The record has sums over clients, so the estimate treats all
clients as equal: each has an equal share of the bytes and of the computing, its own link and its own machine.

The estimate ignores:
- TCP slow start. An idle connection sends about 14 kB in its first round trip and twice as much in each following one,
  until the link is full. If rtt times bandwidth is large, this adds some round trips to an exchange.
- The server's own link, which all clients share, and its work during an exchange: it reduces while bytes arrive.
- Headers of TCP and IP (3 % to 4 % of full packets) and of HTTP/2 (below 1 %).
- Clients that are slower than the mean, that are lost, or that get a whole model instead of a step.
- Joining, and the wait for clients before the first round.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from feddkd.errors import ConfigError
from feddkd.exchange import DELIVER
from feddkd.observability.record_lines import ExchangeLine
from feddkd.observability.run_folder import RunFolder

RATES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
TIMES_S = {"s": 1.0, "ms": 1e-3}


@dataclass(frozen=True, slots=True)
class Link:
    """The network connection between each client and the server.

    Attributes:
        uplink: from the client, in bits a second.
        downlink: to the client, in bits a second.
        rtt_s: round-trip time of an empty line.
    """

    uplink: float
    downlink: float
    rtt_s: float

    @classmethod
    def parse(cls, uplink: str, downlink: str, rtt: str) -> Link:
        """Read `10Mbit`, `50Mbit` and `40ms`, as the command line gives them.

        Raises:
            ConfigError: one of them is no rate above 0, or no time from 0 on.
        """
        return cls(parse_rate(uplink, "--uplink"), parse_rate(downlink, "--downlink"), parse_time(rtt, "--rtt"))

    def __str__(self) -> str:
        return f"{_rate(self.uplink)} up, {_rate(self.downlink)} down, round trip {1e3 * self.rtt_s:g} ms"


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the seconds of a run go.

    Attributes:
        trips: round trips of an empty line.
        server: what the recorded exchanges leave of the recorded rounds.
    """

    trips: float = 0.0
    down: float = 0.0
    compute: float = 0.0
    up: float = 0.0
    server: float = 0.0

    @property
    def total(self) -> float:
        return self.trips + self.down + self.compute + self.up + self.server

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            self.trips + other.trips,
            self.down + other.down,
            self.compute + other.compute,
            self.up + other.up,
            self.server + other.server,
        )


def parts_by_round(run: RunFolder, link: Link) -> dict[int, Parts] | None:
    """Estimate each recorded round; failed attempts and the final delivery count in theirs.

    Returns:
        Round number to seconds, or None for a record that does not say how long its clients computed.
    """
    exchanges: dict[int, Parts] = defaultdict(Parts)
    recorded: dict[int, float] = defaultdict(float)
    for line in run.exchanges:
        parts = exchange_parts(line, link)
        if parts is None:
            return None
        exchanges[line.round] += parts
        # The delivery comes after the last round's clock was read.
        recorded[line.round] += line.seconds if line.exchange != DELIVER else 0.0
    return {line.round: exchanges[line.round] + Parts(server=max(0.0, line.seconds - recorded[line.round])) for line in run.rounds}


def exchange_parts(line: ExchangeLine, link: Link) -> Parts | None:
    """Estimate one exchange; None for a record that does not say how long its clients computed."""
    if line.client_seconds is None:
        return None
    clients = max(line.clients_reported or line.clients_selected, 1)
    return Parts(
        trips=link.rtt_s,
        down=8 * line.wire_bytes_down / clients / link.downlink,
        compute=max(0.0, line.client_seconds) / clients,
        up=8 * line.wire_bytes_up / clients / link.uplink,
    )


def seconds_by_round(run: RunFolder, link: Link) -> dict[int, float]:
    """Return seconds from the start until each recorded round was done; empty for a record that does not say enough."""
    total, found = 0.0, {}
    for number, parts in sorted((parts_by_round(run, link) or {}).items()):
        total += parts.total
        found[number] = total
    return found


def total_parts(run: RunFolder, link: Link) -> Parts | None:
    """Estimate the whole run; None for a record that does not say enough."""
    rounds = parts_by_round(run, link)
    return sum(rounds.values(), Parts()) if rounds else None


def parse_rate(text: str, option: str) -> float:
    """Parse `10Mbit`, `10Mbit/s`, `500kbit` or `1.5Gbit` to bits per second. Raises ConfigError naming the option."""
    found = re.fullmatch(r"([0-9.]+) ?([kmg]?)bit(?:/s)?", text.strip().lower())
    rate = _number(found[1]) * RATES[found[2]] if found else math.nan
    if not 0 < rate < math.inf:
        raise ConfigError(f"{option} {text!r} is not a rate such as 10Mbit, 500kbit or 1.5Gbit")
    return rate


def parse_time(text: str, option: str) -> float:
    """Parse `40ms` or `0.2s` to seconds. Raises ConfigError naming the option."""
    found = re.fullmatch(r"([0-9.]+) ?(ms|s)", text.strip().lower())
    seconds = _number(found[1]) * TIMES_S[found[2]] if found else math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{option} {text!r} is not a time such as 40ms or 0.2s")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rate(bits_per_s: float) -> str:
    divisor, unit = next(((size, name) for size, name in ((1e9, "Gbit"), (1e6, "Mbit"), (1e3, "kbit")) if bits_per_s >= size), (1.0, "bit"))
    return f"{bits_per_s / divisor:g} {unit}/s"
