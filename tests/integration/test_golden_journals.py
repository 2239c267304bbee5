"""Journals of an earlier day can be read, and a run of that day goes on to the same model.

If a change makes them unreadable on purpose, raise `FORMAT` in `feddkd/scheduler/journal_lines.py`, and make them again
with `scripts/golden-journals --write`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden_journals
import model_hashes
import pytest
from golden_journals import CRASHED, FINISHED

from feddkd.cli.replay import replayed
from feddkd.config import Config
from feddkd.config.toml import parse_toml
from feddkd.observability.record_check import LATER
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.recovery import check_same
from feddkd.traffic import CODEC_SECONDS, DIRECTIONS

TIMES = ("time", "seconds", "client_seconds", "cumulative_wire_bytes")
"""What two processes that do the same need not share: what took how long, and a sum that holds what was lost."""


def undisturbed(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a record without times, and without the bytes that were lost."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    for line in found:
        for key in (*TIMES, *LATER):
            line.pop(key, None)
        line.get("by_client", {}).pop("seconds", None)
        for metric in CODEC_SECONDS.values():
            line["metrics"].pop(metric, None)
        for direction in DIRECTIONS:
            line[f"wire_bytes_{direction}"] -= line.pop(f"lost_wire_bytes_{direction}")
    return found


@pytest.mark.parametrize("folder", [FINISHED, CRASHED], ids=lambda folder: folder.name)
def test_a_committed_journal_is_whole_and_says_what_it_said(folder: Path) -> None:
    found = replayed(folder, folder)
    assert (found.problems, found.journal.notes) == ([], [])
    assert golden_journals.look(folder) == golden_journals.listed()[folder.name]


def test_the_crashed_run_lies_between_two_exchanges_of_a_round() -> None:
    assert golden_journals.listed()["crashed"]["goes_on"] == "after round 2 local_train"


def test_the_configuration_of_that_day_is_still_the_same() -> None:
    """A new key needs a default that changes nothing, or no run of before can go on."""
    header, _ = read_journal(CRASHED)
    check_same(CRASHED, header, Config.parse(parse_toml(header.config, "the golden journal")))


def test_the_crashed_run_goes_on_to_the_model_of_the_finished_one(tmp_path: Path) -> None:
    listed = golden_journals.listed()
    reason = model_hashes.reason_to_skip({"torch": listed["torch"], "machine": listed["machine"], "model_sha256": {}})
    if reason is not None:
        pytest.skip(reason)
    folder = Path(shutil.copytree(CRASHED, tmp_path / "run"))
    assert golden_journals.go_on(folder) == 0
    assert golden_journals.look(folder)["model_sha256"] == listed["finished"]["model_sha256"]
    assert replayed(folder, folder).problems == []
    for name in ("exchanges.jsonl", "rounds.jsonl"):
        assert undisturbed(folder, name) == undisturbed(FINISHED, name)


def test_fields_that_came_later_may_be_missing_and_may_not_be_wrong(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FINISHED, tmp_path / "run"))
    for name, key, wrong in (("rounds.jsonl", "scores", {"accuracy": 2.0}), ("exchanges.jsonl", "client_scores", {})):
        lines = (folder / name).read_text().splitlines()
        assert not any(later in json.loads(line) for line in lines for later in LATER)
        (folder / name).write_text("\n".join([json.dumps(json.loads(lines[0]) | {key: wrong}), *lines[1:]]) + "\n")
    assert [problem.rpartition(": ")[2] for problem in replayed(folder, folder).problems] == ["client_scores", "scores"]
