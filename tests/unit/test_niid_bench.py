"""The grid of benchmarks/niid_bench: what a cell runs, that it runs once, and what the page says of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from grid_cells import ROOT, TINY, run_here

from feddkd.bench import runs
from feddkd.bench.environment import source_commit
from feddkd.config import Config
from feddkd.errors import ConfigError

sys.path.insert(0, str(ROOT / "benchmarks"))

from niid_bench import figures, grid, run, tables, tune
from niid_bench.ablation_table import ablation_table
from niid_bench.cells import ALGORITHMS, PARTITIONS, TIERS, Cell, Settings, configure, overrides_of
from niid_bench.outcomes import Outcomes
from niid_bench.step_scale_table import step_scale_table
from niid_bench.tuning_table import accuracies, point_used, tuning_table

CELL = Cell("mini", "mnist", "feddkd", "c1", 0)


def configuration(algorithm: str, tier: str = "mini", partition: str = "c1", **settings: Any) -> Config:
    return configure(Cell(tier, "mnist", algorithm, partition, 0), Settings(**settings))


# What a cell runs


def test_the_exact_tier_is_the_protocol_of_niid_bench() -> None:
    config = configuration("fedavg", "exact", "dir0.5")
    assert (config.rounds, config.partition.clients, config.scheduler.cohort, config.model.name) == (50, 10, "all", "niid_cnn")
    assert (config.data.subset, config.data.holdout, config.partition.alpha, config.partition.min_size) == (None, 0, 0.5, 10)
    training = config.training
    assert (training.epochs, training.batch_size, training.lr, training.momentum, training.weight_decay) == (10, 64, 0.01, 0.9, 1e-5)


def test_the_mini_tier_differs_in_three_keys() -> None:
    found = {key: here for key, here, _ in runs.differences(configuration("fedavg"), configuration("fedavg", "exact"))}
    assert found == {"rounds": 15, "data.subset": 12000, "training.epochs": 2}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_and_every_point_of_its_grid_has_a_configuration(algorithm: str) -> None:
    for partition in PARTITIONS:
        assert all(configuration(algorithm, tier, partition) for tier in TIERS)
    for point in tune.points_of(algorithm) if "grid" in ALGORITHMS[algorithm] else []:
        assert configure(Cell("mini", "mnist", algorithm, "c1", 0, point), Settings())


def test_the_longer_fedavg_has_the_exchanges_of_feddkd() -> None:
    assert configuration("fedavg_long").rounds == 15 * (configuration("feddkd").dkd.steps + 1)
    assert configuration("fedavg_long", rounds=2, overrides=("dkd.steps=4",)).rounds == 2 * 5
    for tier in TIERS:  # in each of which FedDKD may have rounds and steps of its own
        feddkd = configuration("feddkd", tier)
        assert configuration("fedavg_long", tier).rounds == feddkd.rounds * (feddkd.dkd.steps + 1)


def test_rounds_of_the_command_line_go_before_the_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS["feddkd"], "mini", {"rounds": 8})
    assert configuration("feddkd").rounds == 8
    assert configuration("feddkd", rounds=3).rounds == 3


def test_the_command_line_has_the_last_word_and_is_stated() -> None:
    settings = Settings(rounds=3, overrides=("dkd.lr=0.5", "rounds=4"))
    assert configure(CELL, settings).dkd.lr == 0.5
    assert configure(CELL, settings).rounds == 4
    stated = overrides_of(CELL, settings)
    assert stated["algorithm.name"] == "feddkd"
    assert stated["dkd.lr"] == 0.5


def test_the_command_line_changes_no_other_cell() -> None:
    before = configure(CELL, Settings())
    configure(CELL, Settings(overrides=("dkd.lr=0.5", "algorithm.local_objective=fedntd")))
    configure(Cell("mini", "mnist", "feddkd", "c1", 0, (("dkd.steps", 3),)), Settings())
    assert configure(CELL, Settings()) == before


def test_no_two_cells_share_a_folder() -> None:
    points = [(), (("algorithm.mu", 0.1),), (("algorithm.mu", 1.0),)]
    cells = [
        Cell("mini", "mnist", name, part, seed, point) for name in ALGORITHMS for part in PARTITIONS for seed in (0, 1) for point in points
    ]
    assert len({cell.folder for cell in cells}) == len(cells)


# Running cells


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Carries out runs in this process, and lists them; those of seed 13 fail."""
    return run_here(monkeypatch)


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., int]:
    """Runs a script's main with results and records of its own."""
    own = ["--jobs", "1", "--results", str(tmp_path / "results.jsonl"), "--records", str(tmp_path / "records")]
    return lambda main, *arguments: main([*arguments, *own])


