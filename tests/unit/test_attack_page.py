"""The page of the attack laboratory: tables, what they are of, and what the sentences say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from attacks.cells import DIGITS, FEDAVG, FEDDKD, IID, TWO_CLASSES, Cell, all_cells  # noqa: E402
from attacks.clients import BOTH  # noqa: E402
from attacks.known import ATTACKS, NONE  # noqa: E402
from attacks.outcomes import Group, Outcomes  # noqa: E402
from attacks.page import places  # noqa: E402
from attacks.rules import DEFAULTS, MEAN, RULES  # noqa: E402
from attacks.tables import attacks_of, by_rule  # noqa: E402
from attacks.tables import defaults as defaults_table  # noqa: E402
from attacks.verdicts import choice, default_settings, one_rule, verdicts  # noqa: E402


def group(rule: str, attack: str, attackers: int) -> Group:
    return Group(DIGITS, FEDAVG, IID, rule, attack, attackers)


MACHINE = {"versions": {"torch": "2"}, "cpu": "some", "cpu_capability": "AVX2"}


def line(rule: str, attack: str, attackers: int, seed: int, accuracy: float | None, partition: str = IID, **more: Any) -> dict[str, Any]:
    cell = Cell(DIGITS, FEDAVG, partition, rule, attack, BOTH, attackers, seed)
    return {**cell.line(), "accuracy": accuracy, "commit": "c0ffee", "fingerprint": "f", **MACHINE, **more}


def test_a_loss_is_against_the_clean_mean_of_the_same_seeds() -> None:
    found = Outcomes(
        [
            line(MEAN, NONE, 0, 0, 0.9),
            line(MEAN, NONE, 0, 1, 0.8),
            line(DEFAULTS, "alie", 2, 0, 0.85),
            line(DEFAULTS, "alie", 2, 1, None),
            line(DEFAULTS, "alie", 2, 2, 0.1),  # its clean mean has not run
        ]
    )
    outcome = found.of(group(DEFAULTS, "alie", 2))
    assert outcome is not None
    assert outcome.loss == pytest.approx((5 + 70) / 2)  # a run without a model counts as chance, 10 %
    assert outcome.worst == pytest.approx(70)
    assert (outcome.seeds, outcome.failed) == ((0, 1), 1)
    assert outcome.text == "37.5 (70.0)"
    assert found.of(group(MEAN, "alie", 2)) is None


def all_rules(attackers: int, bad: dict[str, list[str]], partition: str = IID) -> list[dict[str, Any]]:
    """Every attack costs every rule 1 point, and 20 points where `bad` has it for the attack."""
    clean = [line(rule, NONE, 0, 0, 0.9, partition) for rule in RULES]
    return clean + [
        line(rule, attack, attackers, 0, 0.7 if rule in bad.get(attack, []) else 0.89, partition)
        for rule in RULES
        for attack in attacks_of(FEDAVG)
    ]


def test_the_verdicts_count_the_attacks_that_some_rule_keeps_within_the_limit() -> None:
    said = " ".join(verdicts(Outcomes(all_rules(2, {"alie": list(RULES), "sign_flip": ["median"]}))).split())
    assert "12 of 13 attacks cost at most 5 points; the most is 20.0." in said
    assert "2 of 10 attackers: **no single rule** keeps every attack within 5 points" in said


def test_a_rule_is_recommended_only_if_it_holds_with_every_number_of_attackers() -> None:
    fails = [rule for rule in RULES if rule not in ("median", "multi_krum")]
    with_two, with_three = all_rules(2, {"alie": fails}), all_rules(3, {"alie": fails, "ipm_5": ["median"]})
    said = one_rule(Outcomes(with_two), FEDAVG)
    assert "2 of 10 attackers: these rules keep every attack within 5 points: median (at most 1.0); multi-Krum (at most 1.0)." in said
    said = one_rule(Outcomes([*with_two, *with_three]), FEDAVG)
    assert "2 and 3 of 10 attackers: these rules keep every attack within 5 points: multi-Krum (at most 1.0)." in said
    said = one_rule(Outcomes([*with_two, *with_three[:-1]]), FEDAVG)
    assert "2 of 10 attackers: these rules" in said, "with three attackers not all is measured"


def test_the_advice_says_what_the_recommended_rule_costs_where_labels_are_skewed() -> None:
    skewed = all_rules(2, {"alie": list(RULES)}, TWO_CLASSES)
    said = " ".join(choice(Outcomes([*all_rules(2, {}), *skewed])).split())
    assert "median (at most 1.0; with two classes each 0.0 without an attack, 20.0 under its worst attack)" in said
    assert "2 of 10 attackers: **no rule** keeps every attack within 5 points; the least that a worst attack costs is" in said
    kept = " ".join(choice(Outcomes([*all_rules(2, {}), *all_rules(2, {}, TWO_CLASSES)])).split())
    assert "two classes each, 2 of 10 attackers: the rule that loses least under its worst attack is" in kept


def test_the_verdict_of_the_defaults_names_every_attack_that_they_do_not_stop() -> None:
    clean = [line(MEAN, NONE, 0, seed, 0.9) for seed in (0, 1)]
    lost = {"alie": 0.5, "sleeper": 0.8}
    lines = [line(DEFAULTS, attack, 1, seed, lost.get(attack, 0.9)) for attack in attacks_of(FEDAVG) for seed in (0, 1)]
    said = default_settings(Outcomes([*clean, *lines]), FEDAVG)
    assert (
        "11 of 13 attacks cost at most 5 points; not these: ALIE (mean - 1.5 std): 40.0; honest for a third, then times -10: 10.0." in said
    )
    assert default_settings(Outcomes([*clean, *lines[:-2]]), FEDAVG) == "", "the last attack is not measured"


def test_a_table_says_how_many_runs_it_has_with_which_seeds_and_commits() -> None:
    lines = [line(MEAN, NONE, 0, seed, 0.9, commit=f"c{seed}") for seed in (0, 1, 2)]
    lines += [line(DEFAULTS, "alie", 2, seed, 0.8, commit=f"c{seed}") for seed in (0, 1, 2)]
    lines += [line("median", "alie", 2, 0, 0.85, commit="c7"), line("median", "sign_flip", 2, 0, 0.9)]
    text = by_rule(Outcomes(lines), DIGITS, FEDAVG, IID)
    assert "| ALIE (mean - 1.5 std) | 10.0 (10.0) | **5.0**, n=1 |" in text
    assert text.splitlines()[0] == "| attack | defaults | median |", "rules that were not attacked have no column"
    assert (
        " ".join(text.splitlines()[-2:])
        == '5 runs, seeds 0, 1, 2, at c0, c0ffee, c1, c2, c7. n: the number of seeds where it is not 3. "-": not measured.'
    )


def test_a_table_whose_cells_have_the_same_seeds_does_not_count_them() -> None:
    text = by_rule(Outcomes([line(MEAN, NONE, 0, 3, 0.9), line(MEAN, "alie", 2, 3, 0.9)]), DIGITS, FEDAVG, IID)
    assert text.splitlines()[-1] == "2 runs, seed 3, at c0ffee."


def test_runs_that_do_not_say_which_code_decided_them_are_counted() -> None:
    earlier = line(MEAN, "alie", 2, 0, 0.9)
    del earlier["fingerprint"]
    text = by_rule(Outcomes([line(MEAN, NONE, 0, 0, 0.9), earlier]), DIGITS, FEDAVG, IID)
    assert text.endswith("1 of the runs are of an earlier version of the rules.")


def test_an_attack_that_has_no_meaning_for_an_algorithm_is_not_said_to_be_missing() -> None:
    lines = [
        {**line(rule, attack, number, 0, 0.9), "algorithm": algorithm}
        for algorithm in (FEDAVG, FEDDKD)
        for rule in (MEAN, DEFAULTS)
        for attack, number in [(NONE, 0), *((attack, 1) for attack in ATTACKS if attack != NONE)]
        if ATTACKS[attack].only_for in (None, algorithm)
    ]
    text = defaults_table(Outcomes(lines))
    assert "| claims a high loss before | **0.0** | **0.0** |  |  |" in text
    assert "not measured" not in text


def test_sections_without_results_are_left_out_and_listed() -> None:
    page = places([line(MEAN, NONE, 0, 0, 0.9), line(MEAN, "alie", 2, 0, 0.9)])
    assert "## IID digits, two attackers" in page["attacks:digits_iid"]
    assert page["attacks:mnist_iid"] == ""
    assert "- IID MNIST." in page["attacks:not_measured"]
    assert "IID digits with two attackers" not in page["attacks:not_measured"]
    assert not [text for text in places([]).values() if "|" in text]


def test_every_result_is_of_a_cell_and_says_how_it_was_made() -> None:
    cells = set(all_cells())
    for text in (ROOT / "benchmarks" / "results" / "attacks.jsonl").read_text().splitlines():
        found = json.loads(text)
        assert Cell.of(found) in cells, "a table shows it"
        assert not {"--data-root", "--results", "--jobs"} & set(found["command"].split())
        assert {"command", "commit", "versions", "cpu", "seconds", "accuracy", "refused"} <= found.keys()


def test_the_page_is_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
