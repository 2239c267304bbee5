"""A run whose processes die at any moment comes to what an undisturbed one comes to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any
from unittest import mock

from harness import RUN_ID
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted import THREE, FullRecorder, Moment, ScriptedEngine, Setup, number
from torch import Tensor

from feddkd.algorithms.base import Cohort
from feddkd.config import Config
from feddkd.exchange import Evaluation, Exchange, ExchangeId, Outcome, Reply
from feddkd.scheduler.blobs import Blob
from feddkd.scheduler.events import Event
from feddkd.scheduler.journal import Entry, Journal
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.records import ExchangeRecord, RoundRecord, RunRecord
from feddkd.scheduler.recovery import Spent, new_journal, resume
from feddkd.scheduler.state import RunState, fold
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic

ROUNDS = 3

EACH = Traffic(0, 0, 10, 100)
"""On the wire, of each exchange."""

OTHER = Traffic(0, 0, 3, 4)
"""Of each process, for no exchange."""


class CrashError(Exception):
    """The process dies."""


class CrashingJournal:
    """Dies around an append.

    Attributes:
        left: events that are appended before that.
        after: whether the event that it dies at is in the journal.
    """

    def __init__(self, journal: FileJournal, left: int, *, after: bool) -> None:
        self.journal = journal
        self.left = left
        self.after = after
        self.run_id = journal.run_id

    @property
    def entries(self) -> Sequence[Entry]:
        return self.journal.entries

    def release(self) -> None:
        self.journal.release()

    def append(self, event: Event) -> Entry:
        self.left -= 1
        if self.left < 0 and not self.after:
            raise CrashError
        entry = self.journal.append(event)
        if self.left < 0:
            raise CrashError
        return entry

    def store(self, tensors: Mapping[str, Tensor], text: str = "", *, checkpoint: bool = False) -> str:
        return self.journal.store(tensors, text, checkpoint=checkpoint)

    def load(self, name: str) -> Blob:
        return self.journal.load(name)

    def prune(self, names: Collection[str]) -> None:
        self.journal.prune(names)

    def check_space(self, model_bytes: int) -> None:
        self.journal.check_space(model_bytes)

    def close(self) -> None:
        self.journal.close()


class Sending(ScriptedEngine):
    """Writes down what clients are sent, bit for bit, and what they contribute depends on it."""

    def __init__(self, clients: Mapping[str, int], lost: Mapping[Moment, set[str]]) -> None:
        super().__init__(clients, lost)
        self.sent: dict[ExchangeId, list[object]] = {}
        self.acknowledged: list[ExchangeId] = []
        self.remembered: Mapping[str, ExchangeId] = {}

    def outcome_of(self, exchange: Exchange) -> Outcome:
        sent: list[object] = [exchange.payload.sha256(), dict(exchange.clients), exchange.closing]
        broadcast = exchange.broadcast
        if broadcast is not None:
            sent += [broadcast.content, broadcast.base, broadcast.holders]
            sent += [(form.block.tolist(), form.encoding.coding) for form in (broadcast.whole, broadcast.step) if form is not None]
        self.sent[exchange.id] = sent
        outcome = super().outcome_of(exchange)
        computed = Reply(loss=0.5, gradient_evaluations=3, metrics={"moment": exchange.id.round + 0.5 * exchange.id.attempt})
        outcome = replace(
            outcome, replies={client: replace(computed, evaluation=old.evaluation) for client, old in outcome.replies.items()}
        )
        if outcome.reduced is None:
            return outcome
        return replace(outcome, reduced=number(1 + 0.37 * len(outcome.replies) + 0.1 * float(exchange.payload["w"])))

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        self.remembered = dict(counted)


def evaluate(model: Tensors, _: object) -> Evaluation:
    return Evaluation(10, int(model["w"]) % 10, float(model["w"]))


def bought(traffic: Traffic, lost: Traffic) -> Traffic:
    """Bytes without those that were lost; lost ones are a part of them, and none is negative."""
    left = replace(traffic)
    left.wire_bytes_down -= lost.wire_bytes_down
    left.wire_bytes_up -= lost.wire_bytes_up
    assert min(*astuple(lost), *astuple(left)) >= 0
    assert lost == Traffic(0, 0, lost.wire_bytes_down, lost.wire_bytes_up)
    return left


def essence(record: Any) -> Any:
    """A record without what a clock says and without what was lost."""
    if isinstance(record, ExchangeRecord | RoundRecord):
        metrics = {name: value for name, value in record.metrics.items() if not name.startswith("codec_s")}
        record = replace(record, metrics=metrics, traffic=bought(record.traffic, record.lost), lost=Traffic(), done_s=0.0)
    if isinstance(record, RoundRecord):
        return replace(record, seconds=0.0, cumulative_wire_bytes=0)
    if isinstance(record, RunRecord):
        return replace(
            record,
            seconds=0.0,
            started_s=0.0,
            ended_s=0.0,
            presence={client: own.rounds for client, own in record.presence.items()},  # type: ignore[misc]
            model=record.model.sha256(),  # type: ignore[arg-type]
            # What was spent is compared over all processes.
            traffic=off_wire(record.traffic),
            other_traffic=off_wire(record.other_traffic),
            lost_traffic=off_wire(record.lost_traffic),
            exchange_traffic={name: off_wire(traffic) for name, traffic in record.exchange_traffic.items()},
        )
    return record


def on_wire(traffic: Traffic) -> Traffic:
    return traffic.wire_beyond(Traffic())


def off_wire(traffic: Traffic) -> Traffic:
    return replace(traffic, wire_bytes_down=0, wire_bytes_up=0)


def observed(recorder: FullRecorder) -> list[Any]:
    """All that an observer of the whole run is told; a model only by the process that made it."""
    told = [event for event in recorder.events if not event.startswith("model")]
    return [told, *([essence(record) for record in records] for records in (recorder.exchanges, recorder.rounds)), recorder.failures]


def totals(state: RunState) -> list[Any]:
    tally = state.tally
    return [
        *(off_wire(tally.traffic), off_wire(tally.other), {name: off_wire(traffic) for name, traffic in tally.exchange_traffic.items()}),
        *(tally.gradient_evaluations, tally.last_evaluation, tally.best_accuracy, tally.rounds_missed, state.spent),
        *(state.rounds_done, state.failed_attempts, state.codes, state.known_clients, state.replied, state.members, state.delivering),
    ]


SETTINGS = {
    "plain": [],
    "codec": ["communication.down=int8"],
    "snapshot": ["communication.down=int4", "communication.snapshot=int8"],
    "seeds": ["communication.down=eden2"],
    "some": ["scheduler.cohort=2"],
    "some with a codec": ["scheduler.cohort=1", "communication.down=int8"],
}
LOST: list[dict[Moment, set[str]]] = [
    {},
    {(1, 0, "second"): {"a", "b", "c"}},
    {(2, 0, "first"): {"a", "b", "c"}, (2, 1, "second"): {"a", "b", "c"}},
    {(3, 0, "first"): {"b"}, (3, 0, "deliver"): {"c"}},
]


class Run:
    """One run, and the folder of its journal.

    Attributes:
        writes: whether the algorithm writes to the model that it is given.
        sent: what clients were sent in each exchange, the same by every process.
        counted: the bytes of all processes.
        mark: what the last process left of its own.
    """

    def __init__(self, folder: Path, overrides: Sequence[str], lost: Mapping[Moment, set[str]], *, writes: bool) -> None:
        self.folder = folder
        self.writes = writes
        self.overrides = [f"rounds={ROUNDS}", *overrides]
        self.config = Config.load(overrides=self.overrides)
        self.lost = lost
        self.sent: dict[ExchangeId, list[object]] = {}
        self.counted = Traffic()
        self.mark: Spent | None = None

    def process(self, journal: Journal) -> tuple[RunRecord | None, FullRecorder]:
        """Let a process work on the run until its end or a crash."""
        engine = Sending(THREE, self.lost)
        before = fold(journal.entries, RUN_ID, self.config.scheduler.quorum)
        setup = Setup(engine, *self.overrides, evaluator=evaluate, journal=journal)
        if self.writes:
            run_round = setup.algorithm.run_round

            def write(cohort: Cohort, model: Tensors) -> Tensors:
                model["w"].add_(0.5)
                return run_round(cohort, model)

            setup.algorithm.run_round = write  # type: ignore[method-assign]
        try:
            record = setup.scheduler.run(number(0))
            assert setup.algorithm.rounds == ROUNDS
            return record, setup.recorder
        except CrashError:
            return None, setup.recorder
        finally:
            if before.ended is None:  # a process that finds the run finished adds nothing to it
                self.counted += sum([EACH] * len(engine.exchanges), OTHER)
            last = engine.exchanges[-1].id if engine.exchanges else None
            self.mark = Spent(last, EACH if last is not None else Traffic(), OTHER, before.incarnation)
            for exchange, sent in engine.sent.items():
                assert self.sent.setdefault(exchange, sent) == sent  # also where it is sent again

    def opened(self) -> FileJournal:
        if (self.folder / "journal.jsonl").exists():
            return resume(self.folder, self.config, self.mark)
        journal = new_journal(self.folder, RUN_ID, self.config)
        assert isinstance(journal, FileJournal)
        self.counted, self.mark = Traffic(), None  # nobody has heard of what there was before
        return journal

    def state(self) -> RunState:
        """What the file says."""
        header, entries = read_journal(self.folder)
        return fold([entry for entry, _ in entries], header.run_id, self.config.scheduler.quorum)


class DyingProcesses(RuleBasedStateMachine):
    """Processes of one run die at any event; the power may fail, and files may be damaged, too."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.patched = mock.patch("os.fsync")  # nothing here depends on the disk's speed
        self.patched.start()
        self.record: RunRecord | None = None
        self.is_disturbed = False
        self.knows_all_bytes = True

    @initialize(
        overrides=st.sampled_from(list(SETTINGS.values())),
        lost=st.sampled_from(LOST),
        durability=st.sampled_from(["exchange", "round"]),
        writes=st.booleans(),
    )
    def begin(self, overrides: list[str], lost: Mapping[Moment, set[str]], durability: str, writes: bool) -> None:
        if writes:
            lost = {}  # an attempt that fails would leave what it wrote
        overrides = [*overrides, f"scheduler.durability={durability}"]
        self.keeps_exchanges = durability == "exchange"
        self.undisturbed = Run(self.root / "undisturbed", overrides, lost, writes=writes)
        with closing(self.undisturbed.opened()) as journal:
            record, self.expected = self.undisturbed.process(journal)
        assert record is not None
        self.expected_record = record
        self.expected_totals = totals(self.undisturbed.state())
        self.run = Run(self.root / "run", overrides, lost, writes=writes)

    @precondition(lambda self: self.record is None)
    @rule(count=st.integers(0, 12), after=st.booleans())
    def work(self, count: int, after: bool) -> None:
        with closing(self.run.opened()) as journal:
            self.record, self.recorder = self.run.process(CrashingJournal(journal, count, after=after))
        self.is_disturbed = True

    @rule()
    def the_power_fails(self) -> None:
        """What was not synced is gone, and so is the mark."""
        file = self.run.folder / "journal.jsonl"
        if not file.exists():
            return
        self.run.mark, self.knows_all_bytes = None, False
        lines = file.read_bytes().splitlines(keepends=True)
        kinds = [b'"kind":"round_started"'] + ([] if self.keeps_exchanges else [b'"kind":"exchange_done"'])
        while len(lines) > 1 and any(kind in lines[-1] for kind in kinds):
            del lines[-1]
        file.write_bytes(b"".join(lines))

    @rule(data=st.data())
    def the_last_line_is_torn(self, data: st.DataObject) -> None:
        file = self.run.folder / "journal.jsonl"
        if not file.exists() or self.record is not None:
            return
        with file.open("ab") as stream:
            stream.write(b'{"seq": 3, "at_s": 1'[: data.draw(st.integers(0, 20))])

    @rule(data=st.data(), is_missing=st.booleans())
    def a_blob_is_damaged(self, data: st.DataObject, is_missing: bool) -> None:
        blobs = sorted((self.run.folder / "blobs").glob("*.safetensors"), key=lambda blob: blob.stat().st_mtime_ns)
        if not blobs:
            return
        blob = data.draw(st.sampled_from(range(len(blobs))).map(lambda index: blobs[-1 - index]))
        if is_missing:
            blob.unlink()
        else:
            os.truncate(blob, blob.stat().st_size - 1)
        self.is_disturbed = True

    @invariant()
    def blobs_that_nobody_needs_are_few(self) -> None:
        blobs = self.root / "run" / "blobs"
        if blobs.exists():
            assert len(list(blobs.glob("*.safetensors"))) <= 2 * 2 + 2 + 3  # two checkpoints, a third, and an attempt's outcomes

    def teardown(self) -> None:
        try:
            if hasattr(self, "run"):
                self.check()
        finally:
            self.patched.stop()
            shutil.rmtree(self.root)

    def check(self) -> None:
        """Take the run to its end; everything is as if nothing had happened."""
        if self.record is None or self.is_disturbed:
            with closing(self.run.opened()) as journal:
                self.record, self.recorder = self.run.process(journal)
        assert self.record is not None
        state = self.run.state()
        assert self.run.sent == self.undisturbed.sent
        assert observed(self.recorder) == observed(self.expected)
        assert essence(self.record) == essence(self.expected_record)
        assert totals(state) == self.expected_totals
        # All bytes of all processes are there once, and what an undisturbed run would not have spent is lost.
        found, counted = on_wire(state.traffic), self.run.counted
        if self.knows_all_bytes:
            assert found == counted
        assert (counted.wire_bytes_down, counted.wire_bytes_up) >= (found.wire_bytes_down, found.wire_bytes_up)
        assert on_wire(bought(state.traffic, state.tally.lost)) == on_wire(self.expected_record.traffic) + state.tally.other


DyingProcesses.TestCase.settings = settings(max_examples=40, stateful_step_count=12, deadline=None, report_multiple_bugs=False)
TestDyingProcesses = DyingProcesses.TestCase