def cell_arguments(*seeds: int, algorithm: str = "feddkd") -> list[str]:
    chosen = ["mini", "--algorithm", algorithm, "--partition", "c1", "--rounds", "1"]
    return [*chosen, *(word for seed in seeds for word in ("--seed", str(seed))), *(word for each in TINY for word in ("-o", each))]


def test_a_cell_runs_once_and_its_command_runs_it_again(go: Callable[..., int], started: list[str], tmp_path: Path) -> None:
    assert go(run.main, *cell_arguments(0, 1)) == 0
    first, second = grid.read_lines(tmp_path / "results.jsonl")
    assert started == ["feddkd-c1-seed0", "feddkd-c1-seed1"]
    assert (first["tier"], first["data"], first["algorithm"], first["partition"], first["seed"]) == ("mini", "mnist", "feddkd", "c1", 0)
    assert len(first["accuracy"]) == len(first["cumulative_wire_bytes"]) == len(first["seconds"]) == first["rounds"] == 1
    assert first["gradient_evaluations"][0] > 0
    assert len(first["class_accuracy"]) == 10
    assert first["final_accuracy"] == first["best_accuracy"] == first["accuracy"][0]
    assert first["overrides"]["dkd.steps"] == 1
    assert first["config"]["seed"] == 0
    assert "root" not in first["config"]["data"]

    assert go(run.main, *cell_arguments(0, 1)) == 0
    assert len(started) == 2

    command = shlex.split(first["command"])
    assert command[:2] == ["python", "benchmarks/niid_bench/run.py"]
    assert go(run.main, *command[2:]) == 0
    assert started[2:] == ["feddkd-c1-seed0"]
    assert command[-3:] == ["--results", str(tmp_path / "results.jsonl"), "--again"]
    again, other = grid.read_lines(tmp_path / "results.jsonl")
    assert other == second
    of_the_moment = dict.fromkeys(("seconds", "date", "load_average_1min"))
    assert {**again, **of_the_moment} == {**first, **of_the_moment}


def test_a_result_names_the_commit_and_whether_the_code_differed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", "-C", tmp_path, *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    assert source_commit(tmp_path, ["code"]) is None
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    (tmp_path / "results").write_text("1")
    git("init", "-q"), git("add", "-A"), git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "results").write_text("2")
    assert source_commit(tmp_path, ["code"]) == commit
    (tmp_path / "code" / "a.py").write_text("2")
    assert source_commit(tmp_path, ["code"]) == f"{commit}-dirty"


