"""The attack laboratory: what hostile clients send, which cells run again, and what the page says."""

from __future__ import annotations

import itertools
import math
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

from attacks.alie import paper_z  # noqa: E402
from attacks.base import Seen  # noqa: E402
from attacks.clients import BOTH, EXCHANGES, GRADIENTS, UPDATES, ClientAround, HostileClient, Plot, Witness, put_among  # noqa: E402
from attacks.known import ATTACKS, NONE  # noqa: E402

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
