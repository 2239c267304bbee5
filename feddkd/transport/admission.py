"""Checks Describe and Join before a client is admitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from feddkd.client_ids import CLIENT_ID, RULE
from feddkd.config.scheduler import MAX_CLIENTS
from feddkd.exchange import ExampleCounts
from feddkd.transport.frames import PROTOCOL_VERSION
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.sessions import Owner, Session

MAX_REQUEST_BYTES = 1 << 20
MAX_INSTANCE_ID_BYTES = 64
MAX_SOFTWARE_VERSION_CHARACTERS = 64
MAX_EXAMPLES = 2**53
"""Example counts are weights in float64; beyond this they would not be exact."""

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Admission:
    """Which clients a run admits.

    Attributes:
        expected: the ids that may join; None for any.
        max_examples: examples a client may declare.
        max_examples_of: examples that single clients may declare, instead of that.
        max_clients: clients that may have joined.
    """

    expected: frozenset[str] | None = None
    max_examples: int = MAX_EXAMPLES
    max_examples_of: Mapping[str, int] = field(default_factory=dict)
    max_clients: int = MAX_CLIENTS

    @staticmethod
    def check_form(request: pb.JoinRequest) -> None:
        """Check what a request needs for its client to be identified. Raises NotAdmittedError."""
        check_version(request.protocol_version)
        if not CLIENT_ID.fullmatch(request.client_id):
            _refuse(f"client id {request.client_id[:64]!r} is not {RULE}")
        if len(request.instance_id.encode()) > MAX_INSTANCE_ID_BYTES:
            _refuse(f"an instance id of more than {MAX_INSTANCE_ID_BYTES} bytes")
        if len(request.software_version) > MAX_SOFTWARE_VERSION_CHARACTERS:
            _refuse(f"a software version of more than {MAX_SOFTWARE_VERSION_CHARACTERS} characters")

    def check(self, request: pb.JoinRequest) -> None:
        """Check that the run takes a client, whose identity was checked. Raises NotAdmittedError."""
        if self.expected is not None and request.client_id not in self.expected:
            raise NotAdmittedError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"client id {request.client_id!r} is not in the server's scheduler.clients",
                kind="identity",
            )
        self._check_examples(request)

    def _check_examples(self, request: pb.JoinRequest) -> None:
        number = request.num_examples
        if number < 1:
            _refuse(f"{number} examples; a client needs at least 1")
        own = self.max_examples_of.get(request.client_id)
        if own is not None and number > own:
            _refuse(f"{number} examples; scheduler.max_examples_of allows {request.client_id} {own}")
        if own is None and number > self.max_examples:
            _refuse(f"{number} examples; scheduler.max_examples is {self.max_examples}")
        if request.HasField("num_labelled") and not 1 <= request.num_labelled <= number:
            _refuse(f"{request.num_labelled} labelled examples of {number}; a client needs at least 1")


def example_counts(request: pb.JoinRequest) -> ExampleCounts:
    """Read how many examples a client has; all have a label unless it says otherwise."""
    labelled = request.num_labelled if request.HasField("num_labelled") else request.num_examples
    return ExampleCounts(labelled, request.num_examples - labelled)


def parse_request(message: bytes, kind: type[_M]) -> _M:
    """Read a unary request. Raises NotAdmittedError if it is too large or malformed."""
    if len(message) > MAX_REQUEST_BYTES:
        _refuse(f"a request of {len(message)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    try:
        return kind.FromString(message)
    except DecodeError:
        _refuse(f"a message of {len(message)} bytes is not a {kind.__name__}")


def check_version(version: int) -> None:
    """Raises NotAdmittedError for a protocol version that is not this server's."""
    if version != PROTOCOL_VERSION:
        versions = f"the client speaks protocol version {version}, this server {PROTOCOL_VERSION}"
        raise NotAdmittedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{versions}; install the same feddkd on both",
            kind="version",
        )


def check_owner(known: Session, owner: Owner, now: float) -> None:
    """Check that a process may take over the id of a session.

    The owner may at any time. Another process may once the client has been silent for long enough,
    but never where a certificate is bound to the id. Raises NotAdmittedError.
    """
    if known.owner.is_also(owner):
        return
    name = repr(known.client_id)
    if known.has_connected and known.owner.certificate is not None:
        _taken(f"client id {name} is bound to another certificate")
    free_in_s = known.hold_s - known.silent_s(now)
    if free_in_s <= 0:
        return
    if known.stream is not None:
        hold = f"the id is free {known.hold_s:g} s after its last message"
        _taken(f"another process takes part as {name}; {hold}")
    state = "is away" if known.has_connected else "has just joined"
    free = f"free in {math.ceil(free_in_s)} s unless it returns"
    _taken(f"another process owns the client id {name} and {state}; the id is {free}")


def _refuse(reason: str) -> NoReturn:
    raise NotAdmittedError(grpc.StatusCode.INVALID_ARGUMENT, reason)


def _taken(reason: str) -> NoReturn:
    raise NotAdmittedError(grpc.StatusCode.ALREADY_EXISTS, reason, kind="taken")
