"""The frontier of benchmarks/niid_bench: what its rows run, in which order, and what the page says of them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from grid_cells import ROOT, TINY, run_here

sys.path.insert(0, str(ROOT / "benchmarks"))

from niid_bench import frontier, frontier_tables, grid
from niid_bench.cells import ALGORITHMS, FRONTIER, PARTITIONS, Cell, Settings, configure
from niid_bench.frontier_outcomes import Frontier
from niid_bench.frontier_verdicts import against_rival, least_bytes, mini_targets, thrown_away, verdict_table

UNIT = 1_000_000
DELIVERY = 2_500_000


def config_of(row: str, partition: str = "c2", tier: str = "mini") -> Any:
    return configure(Cell(tier, "mnist", row, partition, 20), Settings())


def chosen(**options: Any) -> list[Cell]:
    given = {"tier": None, "data": "mnist", "row": None, "partition": None, "seed": None, **options}
    return frontier.chosen_cells(argparse.Namespace(**given))


# What a row runs


@pytest.mark.parametrize("row", FRONTIER)
def test_every_row_has_a_configuration_in_its_tiers_and_a_name_of_its_own(row: str) -> None:
    for tier in frontier.tiers_of(row):
        for partition in PARTITIONS:
            assert config_of(row, partition, tier)
    assert row not in ALGORITHMS


def test_rows_without_a_preset_send_the_first_model_in_int8_where_they_have_codecs() -> None:
    coded = [row for row in FRONTIER if config_of(row).communication.down != "fp32" and config_of(row).communication.preset == "none"]
    assert {"fedavg_coded", "fedavg_piggyback", "feddkd_quarter"} <= set(coded)
    assert {config_of(row).communication.snapshot for row in coded} == {"int8"}


def test_a_partition_may_have_rounds_of_its_own() -> None:
    assert config_of("fedavg_coded", "c1").rounds == 50
    assert config_of("fedavg_coded", "c2").rounds == 80


def test_ten_of_a_hundred_clients_are_drawn_in_the_sampled_tier() -> None:
    config = config_of("feddkd_frugal", tier="sampled")
    assert (config.partition.clients, config.partition.labels, config.scheduler.cohort, config.rounds) == (100, 2, 10, 30)
    assert config.data.subset is None


def test_the_rivals_share_codecs_and_the_control_shares_the_exchanges() -> None:
    ours, control = config_of("feddkd_frugal"), config_of("control_frugal")
    assert (ours.dkd, ours.communication) == (control.dkd, control.communication)
    for row in ("fedavg_coded", "fedavg_piggyback", "fedadam_coded"):
        codecs = config_of(row).communication
        assert (codecs.up, codecs.down) == (ours.communication.up, ours.communication.down)


# In which order


def test_cells_come_seed_by_seed_with_the_first_rows_first_and_comparisons_last() -> None:
    cells = chosen()
    assert [(cell.algorithm, cell.partition) for cell in cells[:4]] == [
        ("fedavg_fp32", "c1"),
        ("fedavg_fp32", "c2"),
        ("fedavg_fp32", "dir0.1"),
        ("feddkd_fp32", "c1"),
    ]
    comparisons = [frontier.is_comparison(cell.algorithm) for cell in cells]
    assert comparisons == sorted(comparisons)
    main = [cell.seed for cell in cells if not frontier.is_comparison(cell.algorithm)]
    assert main == sorted(main)
    assert set(main) == {30, 31, 32}
    assert {cell.seed for cell in cells if frontier.is_comparison(cell.algorithm)} == {30}
    assert len(set(cells)) == len(cells)


def test_rows_partitions_seeds_and_tiers_can_be_chosen() -> None:
    assert chosen(tier="mini", row=["fedavg_int8"], partition=["dir0.1"], seed=[5]) == [Cell("mini", "mnist", "fedavg_int8", "dir0.1", 5)]
    assert {cell.partition for cell in chosen(tier="sampled")} == {"c2"}
    assert chosen(tier="sampled", row=["feddkd_quarter"]) == []


# Running


def test_a_cell_states_its_bytes_codec_time_and_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = run_here(monkeypatch)
    own = ["--jobs", "1", "--results", str(tmp_path / "results.jsonl"), "--records", str(tmp_path / "records"), "--engine", "grpc"]
    tiny = [word for each in TINY for word in ("-o", each)]
    assert frontier.main(["mini", "--row", "fedavg_coded", "--partition", "c2", "--seed", "20", "--rounds", "2", *tiny, *own]) == 0
    (line,) = grid.read_lines(tmp_path / "results.jsonl")
    assert started == ["fedavg_coded-c2-seed20 on grpc"]
    assert line["engine"] == "grpc"
    assert 0 < line["delivery_bytes"] < line["cumulative_wire_bytes"][1] - line["cumulative_wire_bytes"][0]
    traffic = line["traffic"]
    assert traffic["dense_bytes_up"][0] > 20 * traffic["payload_bytes_up"][0] > 0
    assert traffic["snapshot_bytes_down"][0] == traffic["payload_bytes_down"][0]  # nobody holds the first model
    assert traffic["snapshot_bytes_down"][1] == 0
    assert all(len(values) == 2 for values in traffic.values())
    assert len(line["codec_seconds"]) == 2
    assert min(line["codec_seconds"]) > 0
    command = shlex.split(line["command"])
    assert command[:3] == ["python", "benchmarks/niid_bench/frontier.py", "mini"]
    assert frontier.main([*command[2:], "--records", str(tmp_path / "records")]) == 0
    assert started == 2 * ["fedavg_coded-c2-seed20 on grpc"]


# The page


def line(row: str, partition: str, seed: int, accuracy: Sequence[float], units: float, tier: str = "mini", **more: Any) -> dict[str, Any]:
    """A line as frontier.py writes it, as far as the page reads it, of a run that moves so many units a round."""
    rounds = range(1, len(accuracy) + 1)
    sizes = [round(units * UNIT)] * len(accuracy)
    wire_bytes = [size * number for size, number in zip(sizes, rounds, strict=True)]
    wire_bytes[-1] += DELIVERY
    return {
        "tier": tier,
        "data": "mnist",
        "algorithm": row,
        "partition": partition,
        "seed": seed,
        "accuracy": list(accuracy),
        "cumulative_wire_bytes": wire_bytes,
        "delivery_bytes": DELIVERY,
        "traffic": {
            "payload_bytes_down": sizes,
            "payload_bytes_up": sizes,
            "dense_bytes_down": [8 * size for size in sizes],
            "dense_bytes_up": [16 * size for size in sizes],
            "snapshot_bytes_down": [0] * len(sizes),
        },
        "gradient_evaluations": [100 * number for number in rounds],
        "seconds": [2.0 * number for number in rounds],
        "codec_seconds": [0.1] * len(sizes) if row != "feddkd_fp32" else [0.0] * len(sizes),
        "metrics": {"started_over": [1.0, 0.0]} if row == "feddkd_fp32" else {},
        "model_sha256": f"{row} {partition} {seed}",
        "config": grid._recorded(configure(Cell(tier, "mnist", row, partition, seed), Settings())),
        "command": f"python frontier.py {tier} --algorithm {row} --partition {partition} --seed {seed} --again",
        **more,
    }


SEEDS = (30, 31, 32)
FULL = [
    *(line("fedavg_fp32", part, seed, [0.3, 0.4], 1.0) for part in ("c1", "c2") for seed in SEEDS),
    *(line("feddkd_fp32", part, seed, [0.9, 0.98], 21.0) for part in ("c1", "c2") for seed in SEEDS),
    *(line("feddkd_quarter", part, seed, [0.8, 0.96, 0.97], 0.25) for part in ("c1", "c2") for seed in SEEDS),
    *(line("feddkd_frugal", "c2", seed, [0.9, 0.94 + seed / 1000], 0.6) for seed in SEEDS),
    *(line("fedavg_coded", "c1", seed, [0.1] * 12, 0.25) for seed in SEEDS),
    *(line("fedavg_coded", "c2", seed, [0.1, 0.5, 0.955 + seed / 1000] + [0.96] * 9, 0.25) for seed in SEEDS),
    *(line("fedavg_piggyback", "c2", seed, [0.1] * 2 + [0.97] * 10, 0.25) for seed in SEEDS),
]


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """Writes results and has the page made of them."""

    def make(lines: Sequence[dict[str, Any]], grpc_lines: Sequence[dict[str, Any]] = ()) -> str:
        for name, content in ((frontier.RESULT, lines), (frontier.GRPC_RESULT, grpc_lines)):
            (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in content))
        path = tmp_path / "frontier.md"
        path.write_text((ROOT / "docs" / "frontier.md").read_text())
        summary = tmp_path / "results.md"
        summary.write_text(frontier_tables.SUMMARY.read_text())
        arguments = ["--page", str(path), "--summary", str(summary), "--results", str(tmp_path)]
        assert frontier_tables.main(arguments) == 0
        assert frontier_tables.main([*arguments, "--check"]) == 0
        path.write_text(path.read_text().replace("| `", "| changed `", 1))
        assert frontier_tables.main([*arguments, "--check"]) == 1
        assert frontier_tables.main(arguments) == 0
        return path.read_text()

    return make


def test_the_page_says_what_the_results_say(page: Callable[..., str], tmp_path: Path) -> None:
    sampled = [line("fedavg_fp32", "c2", 30, [0.3, 0.4], 2.0, "sampled"), line("feddkd_frugal", "c2", 30, [0.8, 0.9], 1.5, "sampled")]
    text = page([*FULL, *sampled])
    assert "| `feddkd_quarter` | 0.250 (2.50) | 0.250 (2.50) |" in text
    assert "| `feddkd_frugal` | 0.750 (1.25) |" in text  # of a round of FedAvg with as many clients
    assert "| `feddkd_fp32` | 98.00 ± 0.00 | 98.00 ± 0.00 |" in text
    assert "| `feddkd_frugal` | - | -1.00, -0.90, -0.80: **-0.90** |" in text
    assert "| `feddkd_quarter` | 0.50 (84x) | 0.50 (84x) |" in text  # to 95 %
    assert "| `feddkd_quarter` | 0.75 (56x) | 0.75 (56x) |" in text  # to 97 %
    assert "| `fedavg_coded` | n/a (0 of 3) | 0.75 (56x) |" in text
    assert "| `feddkd_quarter` | 96.00 ± 0.00 | (97.00 ± 0.00) | (97.00 ± 0.00) |" in text
    for name in ("frontier_mini.png", "frontier_sampled.png"):
        assert f"({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_an_accuracy_that_some_seeds_miss_has_no_mean(page: Callable[..., str]) -> None:
    text = page([*FULL, line("feddkd_lossless", "c1", 30, [0.96], 20.0), line("feddkd_lossless", "c1", 31, [0.94], 20.0)])
    assert "| `feddkd_lossless` | n/a (1 of 2) | - |" in text


def test_targets_are_met_missed_or_not_measured() -> None:
    found = Frontier("mini", FULL)
    text = verdict_table(mini_targets(found), ("c1", "c2", "dir0.1"))
    assert (
        "| `feddkd_quarter`: at most 0.25x FedAvg's bytes a round, within 1.5 points of `feddkd_fp32` | met: 0.250 units, -1.00 points"
        in text
    )
    assert "| not measured | missed: 0.600 units, -0.90 points (worst -1.00) | not measured |" in text
    assert "met: 84 times fewer (least 84)" in text
    assert "`feddkd_quarter`: ahead of `fedavg_coded` at 2.5 units | met: +87.00 points | no target | no target |" in text
    assert "`fedavg_piggyback`: ahead of `fedavg_coded` at 2.5 units | no target | met: +1.00 points | not measured |" in text
    assert "missed in 1" in text
    assert "0.25 units a round" in least_bytes(found)
    assert thrown_away(found).endswith("1, 1, 1 of 2 on c1; 1, 1, 1 of 2 on c2.")


def test_one_seed_decides_no_comparison_and_is_said() -> None:
    found = Frontier("mini", [each for each in FULL if each["seed"] == 30])
    text = verdict_table(mini_targets(found), ("c1", "c2", "dir0.1"))
    assert "met: 0.250 units, -1.00 points (worst -1.00) (n=1)" in text
    assert "`fedavg_piggyback`: ahead of `fedavg_coded` at 2.5 units | no target | undecided: +1.00 points (n=1) | not measured |" in text
    assert "undecided in 2" in text


def test_the_page_says_where_feddkd_is_behind_and_reads_each_row_to_its_end() -> None:
    text = against_rival(Frontier("mini", FULL))
    assert (
        "- **c1** (`fedavg_coded` ends at 3.0 units and is read there from then on)\n  - `feddkd_quarter` is ahead at 0.5 (+86.00)." in text
    )
    assert "`feddkd_frugal` is behind at 0.5 (no round done), 1 (-6.00)" in text
    assert "`fedavg_piggyback` is behind at 0.5 (-40.00), ahead at 1 (+1.00), 1.5 (+1.00), 2.5 (+1.00)." in text


def test_cells_over_grpc_are_compared_with_those_in_process(page: Callable[..., str]) -> None:
    other = line("feddkd_quarter", "c1", 31, [0.8, 0.96, 0.97], 0.26, model_sha256="another")
    text = page(FULL, [line("feddkd_quarter", "c1", 30, [0.8, 0.96, 0.97], 0.25), other])
    assert "Of 2 cells that also ran over gRPC, 1 ended in the very same model; their bytes differ by at most 0.92%" in text


def test_the_page_names_cells_with_other_settings(page: Callable[..., str]) -> None:
    changed = line("feddkd_quarter", "dir0.1", 30, [0.9], 0.25)
    changed["config"]["dkd"]["lr"] = 7.0
    carried = line("fedavg_piggyback", "dir0.1", 30, [0.9], 0.25)
    carried["config"]["dkd"]["lr"] = 7.0  # of FedAvg, but it takes a step
    idle = line("fedavg_coded", "dir0.1", 30, [0.9], 0.25)
    idle["config"]["dkd"]["lr"] = 7.0
    text = page([*FULL, changed, carried, idle])
    assert "changed since: fedavg_piggyback dir0.1 seed 30 (`dkd.lr`), feddkd_quarter dir0.1 seed 30 (`dkd.lr`)." in text


def test_without_results_the_page_says_how_to_get_them(page: Callable[..., str], tmp_path: Path) -> None:
    text = page([])
    assert ".png" not in text
    assert not list(tmp_path.glob("*.png"))
    assert "No results yet: `python benchmarks/niid_bench/frontier.py`." in text
    assert "met in 0, missed in 0" in text


def test_the_committed_page_is_what_the_results_say() -> None:
    assert frontier_tables.main(["--check"]) == 0
