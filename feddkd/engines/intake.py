"""The answers of one exchange as they arrive, and their reduction in client order.

Chunks are checked and staged as they come, at most `window_bytes` for each client; a client that is
ahead is held back by gRPC's flow control. As soon as every client has either delivered everything or
filled its window, chunk i of all clients is reduced, then chunk i + 1: the server holds the result and a
few chunks, never the clients' models. Small payloads arrive whole before anything is reduced; should a
client be lost in the middle of a large one, the others are asked to send theirs again.

Lives on the server's loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from torch import Tensor

from feddkd.aggregator.weighted_mean import Rule
from feddkd.engines.upload import Progress, Upload
from feddkd.errors import ProtocolError
from feddkd.exchange import ExchangeId
from feddkd.scheduler.engine import DISCONNECTED
from feddkd.tensors import Schema, Segment, Tensors
from feddkd.traffic import Traffic
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import Verdict, numbers_of, receipt_message
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)


class Intake:
    """All answers of one exchange."""

    def __init__(
        self,
        exchange: ExchangeId,
        clients: Mapping[str, float],
        schema: Schema | None,
        *,
        rule: Rule,
        chunk_bytes: int,
        staging_bytes: int,
        stall_timeout_s: float,
        ask_again: Callable[[str], None],
        executor: Executor,
    ) -> None:
        """Args:
        clients: maps ids to weights in client order.
        ask_again: sends a client the request for its answer.
        executor: reduces, so that the loop goes on reading.
        """
        self.exchange = exchange
        self.schema = schema
        self.traffic = Traffic()
        window_bytes = max(2 * chunk_bytes, staging_bytes // max(1, len(clients)))
        self.uploads = {client: Upload(client, weight, window_bytes) for client, weight in clients.items()}
        self.open = True
        self._rule = rule
        self._chunk_bytes = chunk_bytes
        self._stall_timeout_s = stall_timeout_s
        self._ask_again = ask_again
        self._executor = executor
        self._changed = asyncio.Event()
        self._end = 0.0

    def answered(self, client_id: str, answer: pb.Answer) -> tuple[Upload | None, bytes | None]:
        """Take in the header of an answer.

        Returns:
            The upload that the following chunks belong to, if any, and a receipt to be sent at once, if any.
        """
        upload = self.uploads.get(client_id)
        if upload is None:
            return None, self._receipt(Verdict.VERDICT_FAILED_PRECONDITION, "this client is not in the exchange's cohort")
        if upload.progress is Progress.LOST:
            return None, self._receipt(Verdict.VERDICT_DEADLINE_EXCEEDED, upload.reason)
        repeated = upload.digest is not None and answer.payload.digest == upload.digest
        if upload.progress is Progress.COMPLETE:
            if repeated or self.schema is None:
                return None, self._receipt(Verdict.VERDICT_DUPLICATE)
            return None, self._receipt(Verdict.VERDICT_ALREADY_EXISTS, "other content was received under this identity")
        try:
            if upload.progress is Progress.ARRIVING:
                raise ProtocolError("an answer began before the last one was complete")
            if upload.digest is not None and not repeated:
                raise ProtocolError("the answer was sent again with other content")
            if answer.HasField("payload") != (self.schema is not None):
                raise ProtocolError("the answer holds no tensors" if self.schema else "the answer holds tensors where numbers are expected")
            if self.schema is not None and answer.payload.chunk_bytes != self._chunk_bytes:
                raise ProtocolError(f"chunks of {answer.payload.chunk_bytes} bytes where the server's have {self._chunk_bytes}")
            upload.begin(numbers_of(answer), answer.payload if self.schema else None, self.schema)
        except ProtocolError as error:
            return None, self.refuse(upload, error)
        self._changed.set()
        return upload, None

    async def received(self, upload: Upload, chunk: Chunk) -> bytes | None:
        """Take in a chunk; returns a receipt to be sent at once, if the answer was refused."""
        if upload.progress is not Progress.ARRIVING:
            return None
        try:
            upload.stage(chunk)
        except ProtocolError as error:
            return self.refuse(upload, error)
        if upload.ready:
            self._changed.set()
        await upload.wait_for_room()
        return None

    def refuse(self, upload: Upload, error: ProtocolError) -> bytes:
        """Leave out a client whose answer is wrong, and say why."""
        self.lose(upload.client_id, f"refused: {error}")
        upload.knows = True
        return self._receipt(Verdict.VERDICT_INVALID_ARGUMENT, str(error))

    def failed(self, client_id: str, reason: str) -> None:
        """A client says that it cannot answer."""
        self.lose(client_id, reason)
        if client_id in self.uploads:
            self.uploads[client_id].knows = True

    def interrupt(self, client_id: str) -> bool:
        """The client's connection broke; returns whether it may still come back and answer."""
        upload = self.uploads.get(client_id)
        if upload is None or upload.progress in (Progress.COMPLETE, Progress.LOST):
            return False
        if upload.consumed:
            self.lose(client_id, f"{DISCONNECTED} in the middle of its answer")
            return False
        upload.reset()
        return True

    def lose(self, client_id: str, reason: str) -> None:
        """Leave a client out of the exchange, unless its answer is already complete."""
        upload = self.uploads.get(client_id)
        if upload is not None and upload.progress not in (Progress.COMPLETE, Progress.LOST):
            logger.warning("%s: %s is left out: %s", self.exchange, client_id, reason)
            upload.lose(reason)
            self._changed.set()

    def awaits(self, client_id: str) -> bool:
        """Whether the client still has an answer to send."""
        upload = self.uploads.get(client_id)
        return self.open and upload is not None and upload.progress is Progress.AWAITED

    def pending(self, client_id: str) -> bool:
        """Whether the client has yet to send its answer, or the rest of it."""
        upload = self.uploads.get(client_id)
        return self.open and upload is not None and upload.progress in (Progress.AWAITED, Progress.ARRIVING)

    async def reduce(self, deadline_s: float) -> Tensors | None:
        """Wait for the answers and reduce them; None if they are only numbers, or nobody answered.

        At the deadline, who has not sent enough for the reduction to begin is lost; the others have as long
        again for the rest.
        """
        until = time.monotonic() + deadline_s
        self._end = until + deadline_s
        while True:
            await self._gather(until, deadline_s)
            until = self._end
            contributors = [upload for upload in self.uploads.values() if upload.progress is not Progress.LOST]
            if self.schema is None or not contributors:
                return None
            try:
                return await self._fold(contributors, self.schema)
            except LookupError:
                self._start_again(contributors)

    async def _gather(self, until: float, deadline_s: float) -> None:
        """Wait until every client is ready or lost; those that are neither at the time `until` are lost."""
        while waiting := [upload for upload in self.uploads.values() if not upload.ready and upload.progress is not Progress.LOST]:
            self._changed.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                for upload in waiting:
                    self.lose(upload.client_id, f"no answer within {deadline_s:g} s")

    async def _fold(self, contributors: list[Upload], schema: Schema) -> Tensors:
        """Reduce chunk by chunk, in client order. Raises LookupError if a contributor is lost on the way."""
        out = Tensors.empty(schema)
        for segment in schema.chunks(self._chunk_bytes):
            parts = [(await self._take(upload), upload.weight) for upload in contributors]
            await asyncio.get_running_loop().run_in_executor(self._executor, _reduce_chunk, self._rule, segment, parts, out)
        return out

    async def _take(self, upload: Upload) -> Tensor:
        limit_s = min(self._stall_timeout_s, self._end - time.monotonic())
        try:
            return await upload.take(limit_s)
        except TimeoutError:
            self.lose(upload.client_id, f"its answer stalled for {max(0.0, limit_s):.3g} s")
            raise LookupError(upload.client_id) from None

    def _start_again(self, contributors: list[Upload]) -> None:
        for upload in contributors:
            if upload.progress is not Progress.LOST and upload.consumed:
                upload.reset()
                self._ask_again(upload.client_id)

    def _receipt(self, verdict: pb.Verdict.ValueType, reason: str = "") -> bytes:
        return receipt_message(self.exchange, verdict, reason)


def _reduce_chunk(rule: Rule, segment: Segment, parts: list[tuple[Tensor, float]], out: Tensors) -> None:
    reduction = rule(segment.dtype, (segment.stop - segment.start) // segment.dtype.itemsize)
    for elements, weight in parts:
        reduction.add(elements, weight)
    reduction.result(out.elements(segment))
