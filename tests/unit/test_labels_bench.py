"""The benchmark of few and wrong labels: what its rows run, in which order, and what the page says of them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grid_cells import ROOT, TINY, run_here

sys.path.insert(0, str(ROOT / "benchmarks"))

from niid_bench import grid, labels, labels_bytes_figure, labels_figure, labels_tables
from niid_bench.cells import LABELS, Cell, Settings, configure
from niid_bench.labels import CASES, STUDY
from niid_bench.labels_exact import exact_section, exact_targets
from niid_bench.labels_names import row_name
from niid_bench.labels_outcomes import LabelOutcomes
from niid_bench.labels_verdicts import auto_targets, boundaries, case_title, cifar_targets, few_targets, not_ahead, wrong_targets


def cell(row: str, case: str = "3%", partition: str = "c2", seed: int = 40, data: str = "mnist") -> Cell:
    return Cell("mini", data, row, partition, seed, CASES[case], STUDY)


def config_of(row: str, case: str = "3%", **where: Any) -> Any:
    return configure(cell(row, case, **where), Settings())


def chosen(**options: Any) -> list[Cell]:
    given = {"tier": "mini", "data": "mnist", "row": None, "case": None, "partition": None, "seed": None, **options}
    return labels.chosen_cells(argparse.Namespace(**given))


# What a row runs


@pytest.mark.parametrize("row", LABELS)
def test_every_row_has_a_configuration_in_every_case(row: str) -> None:
    for case in CASES:
        assert config_of(row, case).data.holdout == (0.1 if row in labels.HELD_OUT else 0.0)


def test_a_case_changes_the_labels_and_nothing_else() -> None:
    assert (config_of("feddkd", "3%").data.labelled_share, config_of("feddkd", "all").data.labelled_share) == (0.03, None)
    noisy = config_of("feddkd", "own30").data
    assert (noisy.label_noise, noisy.label_noise_kind, noisy.labelled_share) == (0.3, "own_classes", None)
    same = {"data"}
    assert all(config_of("feddkd", case).model_dump(exclude=same) == config_of("feddkd", "all").model_dump(exclude=same) for case in CASES)


def test_the_rivals_share_exchanges_steps_and_rate_with_feddkd() -> None:
    ours = config_of("feddkd")
    for row in ("control", "self_training", "self_training_all"):
        assert (config_of(row).dkd, config_of(row).rounds) == (ours.dkd, ours.rounds)
    assert config_of("fedavg_x20").rounds == ours.rounds * ours.dkd.steps
    assert config_of("self_training_all").algorithm.classes == "all"


def test_rows_that_are_like_another_differ_in_what_they_say() -> None:
    ours, teachers = config_of("feddkd").dkd, config_of("feddkd_teachers").dkd
    assert teachers == ours.model_copy(update={"hard_label_weight": 0.0})
    auto, held_out = config_of("feddkd_auto"), config_of("feddkd_holdout")
    assert auto.dkd == held_out.dkd.model_copy(update={"teacher": "auto"})
    assert auto.data == held_out.data


def test_a_data_set_may_have_rounds_and_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELS["feddkd"], "for_data", {"svhn": {"rounds": 7, "dkd": {"lr": 0.5}}})
    own, other = config_of("feddkd", data="svhn"), config_of("feddkd")
    assert (own.rounds, own.dkd.lr) == (7, 0.5)
    assert (other.rounds, other.dkd.lr) == (15, 0.008)
    assert own.dkd.model_copy(update={"lr": 0.008}) == other.dkd


def test_fedavg_with_codecs_has_the_rate_that_does_not_diverge_with_one_class_a_client() -> None:
    rates = {part: config_of("fedavg_coded", "all", partition=part, data="cifar10_jpeg").training.lr for part in ("c1", "c2")}
    assert rates == {"c1": 0.01, "c2": 0.03}


def test_a_row_does_not_meet_an_algorithm_of_the_same_name() -> None:
    plain = Cell("mini", "mnist", "feddkd", "c2", 40)
    assert configure(plain, Settings()).dkd.start == "better"
    assert config_of("feddkd", "all").dkd.start == "previous"


# In which order


def test_cells_come_seed_by_seed_with_few_labels_first_and_single_seeds_last() -> None:
    cells = chosen()
    assert [(each.algorithm, labels.case_of(each), each.partition) for each in cells[:4]] == [
        ("feddkd", "3%", "c2"),
        ("control", "3%", "c2"),
        ("self_training", "3%", "c2"),
        ("feddkd", "3%", "dir0.1"),
    ]
    first_mild = next(index for index, each in enumerate(cells) if each.partition == "iid")
    last_of_42 = max(index for index, each in enumerate(cells) if each.seed == 42)
    assert last_of_42 < first_mild
    assert [each.seed for each in cells[: last_of_42 + 1]] == sorted(each.seed for each in cells[: last_of_42 + 1])
    assert {each.seed for each in cells[last_of_42 + 1 :]} == {40}
    assert len(set(cells)) == len(cells)


def test_rows_cases_partitions_and_seeds_can_be_chosen() -> None:
    assert chosen(row=["feddkd"], case=["noise40"], partition=["dir0.1"], seed=[5]) == [cell("feddkd", "noise40", "dir0.1", 5)]
    assert {labels.case_of(each) for each in chosen(case=["1%"])} == {"1%"}
    assert {each.seed for each in chosen(seed=[7])} == {7}


def test_a_cell_that_is_named_in_full_runs_where_the_plan_has_it_not() -> None:
    assert cell("feddkd_frugal", "own20", "c1", 40) not in chosen()
    assert chosen(row=["feddkd_frugal"], case=["own20"], partition=["c1"], seed=[40]) == [cell("feddkd_frugal", "own20", "c1", 40)]


# Running


def test_a_cell_states_its_case_and_its_command_runs_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = run_here(monkeypatch)
    own = ["--jobs", "1", "--results", str(tmp_path / "results.jsonl"), "--records", str(tmp_path / "records")]
    tiny = [word for each in TINY for word in ("-o", each)]
    where = ["mini", "--row", "feddkd_holdout", "--case", "10%", "--partition", "c2", "--seed", "20", "--rounds", "2"]
    assert labels.main([*where, *tiny, *own]) == 0
    (line,) = grid.read_lines(tmp_path / "results.jsonl")
    assert Cell.of_line(line) == cell("feddkd_holdout", "10%", seed=20)
    assert line["config"]["data"]["labelled_share"] == 0.1
    assert len(line["client_accuracy"]) == len(line["metrics"]["teacher_accuracy"]) == 2
    assert labels.main([*where, *tiny, *own]) == 0
    assert len(started) == 1
    command = shlex.split(line["command"])
    assert command[:3] == ["python", "benchmarks/niid_bench/labels.py", "mini"]
    assert labels.main([*command[2:], "--records", str(tmp_path / "records")]) == 0
    assert len(started) == 2
    assert [each["model_sha256"] for each in grid.read_lines(tmp_path / "results.jsonl")] == [line["model_sha256"]]


# The page


def line(row: str, case: str, partition: str, seed: int, accuracy: Sequence[float], **more: Any) -> dict[str, Any]:
    """A line as labels.py writes it, as far as the page reads it."""
    own = replace(cell(row, case, partition, seed, more.get("data", "mnist")), tier=more.get("tier", "mini"))
    metrics = {"teacher_accuracy": [0.95] * len(accuracy)} if row in labels.HELD_OUT else {}
    return {
        "tier": "mini",
        "data": own.data,
        "algorithm": row,
        "partition": partition,
        "seed": seed,
        "study": STUDY,
        **({"grid_point": dict(own.point)} if own.point else {}),
        "accuracy": list(accuracy),
        "client_accuracy": [0.9] * len(accuracy),
        "cumulative_wire_bytes": [1_000_000 * number for number, _ in enumerate(accuracy, 1)],
        "gradient_evaluations": [2_000 * number for number, _ in enumerate(accuracy, 1)],
        "seconds": [1.0 * number for number, _ in enumerate(accuracy, 1)],
        "metrics": metrics,
        "config": grid._recorded(configure(own, Settings())),
        "command": "python labels.py",
        **more,
    }


SEEDS = (40, 41, 42)
FULL = [
    *(line("feddkd", "3%", part, seed, [0.9, 0.97 + (seed - 40) / 1000]) for part in ("c2", "dir0.1") for seed in SEEDS),
    *(line("control", "3%", "c2", seed, [0.89, 0.80]) for seed in SEEDS),
    *(line("control", "3%", "dir0.1", seed, [0.91, 0.90]) for seed in SEEDS),
    *(line("self_training", "3%", "c2", seed, [0.975, 0.971]) for seed in SEEDS),
    *(line("feddkd", "all", "c2", seed, [0.98, 0.982]) for seed in SEEDS),
    *(line("feddkd", "noise60", "c2", seed, [0.96, 0.91]) for seed in SEEDS),
    *(line("feddkd_teachers", "noise60", "c2", seed, [0.9, 0.97]) for seed in SEEDS),
    *(line("control", "noise60", "c2", seed, [0.95, 0.88]) for seed in SEEDS),
    line("feddkd", "3%", "iid", 40, [0.8, 0.73]),
    line("control", "3%", "iid", 40, [0.88, 0.87]),
    line("feddkd_holdout", "3%", "iid", 40, [0.8, 0.72]),
    line("feddkd_auto", "3%", "iid", 40, [0.8, 0.865], metrics={"steps_by_teachers": [1.0, 0.0], "steps_by_labels": [0.0, 1.0]}),
]


def judged(targets: Sequence[Any], start: str, partition: str) -> str:
    """What was measured on a partition, of the one target whose text starts so."""
    (target,) = [each for each in targets if each.text.startswith(start)]
    return str(target.judge(partition))


def test_targets_compare_the_last_round_with_the_controls_best() -> None:
    targets = few_targets(LabelOutcomes("mnist", FULL))
    assert (
        judged(targets, "3 % of the labels: FedDKD at least 7 points", "c2") == "met: +8.10 points (worst +8.00) to control (SGD on labels)"
    )
    assert (
        judged(targets, "3 % of the labels: FedDKD at least 7 points", "dir0.1")
        == "missed: +6.10 points (worst +6.00) to control (SGD on labels)"
    )
    assert judged(targets, "10 % of the labels: FedDKD at least 2.5 points", "c2") == "not measured"


def test_all_labels_are_compared_last_round_to_last_round() -> None:
    targets = few_targets(LabelOutcomes("mnist", FULL))
    assert judged(targets, "3 % of the labels: FedDKD within 1.3 points of itself", "c2") == "met: -1.10 points (worst -1.20)"
    assert judged(targets, "3 % of the labels: FedDKD within 1.3 points of itself", "dir0.1") == "not measured"


def test_the_strongest_rival_decides_and_is_named() -> None:
    targets = few_targets(LabelOutcomes("mnist", FULL))
    start = "3 % of the labels: FedDKD at or above"
    assert judged(targets, start, "c2") == "missed: -0.40 points (worst -0.50) to self-training"
    assert judged(targets, start, "dir0.1") == "met: +6.10 points (worst +6.00) to control (SGD on labels)"


def test_a_rival_that_is_ahead_on_some_seeds_alone_is_level() -> None:
    rival = [line("fedavg_x20", "3%", "dir0.1", seed, [accuracy]) for seed, accuracy in zip(SEEDS, (0.96, 0.975, 0.979), strict=True)]
    start = "3 % of the labels: FedDKD at or above"
    assert (
        judged(few_targets(LabelOutcomes("mnist", [*FULL, *rival])), start, "dir0.1")
        == "level: -0.03 points (worst -0.70) to FedAvg, 20 \N{MULTIPLICATION SIGN} the rounds"
    )
    alone = LabelOutcomes("mnist", [*FULL, rival[1]])
    assert judged(few_targets(alone), start, "dir0.1") == "missed: -0.40 points (n=1) to FedAvg, 20 \N{MULTIPLICATION SIGN} the rounds"


def test_under_noise_both_forms_are_held_against_the_best_control() -> None:
    slow = [line("control_slow", "noise60", "c2", seed, [0.955, 0.955]) for seed in SEEDS[:2]]
    targets = wrong_targets(LabelOutcomes("mnist", [*FULL, *slow]))
    assert judged(targets, "60 % wrong: FedDKD ", "c2") == "missed: -4.50 points (worst -4.50) (n=2) to `control_slow`"
    assert judged(targets, "60 % wrong: `feddkd_teachers`", "c2") == "met: +1.50 points (worst +1.50) (n=2) to `control_slow`"
    assert judged(targets, "40 % wrong: FedDKD ", "c2") == "not measured"


def test_seeds_that_only_one_of_both_has_run_do_not_count() -> None:
    found = LabelOutcomes("mnist", [line("feddkd", "3%", "c2", 40, [0.97]), line("control", "3%", "c2", 41, [0.89])])
    assert judged(few_targets(found), "3 % of the labels: FedDKD at least 7 points", "c2") == "not measured"


def cifar(row: str, accuracy: Sequence[float], case: str = "all", partition: str = "c1", seed: int = 40, **more: Any) -> dict[str, Any]:
    return line(row, case, partition, seed, accuracy, data="cifar10_jpeg", **more)


def found_on_cifar(*lines: dict[str, Any], tier: str = "mini") -> LabelOutcomes:
    return LabelOutcomes("cifar10_jpeg", lines, tier)


@pytest.mark.parametrize("row", ["feddkd", "feddkd_paper", "feddkd_frugal", "feddkd_holdout", "control", "control_slow"])
@pytest.mark.parametrize(("case", "partition"), [("10%", "c2"), ("all", "c1"), ("noise40", "iid")])
def test_a_run_that_ends_below_half_of_its_best_round_is_a_collapse_in_every_case(row: str, case: str, partition: str) -> None:
    fine, fallen = cifar("feddkd", [0.3, 0.45], case, partition, seed=41), cifar(row, [0.4, 0.19], case, partition)
    start = "all cases: no run"
    assert judged(cifar_targets(found_on_cifar(fine)), start, partition) == "met: 0 of 1 runs"
    said = f"missed: 1 of 2 runs: {row_name(row)} ({case_title(case)}, seed 40)"
    assert judged(cifar_targets(found_on_cifar(fine, fallen)), start, partition) == said
    assert judged(cifar_targets(found_on_cifar()), start, partition) == "not measured"


def test_a_run_that_never_leaves_chance_is_a_collapse_and_an_algorithm_without_steps_is_not_judged() -> None:
    dead, stuck = cifar("control", [0.1, 0.1]), cifar("fedavg", [0.1, 0.1])
    assert judged(cifar_targets(found_on_cifar(dead, stuck)), "all cases: no run", "c1").startswith("missed: 1 of 1 runs")
    assert judged(cifar_targets(found_on_cifar(stuck)), "all cases: no run", "c1") == "not measured"


ONE_EXCHANGE = "all labels: FedDKD above the best round of every algorithm of one exchange"
RIVALS = [cifar("fedavg", [0.2, 0.1]), cifar("fedavg_tuned", [0.1, 0.4]), cifar("fedavgm", [0.1, 0.3]), cifar("fedadagrad", [0.45, 0.2])]


def test_with_all_labels_the_strongest_algorithm_of_one_exchange_decides() -> None:
    ahead = found_on_cifar(cifar("feddkd", [0.6, 0.5]), *RIVALS)
    assert judged(cifar_targets(ahead), ONE_EXCHANGE, "c1") == "met: +5.00 points (n=1) to `fedadagrad`"
    behind = found_on_cifar(cifar("feddkd", [0.6, 0.44]), *RIVALS)
    assert judged(cifar_targets(behind), ONE_EXCHANGE, "c1") == "missed: -1.00 points (n=1) to `fedadagrad`"
    equal = found_on_cifar(cifar("feddkd", [0.6, 0.45]), *RIVALS)
    assert judged(cifar_targets(equal), ONE_EXCHANGE, "c1") == "level: +0.00 points (n=1) to `fedadagrad`"


def test_an_algorithm_of_one_exchange_that_has_not_run_leaves_it_unmeasured() -> None:
    found = found_on_cifar(cifar("feddkd", [0.5]), *RIVALS[:3])
    assert judged(cifar_targets(found), ONE_EXCHANGE, "c1") == "not measured beside `fedadagrad`: +10.00 points (n=1) to `fedavg_tuned`"
    assert judged(cifar_targets(found), ONE_EXCHANGE, "c2") == "not measured"


EQUAL_BYTES = "all labels: `feddkd_frugal` above the best round of `fedavg_coded`"


def test_at_equal_bytes_both_curves_are_cut_at_the_smaller_total() -> None:
    ours = cifar("feddkd_frugal", [0.3, 0.42], cumulative_wire_bytes=[20_000_000, 40_000_000])
    theirs = cifar("fedavg_coded", [0.41, 0.40, 0.9], cumulative_wire_bytes=[20_000_000, 40_000_000, 40_000_001])
    assert judged(cifar_targets(found_on_cifar(ours, theirs)), EQUAL_BYTES, "c1") == "met: +1.00 points at 40 MB (n=1)"
    shorter = cifar("fedavg_coded", [0.31], cumulative_wire_bytes=[30_000_000])
    assert judged(cifar_targets(found_on_cifar(ours, shorter)), EQUAL_BYTES, "c1") == "missed: -1.00 points at 30 MB (n=1)"
    assert judged(cifar_targets(found_on_cifar(ours)), EQUAL_BYTES, "c1") == "not measured"


def test_a_row_without_a_finished_round_at_equal_bytes_is_not_compared() -> None:
    early = cifar("fedavg_coded", [0.3], cumulative_wire_bytes=[10_000_000])
    late = cifar("feddkd_frugal", [0.5], cumulative_wire_bytes=[20_000_000])
    assert judged(cifar_targets(found_on_cifar(early, late)), EQUAL_BYTES, "c1") == "not measured"


@pytest.mark.parametrize(
    ("rivals", "said"),
    [
        ((0.39, 0.41, 0.42), "level: -0.67 points at 1 MB (worst -2.00)"),
        ((0.38, 0.39, 0.41), "met: +0.67 points at 1 MB (worst -1.00)"),
        ((0.41, 0.41, 0.42), "missed: -1.33 points at 1 MB (worst -2.00)"),
    ],
)
def test_at_equal_bytes_the_mean_decides_and_seeds_that_disagree_are_level(rivals: Sequence[float], said: str) -> None:
    ours = [cifar("feddkd_frugal", [0.4], seed=seed) for seed in SEEDS]
    theirs = [cifar("fedavg_coded", [accuracy], seed=seed) for seed, accuracy in zip(SEEDS, rivals, strict=True)]
    assert judged(cifar_targets(found_on_cifar(*ours, *theirs)), EQUAL_BYTES, "c1") == said


def test_where_feddkd_is_not_ahead_is_said_in_words() -> None:
    control = [cifar("control", [0.51]), cifar("control", [0.52], "10%", "c2"), cifar("control", [0.48], "10%", "c2", seed=41)]
    ours = [cifar("feddkd", [0.5]), cifar("feddkd", [0.5], "10%", "c2"), cifar("feddkd", [0.5], "10%", "c2", seed=41)]
    coded = [cifar("feddkd_frugal", [0.3]), cifar("fedavg_coded", [0.4])]
    assert not_ahead(found_on_cifar(*control, *ours, *coded, cifar("fedavg", [0.1]))) == (
        "- **All labels, c1:** FedDKD is behind control (SGD on labels): -1.00 points (n=1); "
        "`feddkd_frugal` is behind `fedavg_coded`: -10.00 points at 1 MB (n=1).\n"
        "- **10 % of the labels, c2:** FedDKD is level with control (SGD on labels): +0.00 points (worst -2.00) (n=2).\n\n"
        "**Of these 5 comparisons: ahead in 2, level in 1, behind in 2.**"
    )
    assert not_ahead(found_on_cifar(ours[0], cifar("fedavg", [0.1]))) == "**Of these 1 comparisons: ahead in 1, level in 0, behind in 0.**"
    assert not_ahead(found_on_cifar()) == "No two of these rows have been measured."


def test_the_whole_protocol_is_judged_by_the_best_round_beside_published_numbers_of_the_original() -> None:
    lines = [
        cifar("feddkd", [0.2, 0.551, 0.54], tier="exact"),
        cifar("feddkd", [0.2, 0.599], partition="c2", tier="exact"),
        cifar("fedavg", [0.1, 0.12], tier="exact"),
        cifar("feddkd", [0.9], partition="dir0.5"),  # of the other tier
    ]
    found = found_on_cifar(*lines, tier="exact")
    of_original = "best published of the original CIFAR-10"
    assert judged(exact_targets(found), "FedDKD at its best round", "c1") == f"met: 55.10; {of_original}: 22.8"
    assert judged(exact_targets(found), "FedDKD at its best round", "c2") == f"missed: 59.90; {of_original}: 51.2"
    assert judged(exact_targets(found), "FedDKD at its best round", "dir0.5") == "not measured"
    assert judged(exact_targets(found), "all cases: no run", "c1") == "met: 0 of 1 runs"
    text = exact_section(found)
    assert "| c1 | FedDKD | 3 | 54.00 | 55.10 | 3 | 6 |" in text
    assert "| c1 | `fedavg` | 2 | 12.00 | 12.00 | 2 | 4 |" in text
    assert "| dir0.5 | FedDKD | not measured | - | - | - | - |" in text
    assert "| dir0.5 | best published, of the original CIFAR-10 | - | - | 69.8 (`scaffold`, NIID-Bench) | - | - |" in text


def test_what_rows_spend_is_a_mean_over_partitions() -> None:
    lines = [cifar("fedavg", [0.1, 0.2]), cifar("fedavg", [0.3] * 4, partition="c2"), cifar("control", [0.4], partition="c2")]
    text = labels_tables.costs_section(found_on_cifar(*lines), "all", ("c1", "c2"))
    assert "| `fedavg` | 2 | 3 | 6 | 20.00 / 20.00 (n=1) | 30.00 / 30.00 (n=1) |" in text
    assert "| control (SGD on labels) | 1 | 1 | 2 | - | 40.00 / 40.00 (n=1) |" in text


def test_auto_is_held_against_the_best_of_what_it_chooses_from() -> None:
    found = LabelOutcomes("mnist", FULL)
    assert judged(auto_targets(found), "3 % of the labels", "iid") == "met: -0.50 points (n=1) to control (SGD on labels)"
    text = labels_tables.choice_section(found)
    assert "| 3 % of the labels | iid | 1 | 0 | 1 |" in text


def test_where_it_ends_is_said_with_the_strongest_other_row() -> None:
    text = boundaries(LabelOutcomes("mnist", FULL))
    assert "| alike | 3 % of the labels | FedDKD | 73.00 | 88.00 | control (SGD on labels) | -15.00 points (n=1) |" in text
    assert "**Of these 1, FedDKD is above every other row in 0, and below one in 1.**" in text


def test_the_rule_holds_where_better_teachers_go_with_a_better_end() -> None:
    text = labels_tables.teachers_section(LabelOutcomes("mnist", FULL))
    assert "| 3 % of the labels | iid | 95.00 (n=1) | 90.00 (n=1) | 87.00 (n=1) | -15.00 points (n=1) | no |" in text
    assert text.endswith("**The rule holds in 0 of 1.**")


@pytest.mark.parametrize(
    ("case", "title"),
    [("all", "all labels"), ("3%", "3 % of the labels"), ("noise40", "40 % wrong"), ("own20", "20 % wrong, own classes")],
)
def test_a_case_has_a_title(case: str, title: str) -> None:
    assert case_title(case) == title


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """Writes results and has the page made of them."""

    def make(lines: Sequence[dict[str, Any]]) -> str:
        (tmp_path / labels.RESULT).write_text("".join(json.dumps(each) + "\n" for each in lines))
        path = tmp_path / "labels.md"
        path.write_text(labels_tables.PAGE.read_text())
        readme = tmp_path / "README.md"
        readme.write_text(labels_tables.README.read_text())
        arguments = ["--page", str(path), "--readme", str(readme), "--results", str(tmp_path)]
        assert labels_tables.main(arguments) == 0
        assert labels_tables.main([*arguments, "--check"]) == 0
        path.write_text(path.read_text().replace("| `", "| changed `", 1))
        assert labels_tables.main([*arguments, "--check"]) == 1
        assert labels_tables.main(arguments) == 0
        return path.read_text()

    return make


def test_the_page_says_what_the_results_say(page: Callable[..., str], tmp_path: Path) -> None:
    text = page(FULL)
    assert "| control (SGD on labels) | 80.00 ± 0.00 / 89.00 | 90.00 ± 0.00 / 91.00 | 87.00 / 88.00 (n=1) |" in text
    assert "| self-training | 97.10 ± 0.00 / 97.50 | - | - |" in text
    assert "| `feddkd_teachers` | 97.00 ± 0.00 / 97.00 |" in text
    assert "| control (SGD on labels) | 2 | 2 | 4 | 80.00 ± 0.00 / 89.00 |" in text
    assert f"({labels_tables.PICTURE})" in text
    assert (tmp_path / labels_tables.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_page_has_a_picture_of_accuracy_by_bytes(page: Callable[..., str], tmp_path: Path) -> None:
    text = page([cifar(row, [0.1, 0.3], partition=part, seed=seed) for row in LABELS for part in ("c1", "c2") for seed in (40, 41)])
    assert f"({labels_tables.BYTES_PICTURE})" in text
    assert (tmp_path / labels_tables.BYTES_PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_picture_draws_every_row_of_the_comparison() -> None:
    assert labels_bytes_figure.ROWS.keys() == labels_bytes_figure._looks().keys() == set(labels.CIFAR_GRID.rows)


def test_the_page_names_cells_with_other_settings(page: Callable[..., str]) -> None:
    changed = line("feddkd", "10%", "c2", 40, [0.9])
    changed["config"]["dkd"]["lr"] = 7.0
    assert "changed since: mini mnist feddkd c2 seed 40 data.labelled_share=0.1 (`dkd.lr`)." in page([*FULL, changed])


def test_without_results_the_page_says_how_to_get_them(page: Callable[..., str], tmp_path: Path) -> None:
    text = page([])
    assert ".png" not in text
    assert not list(tmp_path.glob("*.png"))
    assert "No results yet: `python benchmarks/niid_bench/labels.py`." in text
    assert "met in 0, missed in 0" in text


def test_lines_of_other_studies_are_left_out() -> None:
    other = {key: value for key, value in line("feddkd", "all", "c2", 40, [0.9]).items() if key != "study"}
    assert LabelOutcomes("mnist", [other]).all == []


def test_the_axis_of_the_picture_is_undone_by_its_inverse() -> None:
    for accuracy in (50.0, 97.0, 98.5):
        assert labels_figure._accuracy(labels_figure._height(accuracy)) == pytest.approx(accuracy)


def test_the_committed_page_is_what_the_results_say() -> None:
    assert labels_tables.main(["--check"]) == 0
