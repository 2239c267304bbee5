"""What a round's cohort does with codecs: what is sent, what clients hold, and what it tells of the cost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from coding import MIXED
from harness import RUN_ID, filled

from feddkd.config import Config
from feddkd.errors import ConfigError, NotFiniteError
from feddkd.exchange import DELIVER, Cause, ExampleCounts, Exchange, ExchangeId, ExchangeKind, Missing, Outcome, Reply, trainable_parameters
from feddkd.scheduler.cohort import Attempt, RoundCohort
from feddkd.scheduler.downlink import Downlink, named_codec
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.rule_book import RuleBook
from feddkd.tensors import Tensors
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS, Traffic

KINDS = {
    "train": ExchangeKind(),
    "step": ExchangeKind(reply=trainable_parameters),
    "tell": ExchangeKind(reply=None),
    DELIVER: ExchangeKind(reply=None),
}
MODEL, OTHER, THIRD = (filled(MIXED, seed) for seed in range(3))
CLIENTS = {"a": ExampleCounts(1), "b": ExampleCounts(2)}


def config(*communication: str) -> Config:
    return Config.load(overrides=[f"communication.{override}" for override in communication])


class Rounds:
    """Cohorts of one run; every client replies but those that are `missing`.

    Attributes:
        exchanges: what was carried out.
        records: what observers were told of it.
    """

    def __init__(self, *communication: str) -> None:
        self.config = config(*communication)
        self.downlink = Downlink(self.config)
        self.exchanges: list[Exchange] = []
        self.records: list[ExchangeRecord] = []
        self.missing: dict[str, Missing] = {}
        self.decode_s = 0.0

    def cohort(self, number: int = 1, attempt: int = 0) -> RoundCohort:
        plan = ExchangePlan(self.config, KINDS, MIXED, RuleBook(self.config.aggregation), self.downlink)
        return RoundCohort(
            Attempt(RUN_ID, number, attempt),
            CLIENTS,
            plan,
            lambda exchange, account: self.records.append(account(self._carry_out(exchange))),
            available=CLIENTS,
            min_clients=1,
        )

    def _carry_out(self, exchange: Exchange) -> Outcome:
        self.exchanges.append(exchange)
        replies = {client: Reply() for client in exchange.clients if client not in self.missing}
        schema = exchange.reply_schema
        reduced = filled(schema, 5) if schema is not None else None
        return Outcome(reduced, replies, self.missing, Traffic(), 0.1, decode_s=self.decode_s)


def test_without_a_codec_on_the_way_down_a_payload_is_sent_as_it_is() -> None:
    rounds = Rounds("up=int8")
    cohort = rounds.cohort()
    for step, model in enumerate((MODEL, OTHER)):
        assert cohort.adopt("step", model) is model
        cohort.exchange("step", model, step)
        assert cohort.sent is model
    assert [exchange.broadcast for exchange in rounds.exchanges] == [None, None]


def test_sent_is_what_clients_hold_of_the_latest_payload() -> None:
    rounds = Rounds("down=int8")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    assert cohort.sent.block.equal(MODEL.block)
    cohort.exchange("step", OTHER)
    assert not cohort.sent.block.equal(OTHER.block)
    assert rounds.exchanges[1].payload is cohort.sent
    adopted = cohort.adopt("step", THIRD)
    assert cohort.sent is adopted
    cohort.exchange("step", adopted, step=1)
    assert cohort.sent.block.equal(adopted.block)
    broadcast = rounds.exchanges[2].broadcast
    assert broadcast is not None
    assert broadcast.holders == {"a", "b"}


def test_each_exchange_has_its_own_codec() -> None:
    rounds = Rounds("down=int8", "step.down=eden1", "tell.down=fp32", "step.up=int4")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    cohort.exchange("step", OTHER)
    cohort.exchange("train", THIRD, step=1)
    cohort.report("tell", MODEL)
    steps = [exchange.broadcast.step for exchange in rounds.exchanges if exchange.broadcast is not None]
    assert [step and step.encoding.coding.name for step in steps] == [None, "eden1", "int8", None]
    assert rounds.exchanges[3].payload.block.equal(MODEL.block)  # exact, and so it is sent whole
    ups = [exchange.reply_codec and exchange.reply_codec.name for exchange in rounds.exchanges]
    assert ups == [None, "int4", None, None]


def test_an_exchange_without_a_codec_of_its_own_sends_an_adopted_model_by_its_step() -> None:
    rounds = Rounds("step.down=int8")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    adopted = cohort.adopt("step", OTHER)
    cohort.report("tell", adopted)
    broadcast = rounds.exchanges[1].broadcast
    assert broadcast is not None
    assert broadcast.step is not None
    assert cohort.sent.block.equal(adopted.block)


def test_the_delivery_is_exact() -> None:
    rounds = Rounds("down=int8", "snapshot=bf16")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    cohort.report(DELIVER, OTHER)
    assert cohort.sent.block.equal(OTHER.block)


def test_a_reply_of_numbers_has_no_codec() -> None:
    rounds = Rounds("up=int8")
    rounds.cohort().report("tell", MODEL)
    assert rounds.exchanges[0].reply_codec is None


def test_uploads_are_unbiased_and_broadcasts_have_the_least_error() -> None:
    rounds = Rounds("up=eden2", "down=eden2")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    cohort.exchange("step", OTHER)
    assert rounds.exchanges[1].reply_codec == named_codec("eden2", unbiased=True)
    assert rounds.exchanges[1].broadcast is not None
    assert rounds.exchanges[1].broadcast.step is not None
    assert rounds.exchanges[1].broadcast.step.encoding.coding.codec == named_codec("eden2", unbiased=False)
    assert named_codec("eden2", unbiased=True) != named_codec("eden2", unbiased=False)


def test_each_contribution_has_a_seed_of_its_own() -> None:
    rounds = Rounds("up=eden2")
    seeds = []
    for number in (1, 2):
        for attempt in (0, 1):
            cohort = rounds.cohort(number, attempt)
            for name, step in (("train", 0), ("step", 0), ("step", 1)):
                cohort.exchange(name, MODEL, step)
    for exchange in rounds.exchanges:
        seeds += [exchange.reply_coding(client).seed for client in CLIENTS]
    seeds += [replace(rounds.exchanges[0], seed=1).reply_coding("a").seed]
    assert len(set(seeds)) == len(seeds) == 25
    first = rounds.exchanges[0]
    assert first.reply_coding("a") == replace(first, clients={"a": 9.0}, id=replace(first.id, run_id="other")).reply_coding("a")


def test_who_did_not_reply_is_sent_a_whole_model() -> None:
    rounds = Rounds("down=int8")
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    rounds.missing = {"b": Missing(Cause.FAILED, "no data")}
    cohort.exchange("step", OTHER)
    rounds.missing = {}
    cohort.exchange("step", THIRD, step=1)
    holders = [exchange.broadcast.holders for exchange in rounds.exchanges if exchange.broadcast is not None]
    assert holders == [frozenset(), {"a", "b"}, {"a"}]


def test_after_forget_the_next_payload_is_sent_whole() -> None:
    rounds = Rounds("down=int8")
    rounds.cohort().exchange("train", MODEL)
    rounds.downlink.forget()
    rounds.cohort(attempt=1).exchange("train", OTHER)
    assert rounds.exchanges[1].payload.block.equal(OTHER.block)


def test_the_record_says_what_codecs_cost_the_server() -> None:
    rounds = Rounds("down=int8", "up=int4")
    rounds.decode_s = 100.0
    cohort = rounds.cohort()
    cohort.exchange("train", MODEL)
    cohort.exchange("step", OTHER)
    whole, step = (record.metrics for record in rounds.records)
    assert whole == {CODEC_SECONDS["down"]: 100.0, CODEC_ERROR["down"]: 0.0}
    assert 100.0 < step[CODEC_SECONDS["down"]] < 200.0
    broadcast = rounds.exchanges[1].broadcast
    assert broadcast is not None
    assert step[CODEC_ERROR["down"]] == broadcast.cost.error > 0


def test_without_codecs_the_record_says_nothing_of_them() -> None:
    rounds = Rounds()
    rounds.cohort().exchange("train", MODEL)
    assert rounds.records[0].metrics == {}


def diverged(value: float) -> Tensors:
    model = OTHER.replace({})
    model["weight"][0, 0] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("way", ["adopted", "sent", "first"])
def test_a_model_that_no_codec_encodes_ends_the_attempt_and_not_the_run(value: float, way: str) -> None:
    rounds = Rounds("down=int8", "snapshot=int8")
    cohort = rounds.cohort()
    if way != "first":
        cohort.exchange("train", MODEL)
    with pytest.raises(NotFiniteError, match=r"^round 1 step \d: .*(not finite|cannot encode)"):
        cohort.adopt("step", diverged(value)) if way == "adopted" else cohort.exchange("step", diverged(value), step=2)
    rounds.downlink.forget()
    cohort = rounds.cohort(attempt=1)
    cohort.exchange("train", OTHER)
    cohort.exchange("step", THIRD)
    assert torch.allclose(cohort.sent["weight"], THIRD["weight"], atol=0.2)


def test_a_codec_that_is_not_there_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match='"zip"'):
        named_codec("zip", unbiased=True)
    assert named_codec("fp32", unbiased=True) is None


def test_equal_runs_have_equal_broadcasts() -> None:
    def contents() -> list[bytes]:
        rounds = Rounds("down=eden1", "snapshot=bf16")
        for number in (1, 2):
            cohort = rounds.cohort(number)
            cohort.exchange("train", filled(MIXED, number))
            for step in range(3):
                cohort.exchange("step", cohort.adopt("step", filled(MIXED, 10 * number + step)), step)
        return [exchange.broadcast.content for exchange in rounds.exchanges if exchange.broadcast is not None]

    assert contents() == contents()
    assert len(set(contents())) == 8


def test_an_exchange_is_named_in_what_goes_wrong() -> None:
    rounds = Rounds("down=int8")
    cohort = rounds.cohort(number=3, attempt=2)
    cohort.exchange("train", MODEL)
    identity = ExchangeId(RUN_ID, 3, 2, "step", 4)
    with pytest.raises(NotFiniteError) as refused:
        cohort.exchange("step", diverged(1e30), step=4)
    assert str(refused.value).startswith(f"{identity}: ")
