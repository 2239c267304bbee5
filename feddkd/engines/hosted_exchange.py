"""An exchange that hosts compute while its contributions are reduced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from feddkd.engines.collection import Collection as Replies
from feddkd.engines.hosts import Host, Hosts
from feddkd.engines.timeless_exchange import NOW, Sent, TimelessExchange
from feddkd.exchange import Outcome
from feddkd.failpoints import failpoint


class Keeper(Protocol):
    """The engine, as an open exchange uses it.

    Attributes:
        changed: guards the exchange.
    """

    changed: threading.Condition

    def check_aborted(self) -> None:
        """Raise RunError if the run was aborted."""

    def release(self, begun: HostedExchange) -> None:
        """Take in that an exchange is not open any more."""

    def settle(self, begun: HostedExchange, counted: Mapping[str, bool]) -> None:
        """Let clients know whether their replies counted."""


class HostedExchange:
    """An exchange from its broadcast until it is acknowledged.

    The threads of the hosts collect replies. The thread that asks for the outcome reduces them meanwhile.
    """

    def __init__(self, engine: Keeper, collection: Replies, chunk_bytes: int, here: Collection[str]) -> None:
        """Begin to wait.

        Args:
            here: the clients that a host can compute for.
        """
        self.exchange = collection.exchange
        self._engine = engine
        self._collection = collection
        self._carried = TimelessExchange(collection, chunk_bytes)
        self._here = here
        self._awaited = set(here)
        for client in self.exchange.clients:
            if client not in self._awaited:
                collection.disconnect(client, NOW)
        self._shared: dict[int, Any] = {}
        self._sharing = threading.Lock()
        self._error: Exception | None = None
        self._outcome: Future[Outcome] = Future()
        self._asking = threading.Lock()
        self._is_open = True

    def waits_for(self, client: str) -> bool:
        """Return whether the client still has a reply to send."""
        return self._collection.waits_for(client)

    # For the scheduler.

    def outcome(self) -> Outcome:
        self._engine.check_aborted()
        with self._asking:
            if not self._outcome.done():
                self._complete()
        return self._outcome.result()

    def acknowledge(self) -> None:
        replies = self.outcome().replies
        failpoint("engine.acknowledge.before")
        if self._is_open:
            self._release()
            self._engine.settle(self, {client: client in replies for client in self.exchange.clients})
            for _ in self.exchange.clients:  # as often as on every engine
                failpoint("engine.acknowledge.after_first")

    def _complete(self) -> None:
        """Find the outcome, or what is raised in its place."""
        try:
            self._reduce()
            with self._engine.changed:
                self._outcome.set_result(self._carried.close(self._here))
        except Exception as error:  # noqa: BLE001  # for instance what a rule raises: the same when asked again
            self._outcome.set_exception(error)
        finally:
            with self._engine.changed:
                self._collection.close()
                self._awaited.clear()
                self._shared.clear()
            if not self._outcome.done() or self._outcome.exception() is not None:
                self._release()

    def _release(self) -> None:
        self._is_open = False
        self._engine.release(self)

    def _reduce(self) -> None:
        """Reduce contributions as they come until nothing is left to be done."""
        while (step := self._next_step()) is not None:
            try:
                step()
            finally:
                with self._engine.changed:
                    assert self._carried.fold is not None
                    self._carried.fold.step_done()

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for the next piece of the reduction; None when it is done."""
        fold = self._carried.fold
        with self._engine.changed:
            while True:
                self._engine.check_aborted()
                if self._error is not None:
                    raise self._error
                if not self._awaited:
                    self._carried.give_up_absent()
                if self._collection.settled if fold is None else fold.finished:
                    return None
                if fold is not None and (step := fold.next_step()) is not None:
                    return step
                self._engine.changed.wait()

    # In the thread of a host.

    def ask(self, client: str, host: Host, hosts: Hosts) -> None:
        """Let a host compute for a client, and collect its reply.

        Raises:
            HostLostError: the host is gone.
            FedDKDError: the exchange cannot go on.
        """
        messages = self._asked(client, host, hosts)
        taking = self._carried.taking(client, messages)
        is_done = False
        while not is_done:  # the lock is free between two chunks
            with self._engine.changed:
                is_done = client not in self._awaited or next(taking, _END) is _END
        self._settled(client)

    def lose(self, client: str) -> None:
        """Take in that the host is lost that computed for a client."""
        with self._engine.changed:
            if client in self._awaited:
                self._collection.disconnect(client, NOW)
        self._settled(client)

    def fail(self, error: Exception) -> None:
        """Let the exchange fail."""
        with self._engine.changed:
            self._error = self._error or error
            self._engine.changed.notify_all()

    def _settled(self, client: str) -> None:
        with self._engine.changed:
            self._awaited.discard(client)
            self._engine.changed.notify_all()

    def _asked(self, client: str, host: Host, hosts: Hosts) -> Sequence[bytes | memoryview]:
        """Send the broadcast to a client, whole if it lacks what a step leads from; return its reply's messages."""
        version = self.exchange.constants.version
        has_constants = not version or host.has_constants(client, version)
        with self._engine.changed:
            sent = self._carried.send(client, has_constants=has_constants)
        while (messages := host.reply_of(client, sent.message, self._share(sent, hosts))) is None:
            with self._engine.changed:
                sent = self._carried.send_whole(client)
        return messages

    def _share(self, sent: Sent, hosts: Hosts) -> Any:
        """Make a payload available to the hosts, once for all clients that need it."""
        with self._sharing:
            key = id(sent.payload)
            if key not in self._shared:
                self._shared[key] = hosts.share(sent.payload)
            return self._shared[key]


_END = object()
