"""Carries out exchanges on other processes that compute for the clients, several at a time."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.engines.collection import Collection, max_evaluated
from feddkd.engines.dispatch import Dispatch, Turn
from feddkd.engines.hosted_exchange import HostedExchange
from feddkd.engines.hosts import Host, HostLostError, Hosts
from feddkd.engines.seats import Seat, start_together
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.engines.timeless_exchange import NOW
from feddkd.errors import FedDKDError, RunError
from feddkd.exchange import ExampleCounts, Exchange, ExchangeId
from feddkd.failpoints import failpoint
from feddkd.imports import one_line
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.traffic import Traffic

logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 10.0
"""Seconds for a computation to end that is not wanted any more; then its process is killed."""


class HostedEngine(Engine):
    """Hands out clients to hosts, one at a time to each, and collects their replies as they come.

    Nobody is late, as in process: a client has no clock to race, and waits until a host is free. A host that is lost
    takes the client that it computes for with it. That client is missing in the exchange and is asked in the next one,
    by another host; the lost one is replaced where there is room.
    """

    def __init__(
        self, hosts: Hosts, chunk_bytes: int, staging_bytes: int = 64 << 20, spool_folder: Path | None = None, *, holdout: float = 0.0
    ) -> None:
        """Start no host yet.

        Args:
            chunk_bytes: of tensor data in one message.
            staging_bytes: memory for contributions that wait to be reduced; more goes to a temporary file.
            spool_folder: where that file goes.
            holdout: `data.holdout`; bounds what a client can say that it has evaluated.
        """
        self._hosts = hosts
        self._chunk_bytes = chunk_bytes
        self._spool = Spool(staging_bytes, chunk_bytes + CODE_MARGIN_BYTES, spool_folder)
        self._limits = {client: max_evaluated(counts.labelled, holdout) for client, counts in hosts.counts.items()}
        self.changed = threading.Condition()
        """Guards everything below, and what is open."""
        self._dispatch = Dispatch(movable=hosts.movable)
        self._open: dict[str, HostedExchange] = {}
        self._computing: set[str] = set()
        self._counted: dict[str, ExchangeId] = {}
        self._seats: dict[int, Seat] = {}
        self._aborted: RunError | None = None
        self._finished = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(completed=False, reason="the engine was closed")

    def start(self) -> None:
        """Start all hosts. Raises RunError if there is room for none, and what `Hosts.start` raises."""
        hosts = start_together(self._start_host, self._hosts.num_hosts)
        if not hosts:
            raise RunError("no process could be started that computes for the clients")
        for number, host in enumerate(hosts):
            self._seats[number] = seat = Seat(number, host)
            seat.thread = threading.Thread(target=self._serve, args=(seat,), name=f"host-{number}", daemon=True)
            seat.thread.start()

    def _start_host(self, number: int) -> Host | None:
        """Start a host; None where there is no room for it. Raises FedDKDError, whatever goes wrong."""
        with self.changed:
            counted = dict(self._counted)
        try:
            return self._hosts.start(counted)
        except HostLostError as error:
            logger.warning("host %d cannot be started: %s", number, error)
            return None
        except FedDKDError:
            raise
        except Exception as error:
            raise RunError(f"host {number} cannot be started: {one_line(error)}") from error

    # For the scheduler.

    def clients(self) -> Mapping[str, ExampleCounts]:
        self.check_aborted()
        return self._hosts.counts

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        return len(self.clients()) >= count

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        with self.changed:
            self._counted.update(counted)
            clients_of: dict[ExchangeId, dict[str, bool]] = defaultdict(dict)
            for client, exchange in counted.items():
                clients_of[exchange][client] = True
            for exchange, clients in clients_of.items():
                self._settle(exchange, clients)

    def begin(self, exchange: Exchange) -> HostedExchange:
        with self.changed:
            self.check_aborted()
            if busy := [client for client in exchange.clients if client in self._open]:
                raise ValueError(f"{busy[0]} takes part in {self._open[busy[0]].exchange.id}, which is open")
            # Those of an exchange that failed may still compute.
            self.changed.wait_for(lambda: self._aborted is not None or self._computing.isdisjoint(exchange.clients))
            self.check_aborted()
            collection = Collection(exchange, self._spool, chunk_bytes=self._chunk_bytes, now=NOW, max_evaluated=self._limits)
            here = [client for client in exchange.clients if client in self._hosts.counts]
            begun = HostedExchange(self, collection, self._chunk_bytes, here)
            self._open.update(dict.fromkeys(exchange.clients, begun))
            self._dispatch.add(here)
            self.changed.notify_all()
        failpoint("engine.exchange.after_begin")
        return begun

    def other_traffic(self) -> Traffic:
        return Traffic()

    def states(self) -> ClientStates:
        if self._finished:
            return ClientStates()  # who has been let go is not lost
        working = len(self.waiting_for())
        return ClientStates(len(self._hosts.counts) - working, working)

    @property
    def class_names(self) -> Sequence[str]:
        return self._hosts.class_names

    def last_heard(self) -> Mapping[str, float]:
        return dict.fromkeys(self._hosts.counts, 0.0)

    def waiting_for(self) -> list[str]:
        with self.changed:
            return sorted(client for client, begun in self._open.items() if client in self._hosts.counts and begun.waits_for(client))

    def abort(self, reason: str) -> None:
        with self.changed:
            if self._aborted is None:
                self._aborted = RunError(reason)
            self.changed.notify_all()
            seats = list(self._seats.values())
        self._abort_hosts(seats, reason)

    def check_aborted(self) -> None:
        if self._aborted is not None:
            raise self._aborted

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        """Let the hosts know what they have not heard yet, and end them."""
        with self.changed:
            if self._finished:
                return
            self._finished = True
            self.changed.notify_all()
            seats = list(self._seats.values())
        self._abort_hosts(seats, reason)
        for seat in seats:
            assert seat.thread is not None
            seat.thread.join(EXIT_TIMEOUT_S)
            seat.host.end()
        for seat in seats:
            assert seat.thread is not None
            seat.thread.join()
        self._hosts.close()
        self._spool.close()

    def _abort_hosts(self, seats: Sequence[Seat], reason: str) -> None:
        for seat in seats:
            try:
                seat.host.abort(reason)
            except HostLostError:  # then it computes no more
                logger.debug("host %d is gone", seat.number)

    # For its exchanges.

    def release(self, begun: HostedExchange) -> None:
        """Take in that an exchange is not open any more."""
        with self.changed:
            self._dispatch.withdraw(begun.exchange.clients)
            for client in begun.exchange.clients:
                del self._open[client]

    def settle(self, begun: HostedExchange, counted: Mapping[str, bool]) -> None:
        """Let every host know what became of the replies: any of them may ask their clients next.

        Args:
            counted: by client, whether its reply counted.
        """
        with self.changed:
            self._counted.update({client: begun.exchange.id for client, counts in counted.items() if counts})
            self._settle(begun.exchange.id, counted)
            self.changed.notify_all()

    def _settle(self, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        for seat in self._seats.values():
            seat.settlements.append((exchange, counted))

    # In the thread of a host.

    def _serve(self, seat: Seat) -> None:
        """Do what there is to do for a host until the engine finishes, or there is no room for the host any more."""
        is_there = True
        while is_there and (job := self._next_job(seat)) is not None:
            try:
                is_there = self._try(seat, job)
            except Exception as error:  # noqa: BLE001  # or the thread would end, and nobody would be told
                self.abort(f"host {seat.number}: {one_line(error)}")
        seat.host.end()  # one that came while the engine finished is known here alone

    def _try(self, seat: Seat, job: Callable[[], None]) -> bool:
        """Do one thing; False where the host is lost and no other takes its place."""
        try:
            job()
        except HostLostError as error:
            logger.warning("host %d is lost: %s", seat.number, error)
            return self._replace(seat)
        return True

    def _next_job(self, seat: Seat) -> Callable[[], None] | None:
        """Wait for the next thing to do; None at the end."""
        with self.changed:
            while True:
                if seat.settlements:
                    exchange, counted = seat.settlements.popleft()
                    return lambda: seat.host.settle(exchange, counted)
                if self._finished:
                    return None
                if self._aborted is None and (turn := self._dispatch.next(seat.number)) is not None:
                    self._computing.add(turn.client)
                    begun = self._open[turn.client]
                    return lambda: self._take_turn(seat, turn, begun)
                self.changed.wait()

    def _take_turn(self, seat: Seat, turn: Turn, begun: HostedExchange) -> None:
        """Let a host compute for a client, and collect the reply. Raises HostLostError."""
        try:
            if turn.held_by is not None:
                self._fetch(turn.client, turn.held_by)
            begun.ask(turn.client, seat.host, self._hosts)
        except HostLostError:
            begun.lose(turn.client)
            raise
        except Exception as error:  # noqa: BLE001  # of the exchange, which raises it where its outcome is asked for
            begun.fail(error)
        finally:
            with self.changed:
                self._computing.discard(turn.client)
                self.changed.notify_all()

    def _fetch(self, client: str, holder: int) -> None:
        """Let the host that holds a client put it into its state directory."""
        with self.changed:
            seat = self._seats.get(holder)
        if seat is not None:
            try:
                seat.host.let_go([client])
            except HostLostError:  # then it holds nobody
                logger.debug("host %d is gone", holder)

    def _replace(self, seat: Seat) -> bool:
        """Start another host in the place of one that is lost; False where there is no room."""
        with self.changed:
            self._dispatch.lose(seat.number)
            self.changed.notify_all()
        seat.host.end()
        try:
            host = None if self._finished else self._start_host(seat.number)
        except FedDKDError as error:
            self.abort(str(error))
            return False
        with self.changed:
            if host is not None:
                seat.host = host
                return True
            del self._seats[seat.number]
            is_last = not self._seats and not self._finished
        if is_last:
            self.abort("the last process that computes for the clients is lost")
        return False
