"""A simulation in one process that ends anywhere and goes on: clients carry on what they had left over and kept.

A failpoint raises where a process would be killed; what is in memory is lost in both cases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import run_federation
from feddkd.exchange import ExchangeId
from feddkd.failpoints import FailpointError, planned
from feddkd.scheduler.events import ExchangeDone, RoundFinished
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.records import ExchangeRecord, Observer

SMALL = ("rounds=3", "data.subset=300", "partition.clients=3", "partition.labels=4", "training.epochs=1", "dkd.steps=2")
CASES: Mapping[str, Sequence[str]] = {
    "topk": ("communication.up=topk:0.05",),
    "topk steps": ("communication.dkd_step.up=topk:0.05",),
    "randk": ("algorithm.name=fedavg", "communication.up=randk:0.05"),
    "scaffold": ("algorithm.name=scaffold",),
    "scaffold with topk": ("algorithm.name=scaffold", "communication.up=topk:0.05"),
    "moon": ("algorithm.name=moon",),
    "feddyn": ("algorithm.name=feddyn",),
    "feddkd": (),
    "centred clipping": ("aggregation.rule=centred_clipping",),
}
"""Overrides; by name what clients carry from round to round."""

Undisturbed = Callable[[str], str]


def run(folder: Path, case: str, *more: str, resumed: bool = False) -> str:
    """Carry out a run, or the rest of one; returns the SHA-256 of its model."""
    config = resolve(Config.load(overrides=[*SMALL, *CASES[case], *more]))
    return run_federation(config, "in-process", folder, resumed=resumed).model.sha256()


def interrupted(folder: Path, case: str, point: str, visit: int, *more: str) -> bool:
    """Carry out a run until it comes to a failpoint for the Nth time; whether it did."""
    with contextlib.suppress(FailpointError), planned(f"{point}=raise@{visit}"):
        run(folder, case, *more)
        return False
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return cache(lambda case: run(tmp_path_factory.mktemp("whole"), case))


class Listening(Observer):
    """Keeps what it is told of a run that goes on."""

    follows_history = False

    def __init__(self) -> None:
        self.after: ExchangeId | None = None
        self.recalled: list[str] = []
        self.done: list[str] = []

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        self.after = last

    def exchange_recalled(self, record: ExchangeRecord) -> None:
        self.recalled.append(str(record.id))

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.done.append(str(record.id))


def test_observers_hear_after_which_exchange_a_run_goes_on_and_what_is_recalled(tmp_path: Path) -> None:
    assert interrupted(tmp_path, "feddkd", "scheduler.exchange.after_append", 5, "rounds=2")
    listening = Listening()
    run_federation(resolve(Config.load(overrides=[*SMALL, "rounds=2"])), "in-process", tmp_path, [listening], resumed=True)
    assert str(listening.after) == "round 2 dkd_step 1"
    assert listening.recalled == ["round 2 local_train", "round 2 dkd_step 1"]
    assert listening.done == ["round 2 dkd_step 2", "round 2 deliver"]


def damage_last(folder: Path, kind: type[RoundFinished] | type[ExchangeDone]) -> None:
    """Damage the blob that the last event of a kind names."""
    _, entries = read_journal(folder)
    event = [entry.event for entry, _ in entries if isinstance(entry.event, kind)][-1]
    blob = folder / "blobs" / f"{event.model if isinstance(event, RoundFinished) else event.outcome}.safetensors"
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)


POINTS = (
    "engine.exchange.before_outcome",
    "scheduler.exchange.after_append",
    "engine.acknowledge.after_first",
    "engine.exchange.after_begin",
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("visit", [2, 5, 6])
def test_what_codecs_left_out_outlives_the_process(point: str, visit: int, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Within a round and between two; before a reply counts, after that, and when some clients know and others do not."""
    assert interrupted(tmp_path, "topk", point, visit)
    assert run(tmp_path, "topk", resumed=True) == undisturbed("topk")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("visit", [2, 5, 6])
def test_the_centre_that_contributions_are_clipped_around_outlives_the_process(
    point: str, visit: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    assert interrupted(tmp_path, "centred clipping", point, visit)
    assert run(tmp_path, "centred clipping", resumed=True) == undisturbed("centred clipping")


@pytest.mark.parametrize(("point", "visit"), [("engine.acknowledge.before", 3), ("engine.acknowledge.after_first", 7)])
def test_more_rounds_begin_from_what_was_left_over(point: str, visit: int, tmp_path: Path) -> None:
    """The process ends when the last replies of three rounds count, and not all clients know that."""
    assert interrupted(tmp_path / "short", "randk", point, visit)
    expected = run(tmp_path / "long", "randk", "rounds=4")
    assert run(tmp_path / "short", "randk", "rounds=4", "runtime.threads=1", resumed=True) == expected


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_made_up_for_by_the_round_before(case: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """The clients have finished round 2 and begun round 3, and carry out both again."""
    visits = 8 if _has_steps(case) else 3
    assert interrupted(tmp_path, case, "scheduler.exchange.after_append", visits)
    damage_last(tmp_path, RoundFinished)
    assert run(tmp_path, case, resumed=True) == undisturbed(case)


@pytest.mark.parametrize("case", ["topk", "topk steps", "scaffold with topk"])
def test_without_outcomes_the_open_round_is_repeated(case: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Clients have heard that their replies of this round, in this attempt, counted."""
    settings = "scheduler.durability=round"
    assert interrupted(tmp_path, case, "engine.exchange.after_begin", 6 if _has_steps(case) else 3, settings)
    assert run(tmp_path, case, settings, resumed=True) == undisturbed(case)


def _has_steps(case: str) -> bool:
    return not any(override.startswith("algorithm.name=") for override in CASES[case])


def test_no_two_of_these_runs_end_alike(undisturbed: Undisturbed) -> None:
    """Else no comparison here would mean anything."""
    assert len({undisturbed(case) for case in CASES}) == len(CASES)
