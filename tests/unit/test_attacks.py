"""The attack laboratory: what hostile clients send, which cells run again, and what the page says."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import RUN_ID, FakeWorker, answering, small_config

from feddkd.client.simulated import simulated_workers
from feddkd.exchange import ExampleCounts, ExchangeId, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.tensors import Schema, Tensors, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from attacks import run  # noqa: E402
from attacks.alie import paper_z  # noqa: E402
from attacks.base import Seen  # noqa: E402
from attacks.cells import DIGITS, FEDAVG, FEDDKD, IID, Cell, all_cells  # noqa: E402
from attacks.clients import BOTH, EXCHANGES, GRADIENTS, UPDATES, ClientAround, HostileClient, Plot, Witness, put_among  # noqa: E402
from attacks.fingerprint import code_hash, fingerprint, with_imports  # noqa: E402
from attacks.known import ATTACKS, NONE  # noqa: E402
from attacks.outcomes import Group, Outcomes  # noqa: E402
from attacks.results import Results  # noqa: E402
from attacks.rules import DEFAULTS, MEAN, RULES  # noqa: E402
from attacks.run import chosen  # noqa: E402
from attacks.running import run_cell  # noqa: E402
from attacks.tables import REAL, verdicts  # noqa: E402

SCHEMA = Schema([TensorSpec("w", torch.float32, (2,)), TensorSpec("count", torch.int64, (), trainable=False)])


def contribution(*elements: float) -> Tensors:
    return Tensors.copy_of(SCHEMA, {"w": torch.tensor(elements), "count": torch.tensor(3)})


OWN = contribution(1.0, 2.0)
HONEST = [contribution(1.0, -1.0), contribution(3.0, -1.0), contribution(5.0, -1.0)]


def task(exchange: str = "local_train") -> Task:
    return Task(ExchangeId(RUN_ID, 1, 0, exchange, 0), OWN)


def sent_by(attack: str) -> list[float]:
    seen = Seen(task(), Reply(OWN, loss=0.5), HONEST, clients=10, attackers=2, seed=7)
    reply = ATTACKS[attack].reply(seen)
    assert reply.contribution is not None
    assert int(reply.contribution["count"]) == 3, "integers stay"
    return reply.contribution["w"].tolist()


@pytest.mark.parametrize(
    ("attack", "sent"),
    [
        ("none", [1, 2]),
        ("sign_flip", [-1, -2]),
        ("times_10", [10, 20]),
        ("times_-10", [-10, -20]),
        ("times_1e6", [1e6, 2e6]),
        ("alie", [3 - 1.5 * math.sqrt(8 / 3), -1]),  # the honest mean is (3, -1), the std (sqrt(8/3), 0)
        ("ipm_0.5", [-1.5, 0.5]),
        ("ipm_5", [-15, 5]),
        ("label_flip", [1, 2]),
        ("weight", [1, 2]),
        ("weight_sign", [-1, -2]),
        ("weight_-10", [-10, -20]),
        ("sleeper", [-10, -20]),  # in the first round of one: no third of it is over
        ("loss_before", [1, 2]),
        ("loss_after", [1, 2]),
    ],
)
def test_what_an_attacker_sends(attack: str, sent: list[float]) -> None:
    assert sent_by(attack) == pytest.approx(sent)


@pytest.mark.parametrize(("rounds", "honest"), [(3, [1]), (6, [1, 2]), (20, [1, 2, 3, 4, 5, 6])])
def test_a_sleeper_is_honest_for_a_third_of_the_rounds(rounds: int, honest: list[int]) -> None:
    sleeping = []
    for number in range(1, rounds + 1):
        seen = Seen(Task(ExchangeId(RUN_ID, number, 0, "local_train", 0), OWN), Reply(OWN), rounds=rounds)
        sent = ATTACKS["sleeper"].reply(seen).contribution
        assert sent is not None
        sleeping += [number] if torch.equal(sent["w"], OWN["w"]) else []
    assert sleeping == honest


def test_noise_is_ten_times_as_long_as_the_contribution_and_the_same_for_all_attackers() -> None:
    long = Schema([TensorSpec("w", torch.float32, (10_000,))])
    own = Tensors.copy_of(long, {"w": torch.full((10_000,), 0.5)})
    first, second = (ATTACKS["gaussian"].reply(Seen(task(), Reply(own), seed=7)).contribution for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.sha256() == second.sha256()
    assert float(first["w"].std()) == pytest.approx(5, rel=0.05)
    assert float(first["w"].mean()) == pytest.approx(0, abs=0.2)


def test_what_every_server_refuses_is_finite() -> None:
    schema = Schema([TensorSpec("w", torch.float32, (2,))])
    sent = ATTACKS["absent"].reply(Seen(task(), Reply(Tensors(schema)))).contribution
    assert sent is not None
    assert torch.equal(sent["w"], torch.full((2,), 1e38))


@pytest.mark.parametrize(("clients", "attackers", "z"), [(10, 2, 0.0), (10, 3, 0.1800), (50, 24, 1.4395)])
def test_the_z_of_the_paper(clients: int, attackers: int, z: float) -> None:
    """For 50 and 24: s = 2, and Phi(1.4395) = 24 / 26 to two digits of the tables of the normal distribution."""
    assert paper_z(clients, attackers) == pytest.approx(z, abs=0.02)


def test_labels_are_turned_round() -> None:
    assert ATTACKS["label_flip"].labels(torch.tensor([0, 4, 9])).tolist() == [9, 5, 0]


@pytest.mark.parametrize("exchange", ["local_train", "dkd_step"])
def test_an_attacker_computes_on_the_labels_that_it_has(tmp_path: Path, exchange: str) -> None:
    """Every part of its site uses them: what it trains and what it distils differs from what an honest client sends."""
    sent = {}
    for attack in (NONE, "label_flip"):
        config = small_config("partition.clients=2", "partition.name=iid")
        workers = simulated_workers(config, tmp_path / attack)
        model = build_initial(config).model
        clients, hostile = put_among(workers, Plot(ATTACKS[attack], BOTH, 2, 1, 1, 1000))
        for name in dict.fromkeys(["local_train", exchange]):
            for client, worker in clients.items():
                reply = worker.carry_out(Task(ExchangeId(RUN_ID, 1, 0, name, 0), model))
                assert reply.contribution is not None
                sent[attack, client] = reply.contribution.sha256()
    assert hostile == ("client-1",)
    assert sent[NONE, "client-0"] == sent["label_flip", "client-0"]
    assert sent[NONE, "client-1"] != sent["label_flip", "client-1"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_lying_weights_claim_examples(attack: str) -> None:
    claimed = ATTACKS[attack].claims(ExampleCounts(7), 1000)
    assert claimed == ExampleCounts(1000 if attack in ("weight", "weight_sign", "weight_-10") else 7)


def test_false_losses() -> None:
    beside = OWN.beside(previous_loss=Tensors.copy_of(LOSS, {"value": torch.tensor(0.25, dtype=torch.float64)}))
    before = ATTACKS["loss_before"].reply(Seen(task(), Reply(beside, loss=0.5)))
    after = ATTACKS["loss_after"].reply(Seen(task(), Reply(beside, loss=0.5)))
    assert before.contribution is not None
    assert after.contribution is not None
    assert (float(before.contribution["previous_loss/value"]), before.loss) == (1e6, 0.5)
    assert (float(after.contribution["previous_loss/value"]), after.loss) == (0.25, 1e6)


LOSS = Schema([TensorSpec("value", torch.float64, (), trainable=False)])


def plot(attack: str, on: str = BOTH) -> Plot:
    return Plot(ATTACKS[attack], on, clients=3, attackers=1, rounds=1, most_examples=1000)


@pytest.mark.parametrize(("on", "exchange"), list(itertools.product(EXCHANGES, ("local_train", "dkd_step"))))
def test_an_attack_is_on_the_exchanges_that_it_says(on: str, exchange: str) -> None:
    hostile = HostileClient(answering(OWN), Witness(), plot("sign_flip", on))
    sent = hostile.carry_out(task(exchange)).contribution
    assert sent is not None
    attacked = {UPDATES: ["local_train"], GRADIENTS: ["dkd_step"], BOTH: ["local_train", "dkd_step"]}[on]
    assert sent["w"].tolist() == ([-1, -2] if exchange in attacked else [1, 2])


def test_attackers_see_the_honest_contributions_of_this_exchange_alone() -> None:
    witness = Witness()
    honest = [ClientAround(answering(each), witness) for each in HONEST]
    hostile = HostileClient(answering(OWN), witness, plot("ipm_0.5"))
    for exchange in ("dkd_step", "local_train"):
        for client in honest:
            client.carry_out(task(exchange))
        assert len(witness.of(task(exchange).id)) == 3
        sent = hostile.carry_out(task(exchange)).contribution
        assert sent is not None
        assert sent["w"].tolist() == pytest.approx([-1.5, 0.5])
    assert witness.of(task("dkd_step").id) == []


def test_a_reply_without_tensors_is_left_as_it_is() -> None:
    hostile = HostileClient(FakeWorker(lambda _: Reply()), Witness(), plot("sign_flip"))
    assert hostile.carry_out(task()) == Reply()


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
    core = {(cell.algorithm, cell.rule, cell.attack) for cell in cells[: len(cells) // 6] if (cell.partition, cell.seed) == (IID, 0)}
    assert {(FEDDKD, rule, attack) for rule in RULES for attack in ATTACKS} <= core


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [FEDDKD, FEDAVG])
def test_every_rule_is_a_valid_configuration(rule: str, algorithm: str) -> None:
    from feddkd.config import Config

    for attackers in (0, 1, 3):
        cell = Cell(DIGITS, algorithm, IID, rule, NONE, BOTH, attackers, 5)
        assert Config.load(overrides=cell.overrides()).seed == 5


def group(rule: str, attack: str, attackers: int) -> Group:
    return Group(DIGITS, FEDAVG, IID, rule, attack, attackers)


def line(rule: str, attack: str, attackers: int, seed: int, accuracy: float | None) -> dict[str, object]:
    return {**Cell(DIGITS, FEDAVG, IID, rule, attack, BOTH, attackers, seed).line(), "accuracy": accuracy}


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
    assert (outcome.seeds, outcome.failed) == (2, 1)
    assert outcome.text == "37.5 (70.0)"
    assert found.of(group(MEAN, "alie", 2)) is None


def test_the_verdicts_count_the_attacks_that_some_rule_keeps_within_the_limit() -> None:
    lines = [line(rule, NONE, 0, 0, 0.9) for rule in RULES]
    lines += [line(rule, attack, 2, 0, 0.9 if attack != "alie" else 0.8) for rule in RULES for attack in REAL]
    said = verdicts(Outcomes(lines))
    assert "12 of 13 attacks cost at most 5 points; the most is 10.0." in said
    assert "no single rule keeps every attack within 5 points" in said


def test_every_result_is_of_a_cell_and_says_how_it_was_made() -> None:
    for text in (ROOT / "benchmarks" / "results" / "attacks.jsonl").read_text().splitlines():
        found = json.loads(text)
        assert Cell.of(found).attack in ATTACKS
        assert found["rule"] in RULES
        assert {"command", "commit", "versions", "cpu", "seconds", "accuracy", "refused"} <= found.keys()


def test_the_page_is_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
