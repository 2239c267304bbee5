"""What the samples of py-spy come to, and that the page shows the committed ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from transport_profile import rows_of, shares_of, work_of

ROOT = Path(__file__).resolve().parents[2]
LOOP = "_run_once (asyncio/base_events.py:1922)"


@pytest.mark.parametrize(
    ("stack", "work"),
    [
        (
            [LOOP, "Payload._frame (feddkd/transport/payload.py:208)", "encode_chunk (feddkd/transport/frames.py:53)"],
            "copies into messages",
        ),
        (
            [LOOP, "Contribution.accept (feddkd/engines/contribution.py:9)", "ChunkSequence.accept (feddkd/transport/payload.py:9)"],
            "checksums",
        ),
        ([LOOP, "Stream.write (feddkd/transport/stream.py:129)"], "gRPC"),
        (["main (feddkd/bench/transport.py:1)", "serve (feddkd/bench/transport.py:2)"], "the rest of feddkd"),
        ([LOOP], "asyncio"),
        ([LOOP, "EpollSelector.select (selectors.py:468)"], None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_sample_counts_for_the_innermost_function_that_is_known(stack: list[str], work: str | None) -> None:
    assert work_of(stack) == work


def test_shares_are_of_all_samples_by_process() -> None:
    server, client = 'process 7:"python -m server"', 'process 8:"python -m client"'
    lines = [f"{server};{LOOP} 3\n", f"{server};{client};{LOOP} 1\n", f"{server} 5\n"]
    assert shares_of(lines, 7) == {"server": {"asyncio": 0.75}, "clients": {"asyncio": 0.25}}


def test_the_page_shows_the_committed_shares() -> None:
    committed = json.loads((ROOT / "benchmarks/results/transport_profile.json").read_text())
    page = (ROOT / "docs/explanation/transport-cost.md").read_text()
    for row in rows_of(committed["shares"]):
        assert f"| {' | '.join(row)} |" in page
