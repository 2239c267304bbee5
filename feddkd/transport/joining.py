"""Answers Describe and Join: who comes in, and what a newcomer is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import grpc

from feddkd.transport.admission import Admission, check_owner, check_version, example_counts, parse_request
from feddkd.transport.calls import Responses
from feddkd.transport.certificate_policy import ClientCertificatePolicy
from feddkd.transport.class_contract import ClassContract
from feddkd.transport.participation import Participation
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.peer import Peer
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.server_security import ServerSecurity
from feddkd.transport.sessions import Owner, Sessions

MAX_IDS_OF_A_CERTIFICATE = 1_000


class Joining:
    """Admits clients to the sessions of one server. Lives on the server's loop.

    Attributes:
        classes: what the clients said of their classes.
        responses: bounds the responses that are under way.
    """

    def __init__(self, manifest: pb.Manifest, admission: Admission, sessions: Sessions, participation: Participation) -> None:
        self._admission = admission
        self._sessions = sessions
        self._participation = participation
        self.classes = ClassContract()
        self.describe(manifest)

    def describe(self, manifest: pb.Manifest) -> None:
        """Take what clients are told of the run."""
        self._described = pb.DescribeResponse(manifest=manifest).SerializeToString()
        self._joined = pb.JoinResponse(manifest=manifest, takes_batches=True).SerializeToString()
        self.responses = Responses(len(self._joined))

    @property
    def _security(self) -> ServerSecurity:
        return self._participation.security

    @property
    def _policy(self) -> ClientCertificatePolicy:
        return self._security.policy

    async def description(self, message: bytes, peer: Peer) -> bytes:
        """Return the response to Describe. Raises NotAdmittedError."""
        with self._noting(peer, lambda: ""):
            check_version(parse_request(message, pb.DescribeRequest).protocol_version)
            self._policy.check(peer)
        return self._described

    async def join(self, message: bytes, peer: Peer) -> bytes:
        """Admit a client, and return the response to Join. Raises NotAdmittedError; then nothing is remembered of it."""
        request = pb.JoinRequest()
        with self._noting(peer, lambda: request.client_id):
            request.CopyFrom(parse_request(message, pb.JoinRequest))
            await self._check(request, peer)
            token = self._admit(request, peer)
        # Two parts of one message: the manifest need not be serialized for each client.
        return self._joined + pb.JoinResponse(session_token=token).SerializeToString()

    @contextlib.contextmanager
    def _noting(self, peer: Peer, asked: Callable[[], str]) -> Iterator[None]:
        """Record who is refused, and under which id."""
        try:
            yield
        except NotAdmittedError as error:
            self._participation.refuse(error, peer, asked(), is_expected=asked() in (self._admission.expected or ()))
            raise

    async def _check(self, request: pb.JoinRequest, peer: Peer) -> None:
        """Check that a client may join, and use its join token up. Raises NotAdmittedError.

        Who it is comes first: a stranger learns nothing of the run and of its clients, and changes nothing.
        """
        self._admission.check_form(request)
        self._policy.check(peer, request.client_id)
        tokens, shown = self._security.tokens, (request.client_id, request.join_token, request.instance_id)
        is_first = tokens is not None and tokens.check(*shown)
        self._admission.check(request)
        self._check_place(request, self._owner(request, peer))
        if tokens is not None and is_first:
            await asyncio.to_thread(tokens.use, *shown)  # it writes a file, and another process may hold its lock
            self._check_place(request, self._owner(request, peer))  # others have come meanwhile

    def _check_place(self, request: pb.JoinRequest, owner: Owner) -> None:
        """Check that the run has a place for a client that is known. Raises NotAdmittedError."""
        now = asyncio.get_running_loop().time()
        self._sessions.expire(now)
        if (holder := self._sessions.holder(request.client_id)) is not None:
            check_owner(holder, owner, now)
        known = self._sessions.find(request.client_id)
        if owner.certificate is not None and (known is None or known.owner.certificate != owner.certificate):
            self._check_certificate(owner.certificate)
        self.classes.check(request.client_id, request.class_names)
        self._check_room(request.client_id, now)  # the last one: it may remove who is long away

    def _owner(self, request: pb.JoinRequest, peer: Peer) -> Owner:
        return Owner.of(
            request.instance_id,
            peer.certificate.sha256 if peer.certificate is not None else None,
            request.client_id if self._policy.binds_ids else None,
        )

    def _admit(self, request: pb.JoinRequest, peer: Peer) -> str:
        """Make the session of a client that was checked, and return its token."""
        now = asyncio.get_running_loop().time()
        self.classes.take(request.client_id, request.class_names)
        if (known := self._sessions.find(request.client_id)) is not None:
            self._participation.supersede(known, "joined again")
        session, token = self._sessions.add(request.client_id, example_counts(request), self._owner(request, peer), now)
        self._participation.events.joined(session, peer, request.software_version, now)
        return token

    def _check_room(self, client_id: str, now: float) -> None:
        """Check that an id may be added, after one that is long away has made room. Raises NotAdmittedError."""
        limit = self._admission.max_clients
        if not self._sessions.make_room(client_id, limit, now):
            raise NotAdmittedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{limit} clients have joined, as many as the server's scheduler.max_clients admits",
                kind="full",
            )

    def _check_certificate(self, certificate: bytes) -> None:
        """Check that a certificate may hold one more id. Raises NotAdmittedError."""
        if self._sessions.held_by(certificate) >= MAX_IDS_OF_A_CERTIFICATE:
            raise NotAdmittedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_IDS_OF_A_CERTIFICATE} clients have joined with this certificate",
                kind="full",
            )
