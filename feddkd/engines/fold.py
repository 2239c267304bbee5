"""Reduces the contributions to an exchange block by block, in client order, as far as they have arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from feddkd.aggregator.rule import Reduction, Rows, RuleError
from feddkd.compression.encoding import Coding, Encoding, Piece
from feddkd.engines.collection import Collection
from feddkd.engines.contribution import Contribution
from feddkd.engines.spool import Block
from feddkd.errors import SchemaError
from feddkd.tensors import Schema, Segment, Tensors
from feddkd.transport.payload import check_values

NAMED_CONTRIBUTIONS = 3
"""How many contributions are named where a reduction is not finite."""


class Fold:
    """The reduction of one collection.

    A block is reduced as soon as every client that may still reply has delivered it, so that uploads and
    reduction overlap. When a client is given up after blocks of it were used, the reduction starts over: the
    other clients' blocks are still in the spool. A rule of several passes waits for all contributions, and
    one that repeats its last pass reads the blocks again.

    Attributes:
        code_bytes: of one contribution as it is sent.
        dense_bytes: of one without a codec.
        decode_s: seconds spent on decoding contributions so far.
        fault: why the contributions reduce to nothing of use, if they do. Final once `finished` is true: a
            client that is given up before that may have been the reason.
    """

    def __init__(self, collection: Collection, schema: Schema, chunk_bytes: int) -> None:
        self._collection = collection
        self._schema = schema
        # The same layout for every client but for the seeds: its pieces say what is reduced together.
        layout = Encoding(schema, chunk_bytes, Coding(collection.exchange.reply_codec))
        self._blocks = [piece.segment for piece in layout.pieces]
        self._rule = collection.exchange.rule
        self._memory = torch.empty(max((piece.size_bytes for piece in layout.pieces), default=0), dtype=torch.uint8)
        self.code_bytes, self.dense_bytes = layout.size_bytes, schema.size_bytes
        self.decode_s = 0.0
        self._start()

    def _start(self) -> None:
        self._revision = self._collection.revision
        self._members: list[Contribution] = self._collection.members()
        self._weights = self._collection.exchange.weights_of(member.client_id for member in self._members)
        self._reduction: Reduction = self._rule.start([member.client_id for member in self._members])
        self._passes_left = self._rule.passes
        self._next = 0
        self._first_behind = 0
        self._out: Tensors | None = None
        self.fault = self._unusable = ""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done: see `result`."""
        if not self._collection.settled:
            return False
        self._follow_revision()
        return not self._members or self._passes_left == 0 or not self._blocks or bool(self.fault)

    @property
    def result(self) -> Tensors | None:
        """What the contributions were reduced to; None if there are none, or at a `fault`."""
        if not self._members or self.fault:
            return None
        return self._out if self._out is not None else Tensors.empty(self._schema)

    @property
    def ratios(self) -> Mapping[str, float]:
        """How far each contribution stands out (`Reduction.ratios`); empty where the rule does not know it."""
        if self.result is None:
            return {}
        return dict(zip((member.client_id for member in self._members), self._reduction.ratios(), strict=False))

    @property
    def may_advance(self) -> bool:
        """Whether there may be a next step: cheap, and never False where there is one."""
        return self._collection.revision != self._revision or self._is_ready()

    def next_step(self) -> Callable[[], None] | None:
        """Return the next piece of work that can be done now, or None.

        It may run in any thread. `step_done` has to follow it before anything else is asked here.
        """
        self._follow_revision()
        if not self._members or self.fault or self._next >= len(self._blocks) or not self._is_ready():
            return None
        block = self._blocks[self._next]
        rows = self._rows()
        self._collection.hold_blocks()
        if self._passes_left > 1:
            return lambda: self._survey(block, rows)
        if self._out is None:
            self._out = Tensors.empty(self._schema)
        out = self._out.elements(block)
        names = [member.client_id for member in self._members]
        return lambda: self._reduce(block, rows, out, lambda: _largest(names, rows))

    def _rows(self) -> Rows:
        """The next block of every member, each read when it is asked for, over the one before it."""
        sources = [(member.pieces[self._next], member.blocks[self._next], self._weights[member.client_id]) for member in self._members]
        return _Sources(sources, self._decode)

    def _decode(self, piece: Piece, source: Block) -> Tensor:
        code = source.read(self._memory)
        if piece.codec is None:
            return piece.decode(code)
        started = time.perf_counter()
        elements = piece.decode(code)
        self.decode_s += time.perf_counter() - started
        return elements

    def _reduce(self, block: Segment, rows: Rows, out: Tensor, largest: Callable[[], str]) -> None:
        """Reduce one block; if the result is of no use, note that with the largest contributions."""
        try:
            with torch.no_grad():
                self._reduction.reduce(block, rows, out)
            check_values(out)
        except RuleError as error:
            self.fault = str(error)
        except SchemaError as error:
            # A rule that repeats the pass may find something better.
            self._unusable = self._unusable or f"the reduced contributions are unusable: {error}; largest: {largest()}"

    def _survey(self, block: Segment, rows: Rows) -> None:
        """Let the rule look at one block in a pass before the last."""
        try:
            with torch.no_grad():
                self._reduction.survey(block, rows)
        except RuleError as error:
            self.fault = str(error)

    def step_done(self) -> None:
        """Take in that the last step has run."""
        self._collection.let_blocks_go()
        if self._collection.revision != self._revision:
            return
        self._next += 1
        self._first_behind = 0
        if self._next == len(self._blocks) and not self.fault:
            self._end_pass()

    def _end_pass(self) -> None:
        """Begin the next pass, if there is one."""
        if self._passes_left > 1 or not self._reduction.repeats():
            self._passes_left -= 1
        if self._passes_left:
            self._next, self._unusable = 0, ""
        self.fault = self._unusable

    def _follow_revision(self) -> None:
        if self._collection.revision != self._revision:
            self._start()

    def _is_ready(self) -> bool:
        """Whether every member has delivered the next block, and for several passes all of them."""
        if self._rule.passes > 1 and not self._collection.settled:
            return False
        while self._first_behind < len(self._members):
            if len(self._members[self._first_behind].blocks) <= self._next:
                return False
            self._first_behind += 1
        return True


class _Sources:
    """The next block of every member; reads and decodes it when it is asked for."""

    def __init__(self, sources: list[tuple[Piece, Block, float]], decode: Callable[[Piece, Block], Tensor]) -> None:
        self._sources = sources
        self._decode = decode

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        return ((self._decode(piece, source), weight) for piece, source, weight in self._sources)


def _largest(names: list[str], rows: Rows) -> str:
    norms = sorted(((float(elements.double().norm()), name) for name, (elements, _) in zip(names, rows, strict=True)), reverse=True)
    return ", ".join(f"{name} (norm {norm:.3g})" for norm, name in norms[:NAMED_CONTRIBUTIONS])
