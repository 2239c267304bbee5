"""What is kept of single clients, and which sites stand out."""

import dataclasses
import math
from collections.abc import Mapping

import pytest
from harness import RUN_ID, SCHEMA, filled
from hypothesis import given
from hypothesis import strategies as st
from scripted import THREE, ScriptedEngine, Setup, number

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.exchange import Closing, Evaluation, Exchange, ExchangeId, Outcome, Reply
from feddkd.scheduler import sites
from feddkd.scheduler.sites import Doubt, LabelDoubts, numbers_by_client
from feddkd.traffic import Traffic


def numbers(replies: Mapping[str, Reply], name: str = "local_train", step: int = 0) -> dict[str, dict[str, float]]:
    exchange = Exchange(
        ExchangeId(RUN_ID, 1, 0, name, step), dict.fromkeys(replies, 1.0), filled(SCHEMA, 0), None, WeightedMean(), Closing(1.0)
    )
    return numbers_by_client(exchange, Outcome(None, replies, {}, Traffic(), 0.1))


def test_a_few_numbers_of_each_client_are_kept_and_no_others() -> None:
    said = {"teacher_accuracy": 0.75, "label_disagreement": 0.0, "teacher_entropy": 0.5, "own": 0.5}
    found = numbers({"a": Reply(loss=2.0, evaluation=Evaluation(8, 6, 1.0), metrics=said), "b": Reply(loss=0.0), "c": Reply()})
    assert found == {
        "teacher_accuracy": {"a": 0.75},
        "label_disagreement": {"a": 0.0},
        "client_accuracy": {"a": 0.75},
        "client_loss": {"a": 0.125},
        "client_examples": {"a": 8.0},
        "seconds": {"a": 0.0},
        "loss": {"a": 2.0, "b": 0.0},
    }


def test_the_loss_is_that_of_local_training() -> None:
    assert numbers({"a": Reply(loss=2.0)}, "dkd_step") == {}


@given(value=st.floats(), loss=st.floats())
def test_a_number_out_of_range_is_dropped(value: float, loss: float) -> None:
    said = {"teacher_accuracy": value, "label_disagreement": value}
    found = numbers({"a": Reply(loss=loss, metrics=said), "b": Reply(loss=1.0, metrics={"teacher_accuracy": 1.0})})
    in_range = {"a": value} if 0 <= value <= 1 else {}
    assert found.get("label_disagreement", {}) == in_range
    assert found["teacher_accuracy"] == in_range | {"b": 1.0}
    assert found["loss"] == ({"a": loss} if 0 <= loss < math.inf else {}) | {"b": 1.0}


def test_a_very_large_cohort_has_no_numbers_by_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "MOST_CLIENTS", 2)
    assert numbers({"a": Reply(loss=1.0), "b": Reply(loss=1.0)}) == {"loss": {"a": 1.0, "b": 1.0}}
    assert numbers({"a": Reply(loss=1.0), "b": Reply(loss=1.0), "c": Reply(loss=1.0)}) == {}


def doubts(*rounds: Mapping[str, float]) -> LabelDoubts:
    """What is found when the clients say these disagreements, round by round."""
    found = LabelDoubts()
    for round_number, disagreement in enumerate(rounds, start=1):
        found.see(round_number, {"label_disagreement": disagreement, "loss": dict.fromkeys(disagreement, 1.0)})
    return found


CALM = {"a": 0.0, "b": 0.02, "c": 0.04, "d": 0.05}


def test_a_site_that_stands_out_three_times_running_is_found_once() -> None:
    assert doubts(CALM, *(CALM | {"d": share} for share in (0.5, 0.3, 0.4, 0.6))).found == {"d": Doubt(0.4, 0.03, 4)}


@pytest.mark.parametrize(
    "rounds",
    [
        [CALM | {"d": 0.9}, CALM | {"d": 0.9}, CALM, CALM | {"d": 0.9}],
        [dict.fromkeys(CALM, 0.8)] * 4,
        [{"a": 0.2, "b": 0.2, "c": 0.25, "d": 0.6}] * 4,
        [{"a": 0.0, "b": 0.9}] * 4,
        [CALM | {"d": 0.12}] * 4,
    ],
    ids=["not running", "all alike", "less than three times the median", "two sites", "within the margin"],
)
def test_a_site_is_not_found(rounds: list[dict[str, float]]) -> None:
    assert doubts(*rounds).found == {}


def test_rounds_without_a_site_do_not_interrupt_it() -> None:
    elsewhere = {site: CALM[site] for site in "abc"}
    loud = CALM | {"d": 0.5}
    assert doubts(loud, elsewhere, loud, {}, loud).found.keys() == {"d"}


def test_attempts_at_one_round_count_as_one() -> None:
    found = LabelDoubts()
    for round_number in (1, 1, 1, 2):
        found.see(round_number, {"label_disagreement": CALM | {"d": 0.9}})
        assert found.found == {}
    found.see(3, {"label_disagreement": CALM | {"d": 0.9}})
    assert found.found.keys() == {"d"}


def test_what_is_found_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "MOST_CLIENTS", 1)
    assert doubts(*[CALM | {"e": 0.9, "f": 0.9}] * 3).found.keys() == {"e"}


class Telling(ScriptedEngine):
    """Clients say how far their teachers contradict their labels: that of c throughout."""

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        if exchange.id.name != "second":
            return outcome
        told = {
            client: dataclasses.replace(reply, metrics={"label_disagreement": float(client == "c")})
            for client, reply in outcome.replies.items()
        }
        return dataclasses.replace(outcome, replies=told)


def test_the_record_of_a_run_names_sites_and_counts_examples() -> None:
    setup = Setup(Telling(THREE, lost={(2, 0, "first"): {"b"}}), "rounds=4", "scheduler.min_clients=2")
    record = setup.scheduler.run(number(0))
    assert record.doubtful_labels == {"c": Doubt(1.0, 0.0, 4)}
    assert {client: counts.labelled for client, counts in record.examples.items()} == THREE
    assert [line.examples.labelled for line in setup.recorder.rounds] == [60, 40, 60, 60]
    first, second = setup.recorder.exchanges[:2]
    assert first.by_client == {
        "client_accuracy": dict.fromkeys(THREE, 0.1),
        "client_loss": dict.fromkeys(THREE, 0.5),
        "client_examples": dict.fromkeys(THREE, 10.0),
        "seconds": dict.fromkeys(THREE, 0.0),
    }
    assert second.by_client == {"label_disagreement": {"a": 0.0, "b": 0.0, "c": 1.0}}


def test_numbers_of_later_steps_are_not_kept_for_each_client() -> None:
    reply = Reply(metrics={"label_disagreement": 0.5})
    assert numbers({"a": reply}, "dkd_step") == {"label_disagreement": {"a": 0.5}}
    assert numbers({"a": reply}, "dkd_step", step=1) == {}


@pytest.mark.parametrize(("value", "is_kept"), [(-3.5, True), (0.0, True), (12.0, True), (math.nan, False), (math.inf, False)])
def test_the_metric_of_a_teacher_may_have_any_sign(value: float, is_kept: bool) -> None:
    found = numbers({"a": Reply(loss=1.0, metrics={"teacher_score": value})})
    assert found.get("teacher_score") == ({"a": value} if is_kept else None)
