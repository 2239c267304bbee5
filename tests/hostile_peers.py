"""Clients that send a live server any bytes over raw gRPC, and never wait without a time limit."""

from __future__ import annotations

import queue
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError
from hostile_messages import Messages, Situation

from feddkd.transport.pb import federation_pb2 as pb

SERVICE = "/feddkd.v1.FederationService/"
UNARY_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 120.0
REPLY_TIMEOUT_S = 30.0
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class Tally:
    """Counts what was sent and what came back. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.calls: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self.receipts: Counter[str] = Counter()

    def __str__(self) -> str:
        counters = {"calls": self.calls, "streams": self.streams, "receipts": self.receipts}
        lines = [f"{name}: {dict(counter.most_common())}" for name, counter in counters.items()]
        return "\n".join([f"{self.sent} messages", *lines])

    def add(self, counter: Counter[str], name: str) -> None:
        with self._lock:
            counter[name] += 1

    def add_sent(self) -> None:
        with self._lock:
            self.sent += 1


class Stream:
    """One Participate stream that sends any bytes, and reads only if it is told to."""

    def __init__(self, channel: grpc.Channel, tally: Tally) -> None:
        self._tally = tally
        self._outgoing: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._listens = False
        self._responses: queue.SimpleQueue[pb.ParticipateResponse | None] = queue.SimpleQueue()
        participate: Any = channel.stream_stream(f"{SERVICE}Participate")
        self._call = participate(self._requests(), timeout=STREAM_TIMEOUT_S)
        self._call.add_callback(self._over.set)

    def _requests(self) -> Iterator[bytes]:
        while (item := self._outgoing.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._tally.add_sent()
            yield item

    def send(self, *messages: bytes) -> Self:
        for message in messages:
            self._outgoing.put(message)
        return self

    def greet(self, token: str) -> Self:
        hello = pb.Hello(session_token=token)
        return self.send(pb.ParticipateRequest(hello=hello).SerializeToString())

    def flush(self) -> None:
        """Return when gRPC has taken what was sent, or the stream is over, or it takes too long."""
        taken = threading.Event()
        self._outgoing.put(taken)
        waited = 0.0
        while not (taken.is_set() or self._over.is_set()) and waited < REPLY_TIMEOUT_S:
            taken.wait(0.02)
            waited += 0.02

    def listen(self) -> Self:
        """Read all responses from now on."""
        if not self._listens:
            self._listens = True
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        try:
            for message in self._call:
                if message[:1] != b"\x12":  # a chunk
                    self._responses.put(pb.ParticipateResponse.FromString(message))
        except (grpc.RpcError, DecodeError):
            pass
        self._responses.put(None)

    def next(self, kind: str) -> pb.ParticipateResponse | None:
        """The next response of one kind; None if the stream ends or it takes too long."""
        try:
            while response := self._responses.get(timeout=REPLY_TIMEOUT_S):
                if response.WhichOneof("message") == "receipt":
                    verdict = pb.Verdict.Name(response.receipt.verdict)
                    self._tally.add(self._tally.receipts, verdict)
                if response.WhichOneof("message") == kind:
                    return response
        except queue.Empty:
            self._tally.add(self._tally.streams, f"no {kind}")
        return None

    def half_close(self) -> None:
        self._outgoing.put(None)

    def wait(self) -> None:
        """Return when the server has ended the stream, or it takes too long."""
        if not self._over.wait(REPLY_TIMEOUT_S):
            self._tally.add(self._tally.streams, "not ended")

    def hang_up(self) -> None:
        """End the stream, if the server has not, and count how it ended."""
        if self._over.is_set():
            self._tally.add(self._tally.streams, self._call.code().name)
        self._call.cancel()
        self._outgoing.put(None)


class Peer:
    """One hostile process: a connection with what is done over it."""

    def __init__(self, address: str, random: Random, situation: Situation, tally: Tally) -> None:
        self.random = random
        self.messages = Messages(random, situation)
        self.situation = situation
        self.address = address
        self._tally = tally
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)

    def call(self, method: str, message: bytes) -> bytes | None:
        """The response of a unary call; None if it is refused."""
        call: Any = self._channel.unary_unary(SERVICE + method)
        self._tally.add_sent()
        try:
            response: bytes = call(message, timeout=UNARY_TIMEOUT_S)
        except grpc.RpcError as error:
            status: Any = error  # also a grpc.Call
            self._tally.add(self._tally.calls, status.code().name)
            return None
        self._tally.add(self._tally.calls, "OK")
        return response

    def join(self, client_id: str, *, examples: int = 1, instance: str = "hostile") -> str | None:
        """The token of a session; None if the server refuses."""
        request = pb.JoinRequest(protocol_version=1, client_id=client_id)
        request.num_examples, request.instance_id = examples, instance
        response = self.call("Join", request.SerializeToString())
        return None if response is None else pb.JoinResponse.FromString(response).session_token

    def stream(self) -> Stream:
        return Stream(self._channel, self._tally)

    def member(self, client_id: str) -> Stream | None:
        """A stream of a client that has joined."""
        token = self.join(client_id)
        return None if token is None else self.stream().greet(token)

    def raw(self, data: bytes) -> None:
        """Send bytes to the port, and hang up."""
        host, port = self.address.split(":")
        self._tally.add_sent()
        try:
            with socket.create_connection((host, int(port)), timeout=UNARY_TIMEOUT_S) as connection:
                connection.sendall(data)
                if self.random.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._tally.add(self._tally.calls, "connection refused")

    def close(self) -> None:
        self._channel.close()


def describe(address: str) -> pb.Manifest:
    """What a server says that it runs. Raises grpc.RpcError if it does not answer."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}Describe")
        request = pb.DescribeRequest(protocol_version=1).SerializeToString()
        return pb.DescribeResponse.FromString(call(request, timeout=UNARY_TIMEOUT_S)).manifest
