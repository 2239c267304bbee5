"""The reference: every client in this process, one after another, in client order.

Payloads go through the same encoding, checking and reduction as over gRPC, and are counted as the
messages that gRPC would have moved; only the network is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch

from feddkd.aggregator.weighted_mean import Reduction, Rule, WeightedMean
from feddkd.client.worker import Worker
from feddkd.errors import ProtocolError
from feddkd.exchange import Task
from feddkd.scheduler.engine import ClientStates, Exchange, Outcome, Report
from feddkd.tensors import Schema, Segment, Tensors
from feddkd.traffic import Traffic
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import (
    MAX_REASON_CHARACTERS,
    Verdict,
    answer_message,
    failure_message,
    numbers_of,
    receipt_message,
    work_message,
)
from feddkd.transport.payload import Assembly, Payload, check_values
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)


class InProcessEngine:
    """Carries out exchanges serially; holds one client's contribution at a time."""

    def __init__(self, workers: Mapping[str, Worker], chunk_bytes: int, rule: Rule = WeightedMean) -> None:
        self._workers = dict(sorted(workers.items()))
        self._chunk_bytes = chunk_bytes
        self._rule = rule

    def clients(self) -> Mapping[str, int]:
        return {client: worker.num_examples for client, worker in self._workers.items()}

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:  # noqa: ARG002
        return len(self._workers) >= count

    def other_traffic(self) -> Traffic:
        return Traffic()

    def states(self) -> ClientStates:
        return ClientStates(connected=len(self._workers))

    def finish(self, completed: bool, reason: str) -> None:
        """Nobody to tell."""

    def carry_out(self, exchange: Exchange) -> Outcome:
        started = time.monotonic()
        broadcast = Payload(exchange.payload, self._chunk_bytes)
        work = work_message(exchange.id, broadcast, evaluate=exchange.evaluate, deadline_s=exchange.deadline_s)
        accumulator = _Accumulator(exchange.answer_schema, self._rule) if exchange.answer_schema is not None else None
        traffic, reports, missing = Traffic(), dict[str, Report](), dict[str, str]()
        for client, weight in exchange.clients.items():
            traffic.payload_bytes_down += broadcast.size_bytes
            traffic.wire_bytes_down += len(work) + broadcast.frames_bytes
            try:
                # Assembled anew for each client, as over the network: no client can touch another's broadcast.
                received = _transfer(broadcast, exchange.payload.schema)
                reply = self._workers[client].carry_out(Task(exchange.id, received, exchange.evaluate))
                payload = Payload(reply.contribution, self._chunk_bytes) if reply.contribution is not None else None
                message = answer_message(exchange.id, reply, payload)
            except Exception as error:  # noqa: BLE001  # as over gRPC: whatever a user's code raises is this client's failure alone
                missing[client] = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
                traffic.wire_bytes_up += len(failure_message(exchange.id, missing[client]))
                continue
            try:
                self._take(message, payload, weight, accumulator, traffic)
            except ProtocolError as error:
                missing[client] = f"refused: {error}"
                traffic.wire_bytes_down += len(receipt_message(exchange.id, Verdict.VERDICT_INVALID_ARGUMENT, str(error)))
                continue
            reports[client] = Report.of(reply)
            traffic.wire_bytes_down += len(receipt_message(exchange.id, Verdict.VERDICT_OK))
        for client, reason in missing.items():
            logger.warning("%s: %s is left out: %s", exchange.id, client, reason)
        mean = accumulator.result() if accumulator is not None and reports else None
        return Outcome(mean, reports, missing, traffic, time.monotonic() - started)

    def _take(self, message: bytes, payload: Payload | None, weight: float, accumulator: _Accumulator | None, traffic: Traffic) -> None:
        """Count, check and reduce one client's answer."""
        if accumulator is not None and payload is None:
            raise ProtocolError("the answer holds no tensors")
        traffic.wire_bytes_up += len(message)
        numbers_of(pb.ParticipateRequest.FromString(message).answer)
        if payload is None or accumulator is None:
            return
        traffic.wire_bytes_up += payload.frames_bytes
        received = _transfer(payload, accumulator.schema)
        for segment in accumulator.schema.segments:
            check_values(received.elements(segment))
        accumulator.add(received, weight)
        traffic.payload_bytes_up += payload.size_bytes


class _Accumulator:
    """The reduction of whole contributions, one after another."""

    def __init__(self, schema: Schema, rule: Rule) -> None:
        self.schema = schema
        self._reductions: list[tuple[Segment, Reduction]] = [
            (segment, rule(segment.dtype, (segment.stop - segment.start) // segment.dtype.itemsize)) for segment in schema.segments
        ]

    def add(self, contribution: Tensors, weight: float) -> None:
        for segment, reduction in self._reductions:
            reduction.add(contribution.elements(segment), weight)

    def result(self) -> Tensors:
        out = Tensors.empty(self.schema)
        for segment, reduction in self._reductions:
            with torch.no_grad():
                reduction.result(out.elements(segment))
        return out


def _transfer(payload: Payload, expected: Schema) -> Tensors:
    """Encode and decode a payload, message by message."""
    assembly = Assembly(payload.header, expected)
    for frame in payload.frames():
        assembly.add(decode_chunk(frame))
    return assembly.tensors
