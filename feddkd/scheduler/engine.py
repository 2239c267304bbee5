"""Defines the interface of an engine: it carries out exchanges and reports exactly what happened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from feddkd.exchange import ExampleCounts, Exchange, ExchangeId, Outcome
from feddkd.traffic import Traffic


@dataclass(frozen=True, slots=True)
class ClientStates:
    """How many clients are in which state, for the metrics.

    Attributes:
        connected: there, with nothing to do.
        working: there, with a reply to send.
        lost: had joined, but are not connected.
    """

    connected: int = 0
    working: int = 0
    lost: int = 0


def client_state(client: str, here: Collection[str], awaited: Collection[str]) -> str:
    """Return the state of a client that has joined: the name of an attribute of `ClientStates`.

    Args:
        here: clients that are connected.
        awaited: clients whose reply is awaited.
    """
    if client not in here:
        return "lost"
    return "working" if client in awaited else "connected"


Keep = Callable[[Outcome], None]
"""Makes an outcome durable."""


class OpenExchange(Protocol):
    """An exchange that was begun. It is open until it is acknowledged, or has failed."""

    def outcome(self) -> Outcome:
        """Wait until it has closed and its contributions are reduced; again the same when asked again.

        Raises:
            RunError: the run was aborted, or the contributions cannot be kept (a full disk).
        """

    def acknowledge(self) -> None:
        """Tell the clients what became of their replies, which they keep until then; again does nothing.

        To be called once the outcome is kept: what a client forgets the server must not lose. Only a refusal is
        told sooner. The messages were counted when the exchange closed.

        Raises:
            RunError: as `outcome`; then nobody is told.
        """


class Engine(ABC):
    """A way to carry out exchanges. Every engine gives the same bits.

    Several exchanges may be open at once, as long as each client takes part in one of them. What a client
    does never raises here. After `abort` every method but `states`, `other_traffic` and `finish` raises
    RunError, those that wait at once.
    """

    @abstractmethod
    def clients(self) -> Mapping[str, ExampleCounts]:
        """Return the example counts of the clients that can take part now, by id, in client order.

        One whose connection broke a moment ago can: an exchange gives it time to come back.
        """

    @abstractmethod
    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        """Block until `count` clients are connected; False if `timeout_s` passes first (None: no timeout)."""

    def wait_for(self, clients: Collection[str], timeout_s: float) -> bool:
        """Block until all these clients are connected; False if `timeout_s` passes first.

        By default says whether they are: where clients do not come and go, nothing is to be waited for.
        """
        return set(clients) <= self.clients().keys()

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:  # noqa: B027  # where replies cannot be lost
        """Take in what clients were told by an earlier process of the server, before the first exchange begins.

        A client that asks what became of its reply to the exchange named here is told that it counted, as the
        process before would have told it. By default does nothing: clients then live and die with the engine.

        Args:
            counted: the last exchange that each client's reply counted in, by client.
        """

    @abstractmethod
    def begin(self, exchange: Exchange) -> OpenExchange:
        """Broadcast an exchange. Raises ValueError if one of its clients takes part in an open one."""

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        """Begin an exchange, wait for its outcome, and acknowledge it.

        Args:
            keep: is called before any client is told anything. What it raises is raised here, and nobody is told.
        """
        begun = self.begin(exchange)
        outcome = begun.outcome()
        if keep is not None:
            keep(outcome)
        begun.acknowledge()
        return outcome

    @abstractmethod
    def other_traffic(self) -> Traffic:
        """Return the bytes so far outside any exchange: joins, late replies, farewells. From any thread."""

    @abstractmethod
    def states(self) -> ClientStates:
        """Return how many clients are in each state now. From any thread."""

    def owners(self) -> Mapping[str, str]:
        """Return what proves who owns each client id (never the secret), for the next server process."""
        return {}

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, as the clients told them; empty where they are not known. From any thread."""
        return ()

    def last_heard(self) -> Mapping[str, float]:
        """Return how many seconds ago each joined client was heard, by id. From any thread."""
        return {}

    def here(self) -> list[str]:
        """The clients that are connected now, in client order; by default all. From any thread."""
        return list(self.clients())

    def waiting_for(self) -> list[str]:
        """Return the clients whose reply is awaited, in client order. From any thread."""
        return []

    def last_replies(self) -> Mapping[str, tuple[ExchangeId, float]]:
        """Return the last closed exchange that each client replied to, and the seconds from its broadcast to the reply.

        From any thread. By default empty: where clients take turns, a time says nothing of a client.
        """
        return {}

    def refused(self) -> Mapping[str, int]:
        """Return how many calls of clients were refused, by the kind of reason. From any thread."""
        return {}

    def answers(self, timeout_s: float) -> bool:
        """Return whether what serves the clients reacts within `timeout_s` seconds. From any thread."""
        return True

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Make the run fail at once, from any thread: whatever waits for this engine raises RunError(reason)."""

    @abstractmethod
    def check_aborted(self) -> None:
        """Raise RunError if the run was aborted: for work between two exchanges. From any thread."""

    def let_go(self, clients: Collection[str], reason: str) -> None:  # noqa: B027  # where nobody waits to be told
        """Tell some clients that the run is over for them, as planned; the others stay."""

    @abstractmethod
    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        """Tell the clients that the run is over and why, and let them go; doing it again does nothing.

        Args:
            paused: the run is not over: clients keep what they have in hand, and come back to the next server.
        """
