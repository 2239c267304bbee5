"""Serves grpc.health.v1 on the server's own port, and asks a server for it.

It names two services: "" for the whole server, and feddkd's. Both serve from the moment that clients can join until
the server lets its clients go. A probe needs what the port needs, a client certificate for instance, and no more: it
joins nothing and costs no byte of the run's account.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from feddkd.errors import FedDKDError, UnreachableError
from feddkd.text import printable
from feddkd.transport.frames import SERVICE
from feddkd.transport.options import client_options
from feddkd.transport.peer import Peer
from feddkd.transport.tls import ClientTls
from feddkd.transport.tls_problems import cause_of

SERVICES = ("", SERVICE)

MAX_WATCHES = 64
"""Watch calls that are open at a time, of all probes."""

MAX_PEER_WATCHES = 8
"""Watch calls that are open at a time, of one address: some places are left for the probes of others."""

MAX_WATCH_S = 3600.0
"""A probe that watches begins again after this time."""

Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says whether clients can join. Lives on the server's loop.

    `grpc_health.aio.HealthServicer` has no limit on the calls of Watch, of all probes or of one, nor on their length,
    and the calls stay open until the server cancels them: they would take its whole time to stop.
    """

    def __init__(self) -> None:
        self._status: int = Status.NOT_SERVING
        self._changed = asyncio.Event()
        self._watches: Counter[str] = Counter()
        self._has_ended = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer on the server's port."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def serve(self) -> None:
        """Clients can join from now on."""
        self._set(Status.SERVING)

    def end(self) -> None:
        """Clients can join no more; who watches is told so, and let go. Again does nothing."""
        self._has_ended = True
        self._set(Status.NOT_SERVING)

    def _set(self, status: int) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return Status(status=self._status)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        return health_pb2.HealthListResponse(statuses={name: Status(status=self._status) for name in SERVICES})

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Write the status now and when it changes, until the server stops."""
        peer = Peer(context.peer()).host
        if self._watches[peer] >= MAX_PEER_WATCHES or self._watches.total() >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many probes watch already")
        self._watches[peer] += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MAX_WATCH_S):
                    await self._watch(context, is_known=request.service in SERVICES)
        finally:
            self._watches[peer] -= 1
            self._watches += Counter()  # leaves out who watches no more

    async def _watch(self, context: Any, *, is_known: bool) -> None:
        while not self._has_ended:
            changed = self._changed
            await context.write(Status(status=self._status if is_known else Status.SERVICE_UNKNOWN))
            await changed.wait()
        await context.write(Status(status=self._status if is_known else Status.SERVICE_UNKNOWN))


class NotServingError(FedDKDError):
    """A server answered, and clients cannot join it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """How a server is asked.

    Attributes:
        service: "" or the full name of a service.
        timeout_s: seconds for connection and answer together.
        tls: None for plaintext.
        name: that the server's certificate must have, where that is not the address.
    """

    service: str = ""
    timeout_s: float = 5.0
    tls: ClientTls | None = None
    name: str = ""

    def check(self, host: str, port: int) -> None:
        """Ask a server whether clients can join.

        Raises:
            NotServingError: they cannot.
            UnreachableError: there is no answer in time, or it is an error.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options: list[tuple[str, Any]] = [*client_options(host)]
        if self.name:
            options.append(("grpc.ssl_target_name_override", self.name))
        request = health_pb2.HealthCheckRequest(service=self.service)
        if self.tls is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address, self.tls.credentials, options)
        with channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=self.timeout_s)
            except grpc.RpcError as error:
                raise UnreachableError(f"server {address}: {printable(cause_of(error.details() or error.code().name.lower()))}") from None
        if answer.status != Status.SERVING:
            raise NotServingError(f"server {address}: clients cannot join ({Status.ServingStatus.Name(answer.status)})")
