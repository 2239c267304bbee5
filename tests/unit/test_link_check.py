import sys
from pathlib import Path

import pytest
from report_records import write_record

from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from link_check import estimate, measured_s, table_of


def test_the_first_round_and_the_delivery_are_not_compared(tmp_path: Path) -> None:
    record = RunFolder.load(write_record(tmp_path / "run", rounds=3))
    assert len(record.exchanges) == 3 * 3 + 1
    assert measured_s(record) == pytest.approx(sum(line.seconds for line in record.rounds[1:]))
    assert estimate(record, Link(1e9, 1e9, 10.0)).trips == 2 * 3 * 10.0


def test_the_table_has_a_column_for_each_part() -> None:
    parts = dict.fromkeys(("trips", "down", "compute", "up", "server"), 1.0)
    row = {"setting": "slow", "estimated_s": 5.0, "measured_s": 4.0, "estimated_over_measured": 1.25, "parts_s": parts}
    table = table_of([row])
    assert [next(iter(column.cells)) for column in table.columns] == ["slow", "5.00 s", "4.00 s", "1.250", *["1.00"] * 5]
