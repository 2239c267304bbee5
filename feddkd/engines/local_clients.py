"""The clients of one process: each takes in what it would be sent, computes, and returns the messages of its reply."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from feddkd.client.kept_reply import KeptReply
from feddkd.client.membership import Membership
from feddkd.client.simulated import SimulatedClient
from feddkd.client.work import TaskRunner, Work
from feddkd.engines.client_memory import ClientMemory
from feddkd.errors import BadExamplesError, RunError
from feddkd.exchange import ExchangeId
from feddkd.transport.pb import federation_pb2 as pb


class LocalClients:
    """Clients that compute one at a time.

    What they keep is settled, and let go, from any thread; a client that computes is neither.

    Attributes:
        workers: one for each client, by id, in client order.
    """

    def __init__(
        self, workers: Mapping[str, TaskRunner], memberships: Mapping[str, Membership] | None = None, *, most_held: int | None = None
    ) -> None:
        """Take in the clients.

        Args:
            workers: one for each client, by id.
            memberships: of the clients that remember, in a state directory, what earlier processes sent.
            most_held: clients of which models stay in memory between exchanges; None for all.
        """
        self.workers = dict(sorted(workers.items()))
        self._memory = ClientMemory(memberships or {}, most_held)
        self._guard = threading.Lock()
        self._work: Work | None = None
        self._aborted: RunError | None = None

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        """Take in the last exchange that each client's reply counted in, in an earlier process."""
        with self._guard:
            self._memory.remember(counted)

    def has_constants(self, client: str, version: bytes) -> bool:
        """Return whether a client holds the constants that it is to compute with."""
        return self.workers[client].constants.has(version)

    def reply_of(self, client: str, message: pb.Work, chunks: Iterable[bytes | memoryview]) -> Iterable[bytes] | None:
        """Let a client take in a broadcast and compute; return the messages of its reply.

        None where it lacks the model that the broadcast is to be added to.

        Raises:
            RunError: it was aborted, or too many of the client's examples cannot be used: the run has no other data.
            StateError: what the client keeps cannot be read.
        """
        with self._guard:
            held = self._memory.held(client, message.id.run_id)
        self._work = work = Work(message, self.workers[client], held)
        try:
            self._check()
            # Put together for each client, as over the network: none can touch another's broadcast.
            for chunk in chunks:
                work.receive(chunk)
            if work.is_lacking:
                return None
            if work.can_be_computed:
                work.keep(reply := _computed(client, work))
                with self._guard:
                    self._memory.keep(client, message, reply)
            self._check()
            return work.reply_from(0)
        finally:
            self._work = None

    def settle(self, client: str, exchange: ExchangeId, *, counted: bool) -> None:
        """Let a client know what became of its reply."""
        with self._guard:
            self._memory.settle(client, exchange, counted=counted)

    def let_go(self, client: str) -> None:
        """Let another process compute for a simulated client: all that is left of it is its state directory."""
        with self._guard:
            self._memory.let_go(client)
            worker = self.workers[client]
            if isinstance(worker, SimulatedClient):
                worker.let_go()

    def abort(self, error: RunError) -> None:
        """End the computation under way, and let every later one raise `error`. From any thread."""
        self._aborted = error
        if (work := self._work) is not None:
            work.cancelled.set()

    def _check(self) -> None:
        if self._aborted is not None:
            raise self._aborted


def _computed(client: str, work: Work) -> KeptReply:
    """Compute a client's reply, or the one that says what it raised.

    Raises RunError if too many of its examples cannot be used.
    """
    task = work.start()
    try:
        return work.compute(task)
    except BadExamplesError as error:
        raise RunError(f"{client}: {error}") from error
    except Exception as error:  # noqa: BLE001  # what a user's code raises is this client's failure alone
        return work.failure(error)


def work_of(message: bytes) -> pb.Work:
    """Read the message before a broadcast as its client would."""
    return pb.ParticipateResponse.FromString(message).work
