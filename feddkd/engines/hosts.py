"""Defines what an engine asks of other processes that compute for its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.transport.payload import Payload


class HostLostError(Exception):
    """A host is gone, with everything that it had not written to a state directory."""


class Host(Protocol):
    """A process that computes for one client at a time.

    Every method raises HostLostError if the process, its machine or the way to it is gone.
    """

    def has_constants(self, client: str, version: bytes) -> bool:
        """Return whether a client holds the constants that it is to compute with. Raises StateError."""

    def reply_of(self, client: str, message: bytes, payload: Any) -> Sequence[bytes | memoryview] | None:
        """Let a client take in a broadcast and compute; return the messages of its reply.

        None where it lacks the model that the broadcast is to be added to.

        Args:
            message: before the payload.
            payload: what `Hosts.share` returned.

        Raises:
            RunError: the run cannot go on.
            StateError: the client's state directory cannot be used.
        """

    def settle(self, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        """Let clients know whether their replies to an exchange counted."""

    def let_go(self, clients: Sequence[str]) -> None:
        """Put everything of some clients into their state directories, for another host. From any thread."""

    def abort(self, reason: str) -> None:
        """End the computation under way, and let every later one fail; does not wait. From any thread."""

    def end(self) -> None:
        """End the process, whatever it does. From any thread; raises nothing."""


class Hosts(Protocol):
    """Starts hosts.

    Attributes:
        counts: what each client computes on, by id, in client order.
        class_names: in the order of their numbers; empty where they are not known.
        movable: a client's state can go from one host to another.
        num_hosts: how many to start.
    """

    counts: Mapping[str, ExampleCounts]
    class_names: Sequence[str]
    movable: bool
    num_hosts: int

    def start(self, counted: Mapping[str, ExchangeId]) -> Host:
        """Start a host.

        Args:
            counted: the last exchange that each client's reply counted in, of those that a reply counted of.

        Raises:
            HostLostError: there is no place for it.
            FedDKDError: the data or the model are not as the configuration says.
        """

    def share(self, payload: Payload) -> Any:
        """Make a payload available to all hosts, once for all clients."""

    def close(self) -> None:
        """End what the hosts ran on, if it was started for them."""
