"""The cells of the attack laboratory: which there are, and which run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from attacks import run  # noqa: E402
from attacks.cells import DIGITS, FEDAVG, FEDDKD, IID, Cell, all_cells  # noqa: E402
from attacks.clients import BOTH  # noqa: E402
from attacks.fingerprint import code_hash, fingerprint, with_imports  # noqa: E402
from attacks.known import ATTACKS, NONE  # noqa: E402
from attacks.results import Results  # noqa: E402
from attacks.rules import MEAN, RULES  # noqa: E402
from attacks.run import chosen  # noqa: E402
from attacks.running import run_cell  # noqa: E402

CLEAN = Cell(DIGITS, FEDAVG, IID, MEAN, NONE, BOTH, 0, 0)
ATTACKED = Cell(DIGITS, FEDAVG, IID, MEAN, "times_-10", BOTH, 2, 0)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    return [run_cell(cell, extra=["rounds=3"]) for cell in (CLEAN, ATTACKED)]


def test_a_cell_says_what_the_attack_costs(lines: list[dict[str, object]]) -> None:
    clean, attacked = (line["accuracy"] for line in lines)
    assert isinstance(clean, float)
    assert attacked is None or (isinstance(attacked, float) and attacked < 0.5)
    assert clean > 0.7
    assert [line["hostile"] for line in lines] == [[], ["client-8", "client-9"]]


def test_a_runner_goes_on_where_it_stopped(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    path = tmp_path / "attacks.jsonl"
    of_now = {**lines[0], "command": "run", "fingerprint": fingerprint(CLEAN)}
    Results(path).store(of_now)
    kept = Results(path)
    assert kept.is_current(CLEAN)
    assert not kept.is_current(ATTACKED), "it has not run"
    kept.store({**of_now, "fingerprint": "of other code"})
    assert not Results(path).is_current(CLEAN), "it ran with other code"
    kept.store({name: value for name, value in of_now.items() if name != "fingerprint"})
    assert not Results(path).is_current(CLEAN), "nobody knows with which code it ran"
    assert len(path.read_text().splitlines()) == 1


def test_cells_that_no_table_shows_are_left_out(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    results = Results(tmp_path / "attacks.jsonl")
    for each in lines:
        results.store({**each, "command": "run"})
    results.keep({ATTACKED})
    assert [Cell.of(each) for each in Results(results.path)] == [ATTACKED]


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("run.py --data-root /work/data --only seed=0", "run.py --only seed=0"),
        ("run.py --only seed=0 --data-root=/home/me/data --jobs 4", "run.py --only seed=0"),
        ("run.py --results=/tmp/x --again", "run.py --again"),
    ],
)
def test_a_result_has_no_path_of_the_machine(tmp_path: Path, lines: list[dict[str, object]], command: str, kept: str) -> None:
    path = tmp_path / "attacks.jsonl"
    path.write_text(json.dumps({**lines[0], "command": command}) + "\n")
    results = Results(path)
    results.store({**lines[1], "command": command})
    assert [json.loads(text)["command"] for text in path.read_text().splitlines()] == [kept, kept]


def files_of(rule: str) -> set[str]:
    """Return the files of the project's aggregator that a rule is decided by."""
    return {path.stem for path in with_imports([ROOT / "feddkd" / "aggregator" / f"{rule}.py"])}


@pytest.mark.parametrize(
    ("rule", "among", "not_among"),
    [
        ("mean", {"mean", "weighted_mean", "integer_sum", "history"}, {"median", "krum", "joint"}),
        ("median", {"median", "columns", "distances", "rule"}, {"mean", "krum", "joint", "norm_bounding"}),
        ("krum", {"krum", "joint", "distances"}, {"mean", "geometric_median", "centred_clipping"}),
        ("norm_bounding", {"norm_bounding", "weighted_mean"}, {"mean", "krum"}),
        ("server_optimizer", {"server_optimizer", "growth_limit"}, {"mean", "median"}),
    ],
)
def test_a_cell_depends_on_the_files_of_its_own_rule(rule: str, among: set[str], not_among: set[str]) -> None:
    assert among <= files_of(rule)
    assert not not_among & files_of(rule)


def test_every_rule_and_attack_has_a_fingerprint_of_its_own() -> None:
    cells = [Cell(DIGITS, FEDDKD, IID, rule, attack, BOTH, 2, 0) for rule in RULES for attack in (NONE, "alie")]
    assert len({fingerprint(cell) for cell in cells}) == len(cells)
    other_seed = Cell(DIGITS, FEDDKD, IID, MEAN, NONE, BOTH, 2, 1)
    assert fingerprint(other_seed) == fingerprint(cells[0])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Doc."""\ndef f(x):\n    """More."""\n    # why\n    return x\n', True),
        ("def f(x):\n    return x + 1\n", False),
        ('"""Doc."""\ndef f(x=1):\n    return x\n', False),
    ],
)
def test_comments_and_docstrings_make_no_other_code(tmp_path: Path, text: str, same: bool) -> None:
    plain, other = tmp_path / "plain.py", tmp_path / "other.py"
    plain.write_text("def f(x):\n    return x\n")
    other.write_text(text)
    assert (code_hash(plain) == code_hash(other)) == same


def test_the_command_runs_what_is_missing_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "attacks.jsonl"
    cell = [f"--only={name}={value}" for name, value in CLEAN.line().items()]
    monkeypatch.setattr(sys, "argv", ["run.py", *cell, "--jobs=1", f"--results={path}"])
    assert run.main() == 0
    assert "1 of 1 cells are missing" in capsys.readouterr().out
    first = path.read_text()
    assert Cell.of(json.loads(first)) == CLEAN
    assert run.main() == 0
    assert "0 of 1 cells are missing" in capsys.readouterr().out
    assert path.read_text() == first


def test_cells_are_chosen_by_their_fields() -> None:
    cells = chosen(["rule=mean", "attack=alie", "attack=none", "seed=0"], all_cells())
    assert {(cell.rule, cell.seed) for cell in cells} == {("mean", 0)}
    assert {cell.attack for cell in cells} == {"alie", "none"}
    with pytest.raises(ValueError, match="rules=mean: a cell has data, algorithm"):
        chosen(["rules=mean"], all_cells())


def test_the_most_important_cells_run_first_and_none_twice() -> None:
    cells = all_cells()
    assert len(set(cells)) == len(cells)
    core = {(cell.algorithm, cell.rule, cell.attack) for cell in cells[: len(cells) // 8] if (cell.partition, cell.seed) == (IID, 0)}
    assert {(FEDDKD, rule, attack) for rule in RULES for attack in ATTACKS} <= core


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [FEDDKD, FEDAVG])
def test_every_rule_is_a_valid_configuration(rule: str, algorithm: str) -> None:
    from feddkd.config import Config

    for attackers in (0, 1, 3):
        cell = Cell(DIGITS, algorithm, IID, rule, NONE, BOTH, attackers, 5)
        assert Config.load(overrides=cell.overrides()).seed == 5


def test_every_attacked_cell_has_the_clean_mean_of_its_seed() -> None:
    """Losses are measured against it; it comes first, so that a grid that is cut short can be used."""
    seen: set[Cell] = set()
    for cell in all_cells():
        seen.add(cell)
        clean = Cell(cell.data, cell.algorithm, cell.partition, MEAN, NONE, BOTH, 0, cell.seed)
        assert clean in seen, cell