def test_a_cell_that_fails_leaves_the_others(
    go: Callable[..., int], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(run.main, *cell_arguments(13, 0, algorithm="fedavg")) == 1
    assert [line["seed"] for line in grid.read_lines(tmp_path / "results.jsonl")] == [0]
    assert "failed: mini mnist fedavg c1 seed 13: exit code 1" in capsys.readouterr().err
    assert go(run.main, *cell_arguments(13, 0, algorithm="fedavg")) == 1
    assert started == ["fedavg-c1-seed13", "fedavg-c1-seed0", "fedavg-c1-seed13"]


def test_a_finished_cell_with_other_settings_stays_and_is_named(
    go: Callable[..., int], started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(run.main, *cell_arguments(0)) == 0
    assert go(run.main, *cell_arguments(0), "-o", "dkd.lr=0.1") == 0
    assert len(started) == 1
    assert "finished with another dkd.lr, which --again would replace: mini mnist feddkd c1 seed 0" in capsys.readouterr().err


def test_a_record_of_other_settings_is_thrown_away(go: Callable[..., int], started: list[str], tmp_path: Path) -> None:
    assert go(run.main, *cell_arguments(0)) == 0
    (tmp_path / "results.jsonl").unlink()
    assert go(run.main, *cell_arguments(0)) == 0
    assert len(started) == 1  # its record was complete
    (tmp_path / "results.jsonl").unlink()
    assert go(run.main, *cell_arguments(0), "-o", "dkd.lr=0.1") == 0
    assert len(started) == 2


def test_nothing_runs_if_a_setting_is_wrong(go: Callable[..., int], started: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"mini mnist feddkd c1 seed 0: unknown key 'dkd\.stepz'"):
        go(run.main, *cell_arguments(0), "-o", "dkd.stepz=1")
    assert not started


def test_nothing_runs_without_the_data(go: Callable[..., int], started: list[str], tmp_path: Path) -> None:
    cell = ["mini", "--algorithm", "feddkd", "--partition", "c1", "--seed", "0", "--data-root", str(tmp_path)]
    with pytest.raises(ConfigError, match=rf"^--data-root {tmp_path} has no folder mnist, which must hold the files of mnist$"):
        go(run.main, *cell)
    assert not started


def test_no_job_at_once_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([*cell_arguments(0), "--jobs", "0"])
    assert "argument --jobs: 0 is less than 1" in capsys.readouterr().err


def test_tuning_runs_the_grid_and_its_command_one_point(
    go: Callable[..., int], started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ALGORITHMS["feddkd"], "grid", {"dkd.lr": [0.0001, 0.01]})
    assert go(tune.main, *cell_arguments(100)) == 0
    lines = grid.read_lines(tmp_path / "results.jsonl")
    assert [line["grid_point"] for line in lines] == [{"dkd.lr": 0.0001}, {"dkd.lr": 0.01}]
    assert [line["config"]["dkd"]["lr"] for line in lines] == [0.0001, 0.01]
    best = max(lines, key=lambda line: float(line["final_accuracy"]))
    assert capsys.readouterr().out.splitlines()[0].endswith(f"dkd.lr = {best['grid_point']['dkd.lr']}")
    assert go(tune.main, *shlex.split(lines[1]["command"])[2:]) == 0
    assert len(started) == 3
    assert len(grid.read_lines(tmp_path / "results.jsonl")) == 2


def test_an_algorithm_without_a_grid_cannot_be_tuned() -> None:
    with pytest.raises(ConfigError, match="no grid for fedavg_long"):
        tune.points_of("fedavg_long")


# The page


def line(algorithm: str, partition: str, seed: int, accuracy: Sequence[float], exchanges: int = 1) -> dict[str, Any]:
    """A line as run.py writes it, as far as the page reads it."""
    cell = Cell("mini", "mnist", algorithm, partition, seed)
    rounds = range(1, len(accuracy) + 1)
    return {
        "tier": "mini",
        "data": "mnist",
        "algorithm": algorithm,
        "partition": partition,
        "seed": seed,
        "accuracy": list(accuracy),
        "cumulative_wire_bytes": [1_000_000 * exchanges * number for number in rounds],
        "gradient_evaluations": [100 * number for number in rounds],
        "seconds": [1.5 * number for number in rounds],
        "config": grid._recorded(configure(cell, Settings())),
        "command": f"python run.py mini --data mnist --algorithm {algorithm} --partition {partition} --seed {seed} --again",
    }


PARTIAL = [
    *(line("fedavg", "c1", seed, [0.1, 0.2]) for seed in (0, 1, 2)),
    *(line("fedprox", "c1", seed, [0.1, 0.3]) for seed in (0, 1)),
    *(line("feddkd", "c1", seed, [0.8, 0.97], exchanges=2) for seed in (0, 1, 2)),
    *(line("fedavg_sgd", "c1", seed, [0.9, 0.97], exchanges=2) for seed in (0, 1, 2)),
    *(line("fedavg_long", "c1", seed, [0.1, 0.2, 0.5, 0.99]) for seed in (0, 1, 2)),
    line("fedavg", "dir0.5", 0, [0.9, 0.99]),
    line("feddkd", "dir0.5", 0, [0.9, 0.98], exchanges=2),
]


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """Writes results and has the page made of them."""

    def make(lines: Sequence[dict[str, Any]]) -> str:
        (tmp_path / "niid_bench_mini.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        path = tmp_path / "benchmarks.md"
        places = (*TIERS, "tuning")
        marks = "".join(f"\nprose on {name}\n<!-- niid_bench:{name} -->\nwhat was there\n<!-- /niid_bench:{name} -->\n" for name in places)
        path.write_text(marks)
        ablation = tmp_path / "ablation.md"
        ablation.write_text(
            "".join(f"<!-- niid_bench:{name} -->\n<!-- /niid_bench:{name} -->\n" for name in ("ablation", "ablation_15", "step_scale"))
        )
        arguments = ["--docs", str(tmp_path), "--results", str(tmp_path)]
        assert tables.main([*arguments, "--check"]) == 1
        assert tables.main(arguments) == 0
        assert tables.main([*arguments, "--check"]) == 0
        return path.read_text()

    return make


def test_the_page_says_what_partial_results_say(page: Callable[..., str], tmp_path: Path) -> None:
    text = page(PARTIAL)
    assert "prose on mini" in text
    assert "what was there" not in text
    assert "No results yet: `python benchmarks/niid_bench/run.py exact`" in text
    assert "| algorithm | c1 | dir0.5 |" in text
    assert "| `feddkd` | **97.00 ± 0.00** | 98.00 (n=1) |" in text
    assert "| `fedavg_sgd` | **97.00 ± 0.00** | - |" in text  # a tie is bold twice
    assert "| `fedprox` | 30.00 ± 0.00 (n=2) | - |" in text
    assert "| `fedavg_long` | 99.00 ± 0.00 | - |" in text  # more rounds, so never bold here
    assert (tmp_path / "benchmarks_mini_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_where_feddkd_does_not_win(page: Callable[..., str]) -> None:
    text = page(PARTIAL)
    assert "| the control, the same rounds and bytes | level: +0.00 to `fedavg_sgd`'s 97.00 (3 seeds) | - |" in text
    prox, avg = "ahead: +67.00 to `fedprox`'s 30.00 (2 seeds)", "undecided: -1.00 to `fedavg`'s 99.00 (1 seed)"
    assert f"| the best of the others, the same rounds | {prox} | {avg} |" in text
    thriftier = "ahead: +50.00 to `fedprox`'s 30.00 (2 seeds) | undecided: -9.00 to `fedavg`'s 99.00 (1 seed)"
    assert f"| that one, the same bytes | {thriftier} |" in text  # FedDKD's first round has FedAvg's whole bytes
    assert "| `fedavg_long`, the same bytes | behind: -2.00 to `fedavg_long`'s 99.00 (3 seeds) | - |" in text
    assert "**`feddkd` is ahead in 3, level in 1, behind in 1, undecided in 3 of these 8.**" in text
    assert "ends at 97.00% (seed 0)" in text
    assert "below FedAvg with the same partition and seed: dir0.5 seed 0 (of 4)" in text


def test_a_rival_that_has_ended_before_feddkds_first_round(page: Callable[..., str]) -> None:
    dear = [line("feddkd", "c1", seed, [0.9, 0.95], exchanges=3) for seed in (0, 1)]
    text = page([*dear, *(line("fedavg", "c1", seed, [0.4, 0.5]) for seed in (0, 1))])
    assert "| that one, the same bytes | behind: not one round done, `fedavg`'s 50.00 (2 seeds) |" in text


def test_the_page_reads_budgets_and_targets(page: Callable[..., str]) -> None:
    text = page(PARTIAL)
    assert "| `fedavg` | (20.00 ± 0.00; 50%) | (99.00 (n=1); 50%) |" in text  # FedDKD moves 4 MB, FedAvg 2 MB
    assert "| `fedavg_long` | **99.00 ± 0.00** | - |" in text
    assert "| `feddkd` | 2.0, 4 MB | 1.0, 2 MB |" in text  # to 90 %
    assert "| `fedavg_long` | 4.0, 4 MB | - |" in text
    assert "| `fedavg` | n/a (0 of 3) | 1.0, 1 MB |" in text


def test_every_cell_has_the_command_that_runs_it_again(page: Callable[..., str]) -> None:
    text = page(PARTIAL)
    assert all(f"\n{each['command']}\n" in text for each in PARTIAL)


def test_seeds_that_only_one_has_run_decide_nothing(page: Callable[..., str]) -> None:
    text = page([line("feddkd", "c1", 0, [0.5]), line("fedavg_sgd", "c1", 0, [0.4]), line("fedavg_sgd", "c1", 1, [0.9])])
    assert "undecided: +10.00 to `fedavg_sgd`'s 40.00 (1 seed)" in text
    assert "| `fedavg_sgd` | 65.00 ± 35.36 (n=2) |" in text  # nobody else has run both seeds, so nobody is the best
    assert "Not run in this tier: `fedavg`, `fedavg_tuned`, `feddkd_pure`" in text


def test_as_many_others_as_partitions_win_and_all_are_drawn(page: Callable[..., str], tmp_path: Path) -> None:
    winners = {
        "c1": "fedprox",
        "c2": "scaffold",
        "dir0.1": "fednova",
        "dir0.5": "fedexp",
        "iid": "fedntd",
        "c3": "fedmax",
        "quantity0.5": "moon",
    }
    page([line(name, partition, 0, [0.1, 0.2]) for partition, name in winners.items()])
    drawn = figures.chosen(Outcomes("mini", "mnist", grid.read_lines(tmp_path / "niid_bench_mini.jsonl")))
    assert set(drawn) == set(winners.values())
    assert (tmp_path / "benchmarks_mini_mnist.png").stat().st_size > 0


def test_the_page_names_cells_with_other_settings(page: Callable[..., str]) -> None:
    changed = line("feddkd", "c1", 1, [0.5])
    changed["config"]["dkd"]["lr"] = 7.0
    idle = line("fedavg", "c1", 1, [0.5])
    idle["config"]["dkd"]["lr"] = 7.0  # FedAvg takes no steps
    text = page([changed, idle])
    assert "changed since: feddkd c1 seed 1 (`dkd.lr`)." in text


def test_published_numbers_stand_beside_the_exact_tier_only() -> None:
    lines = [{**each, "tier": "exact"} for each in PARTIAL]
    text = tables.published_table(Outcomes("exact", "mnist", lines))
    assert "|  | [1] | 19.3 ± 11.8 | 98.9 ± 0.1 |" in text
    assert "| `fedadagrad` | here | - | - |\n|  | [2] | 68.9 | 98.8 |" in text
    assert tables.published_table(Outcomes("mini", "mnist", PARTIAL)) == ""


def test_the_ablation_page_sets_variants_beside_the_default() -> None:
    def of(final: float, accuracy: list[float], **point: object) -> dict[str, Any]:
        cell = Cell("mini", "mnist", "feddkd", "c1", 100, tuple(point.items()))
        config = grid._recorded(configure(cell, Settings(rounds=4)))
        return {
            **line("feddkd", "c1", 100, accuracy),
            "final_accuracy": final,
            "rounds": 4,
            "grid_point": point,
            "config": config,
            "command": "rerun it",
        }

    default = of(0.98, [0.5, 0.8, 0.97, 0.98])
    collapsed = of(0.96, [0.5, 0.8, 0.11, 0.96], **{"dkd.steps": 5})
    older = of(0.5, [0.5, 0.5, 0.5, 0.5], **{"dkd.temperature": 2.0})
    older["config"]["dkd"]["lr"] = 7.0
    text = ablation_table([default, collapsed, older])
    assert "| default | - | 98.00 | none | 4 MB |" in text
    assert "| J = 5 | `dkd.steps = 5` | 96.00 | 69.0 | 4 MB |" in text
    assert "rerun it" in text
    assert "temperature" not in text
    assert "1 more, of older defaults or other rounds, are left out" in text
    assert "No results yet" in ablation_table([])


def test_the_step_scale_table_names_every_seed_and_counts_the_runs_that_learned_nothing() -> None:
    def of(algorithm: str, seed: int, final: float, **point: object) -> dict[str, Any]:
        cell = Cell("mini", "cifar10_jpeg", algorithm, "c2", seed, tuple(point.items()))
        config = grid._recorded(configure(cell, Settings(rounds=4)))
        own = {"data": cell.data, "final_accuracy": final, "rounds": 4, "grid_point": point, "config": config, "command": f"rerun {seed}"}
        return {**line(algorithm, "c2", seed, [final]), **own}

    off = {"dkd.growth_limit": 0.0}
    older = of("feddkd", 100, 0.4)
    older["config"]["dkd"]["lr"] = 7.0
    text = step_scale_table([of("fedavg_sgd", 101, 0.1, **off), of("fedavg_sgd", 100, 0.4, **off), of("fedavg_sgd", 101, 0.41), older])
    assert "| `fedavg_sgd` | default | 101: 41.00 | 0 of 1 |" in text
    assert "| `fedavg_sgd` | no growth limit | 100: 40.00, 101: 10.00 | 1 of 2 |" in text
    assert "3 runs of 4 rounds" in text
    assert "rerun 101" in text
    assert "No results yet" in step_scale_table([])


def test_a_result_that_is_older_than_a_guard_counts_as_one_of_today() -> None:
    config = configure(CELL, Settings())
    older = {"config": grid._recorded(config)}
    del older["config"]["dkd"]["growth_limit"]
    assert grid.outdated_key(older, config) is None
    older["config"]["dkd"]["growth_limit"] = 7.0
    assert grid.outdated_key(older, config) == "dkd.growth_limit"


def tuning_line(algorithm: str, final: float, **point: object) -> dict[str, Any]:
    return {**line(algorithm, "c2", 100, [final]), "final_accuracy": final, "rounds": 6, "grid_point": point}


def test_the_tuning_says_every_point_and_which_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"algorithm": {"name": "fednova"}, "training": {"lr": 0.03}, "grid": {"training.lr": [0.01, 0.03]}}
    monkeypatch.setitem(ALGORITHMS, "fednova", table)
    text = tuning_table([tuning_line("fednova", 0.5, **{"training.lr": 0.03})])
    assert "| `fednova` | `training.lr` | 0.01: -; **0.03: 50.0** |" in text
    assert "the last three of 6 rounds in %, on c2, seed 100;" in text
    assert "No results yet" in tuning_table([])


TUNED_BY_HAND = {"feddkd", "fedavg_sgd"}
"""They run at their defaults."""


@pytest.mark.parametrize("name", [name for name, table in ALGORITHMS.items() if "grid" in table and name not in TUNED_BY_HAND])
def test_every_baseline_runs_at_the_best_point_of_its_whole_grid(name: str) -> None:
    found = accuracies(name, grid.read_lines(grid.RESULTS / tune.RESULT))
    points = tune.points_of(name)
    assert all(point in found for point in points)
    assert found[point_used(name)] == max(found[point] for point in points)


@pytest.mark.parametrize(
    ("key", "value", "matters"),
    [
        ("transport.staging_bytes", 1 << 20, False),
        ("transport.chunk_bytes", 1 << 19, True),
        ("scheduler.deadline_s", 7.0, False),
        ("scheduler.weights", "uniform", True),
    ],
)
def test_a_cell_is_outdated_by_a_setting_that_changes_its_result(key: str, value: object, matters: bool) -> None:
    config = configuration("feddkd")
    line = {"config": config.model_dump(mode="json", exclude_none=True, exclude={"data": {"root"}, "runtime": {"client_processes"}})}
    table, name = key.split(".")
    assert line["config"][table][name] != value
    line["config"][table][name] = value
    assert grid.outdated_key(line, config) == (key if matters else None)


def test_the_committed_page_is_what_the_results_say() -> None:
    assert tables.main(["--check"]) == 0
