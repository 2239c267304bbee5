"""Which rule reduces an exchange, what it is compared with, and what is refused before a run starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import pytest
import torch
from harness import RUN_ID, filled
from test_rules import reduced

from feddkd import algorithms
from feddkd.aggregator.centred_clipping import CentredClipping
from feddkd.aggregator.history import LengthLimits
from feddkd.aggregator.krum import Krum
from feddkd.aggregator.mean import GuardedMean
from feddkd.aggregator.median import CoordinateMedian
from feddkd.aggregator.rule import Rule, RuleContext
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.config import Config, CustomRuleConfig
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeId, ExchangeKind, Outcome, Reply
from feddkd.scheduler import checkpoint
from feddkd.scheduler.blobs import Blob
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.rule_book import RuleBook, check_rules
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

SCHEMA = Schema([TensorSpec("w", torch.float32, (4,))])
SIZES = {"a": 1.0, "b": 2.0}


def book(*overrides: str) -> RuleBook:
    return RuleBook(Config.load(overrides=overrides).aggregation)


def outcome(ratios: Mapping[str, float], reduced: Tensors | None = None) -> Outcome:
    return Outcome(reduced, {}, {}, Traffic(), 0.0, ratios=ratios)


class Own:
    """A rule that a configuration names by its import path."""

    keeps_previous = False

    @classmethod
    def of(cls, settings: CustomRuleConfig, setting: RuleContext) -> Rule:
        assert settings.settings == {"power": 2}
        assert setting.sizes == SIZES
        return WeightedMean(passes=3)


# Which rule.


def test_by_default_every_exchange_has_the_guarded_mean() -> None:
    rule = book().rule("dkd_step", SCHEMA, SIZES)
    assert isinstance(rule, GuardedMean)
    assert (rule.limits, rule.sizes) == (LengthLimits(7.0, 32.0).of("update"), SIZES)
    gradients = book().rule("dkd_step", SCHEMA, SIZES, "gradient")
    assert isinstance(gradients, GuardedMean)
    assert gradients.limits == LengthLimits(7.0, 32.0)


def test_a_rule_is_chosen_for_all_exchanges_and_for_one() -> None:
    chosen = book("aggregation.rule=median", 'aggregation.rules.dkd_step={name = "krum", hostile = 2}')
    assert isinstance(chosen.rule("local_train", SCHEMA, SIZES), CoordinateMedian)
    krum = chosen.rule("dkd_step", SCHEMA, SIZES)
    assert isinstance(krum, Krum)
    assert krum.hostile == 2
    assert isinstance(chosen.rule("sgd_step", SCHEMA, SIZES), Krum)  # it stands in for dkd_step


def test_keys_of_a_rule_are_set_one_by_one() -> None:
    table = Config.load(overrides=["aggregation.rule.name=trimmed_mean", "aggregation.rule.trim=0.3"]).aggregation.rule
    assert table.model_dump() == {"name": "trimmed_mean", "trim": 0.3}


def test_a_rule_of_your_own_has_its_settings() -> None:
    rule = book(f'aggregation.rule={{name = "{__name__}:Own", power = 2}}').rule("local_train", SCHEMA, SIZES)
    assert rule == WeightedMean(passes=3)


def test_a_configuration_with_rules_is_read_back_as_it_was_written() -> None:
    config = Config.load(overrides=["aggregation.rule=median", 'aggregation.rules.dkd_step={name = "krum", hostile = 2}'])
    assert Config.loads(config.to_toml()) == config


def test_clients_are_not_told_how_contributions_are_reduced() -> None:
    config = Config.load(overrides=["aggregation.rule=median", "aggregation.max_norm.dkd_step=3"])
    assert "aggregation" not in config.shared_toml()


# What is refused.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("aggregation.rule.trim=0.1", r"aggregation\.rule\.trim.*known keys of mean.*another name has others"),
        ("aggregation.rule=3", r"aggregation\.rule = 3: a table is expected, whose name is one of centred_clipping"),
        ('aggregation.rule={name = "trimmed_mean", trim = 0.5}', r"aggregation\.rule\.trim = 0\.5"),
        ('aggregation.rule={name = "trimmed_mean", trim = -0.1}', r"aggregation\.rule\.trim = -0\.1"),
        ("aggregation.rule=mode", r"aggregation\.rule.*'mode'"),
        ("aggregation.weight_cap=-1", r"aggregation\.weight_cap = -1"),
        ("aggregation.weight_cap=0.5", r"aggregation\.weight_cap = 0\.5: .*1 or more, or 0"),
        ("aggregation.outlier_ratio=0.9", r"aggregation\.outlier_ratio = 0\.9: .*1 or more, or 0"),
        ("aggregation.rule.longest=0.1", r"aggregation\.rule\.longest = 0\.1: .*1 or more, or 0"),
        ("aggregation.outlier_exchanges=0", r"aggregation\.outlier_exchanges = 0"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load(overrides=[override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["aggregation.rules.train=median"],
            r"^aggregation\.rules\.train: this algorithm has no such exchange; it has dkd_step",
        ),
        (
            ["scheduler.clients=6", 'aggregation.rule={name = "krum", hostile = 2}'],
            r"^aggregation\.rule: krum with these settings needs 7 clients or more, and a round of this configuration gives 6$",
        ),
        (
            ["partition.clients=4", "aggregation.rule=krum"],
            r"^aggregation\.rule: krum with these settings needs 5 clients or more, and partition\.clients = 4 gives 4$",
        ),
        (
            ["scheduler.clients=10", "scheduler.cohort=4", "aggregation.rules.dkd_step=krum"],
            r"^aggregation\.rules\.dkd_step: krum with these settings needs 5 clients or more, and a round .* gives 4$",
        ),
        (
            ["algorithm.name=scaffold", "aggregation.rule=median"],
            r"^aggregation\.rule = 'median': scaffold needs the mean, because",
        ),
        (
            ["communication.up=topk:0.01", "aggregation.rule=median"],
            r"^aggregation: median reduces every element by itself, and",
        ),
        (["aggregation.rule=feddkd.config:Config"], r"'feddkd\.config:Config' is no rule"),
        (["aggregation.rule=nowhere.at.all:Rule"], r"nowhere\.at\.all:Rule"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_run(overrides: Sequence[str], message: str) -> None:
    config = Config.load(overrides=overrides)
    algorithm = algorithms.build(config)
    with pytest.raises(ConfigError, match=message):  # noqa: PT012  # either of them
        config.check_exchanges(algorithm.exchanges(config))
        check_rules(config, algorithm)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=scaffold"],
        ["communication.up=topk:0.01", "aggregation.rule=geometric_median"],
        ["communication.local_train.up=topk:0.01", "aggregation.rules.dkd_step=median"],
        ["scheduler.clients=7", 'aggregation.rule={name = "krum", hostile = 2}'],
    ],
)
def test_what_makes_sense_is_not_refused(overrides: Sequence[str]) -> None:
    config = Config.load(overrides=overrides)
    check_rules(config, algorithms.build(config))


def test_a_name_that_is_short_for_a_table_has_no_keys() -> None:
    with pytest.raises(
        ConfigError, match=r"'rule' is a value, not a table; for a table of this name write aggregation\.rule\.name=median$"
    ):
        Config.load(overrides=["aggregation.rule=median", "aggregation.rule.trim=0.3"])


# What is remembered.


def test_the_last_result_is_the_next_centre_of_the_exchanges_of_its_name() -> None:
    chosen, last = book("aggregation.rule=centred_clipping"), filled(SCHEMA, 1)
    chosen.take_in("dkd_step", outcome({}, last))
    there, elsewhere = chosen.rule("dkd_step", SCHEMA, SIZES), chosen.rule("local_train", SCHEMA, SIZES)
    assert isinstance(there, CentredClipping)
    assert isinstance(elsewhere, CentredClipping)
    assert (there.previous, elsewhere.previous) == (last, None)


def test_a_result_of_another_form_is_no_centre() -> None:
    chosen = book("aggregation.rule=centred_clipping")
    chosen.take_in("dkd_step", outcome({}, filled(Schema([TensorSpec("v", torch.float32, (4,))]), 1)))
    rule = chosen.rule("dkd_step", SCHEMA, SIZES)
    assert isinstance(rule, CentredClipping)
    assert rule.previous is None


def test_outliers_are_counted_in_a_row_by_the_name_of_the_exchange() -> None:
    chosen = book()
    loud, calm = {"a": 50.0, "b": 1.0}, {"a": 1.0, "b": 1.0}
    found = []
    for _ in range(4):
        found.append(chosen.take_in("local_train", outcome(loud)))
        assert chosen.take_in("dkd_step", outcome(calm), "gradient").running == {}
    assert [outliers.running for outliers in found] == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]
    assert [outliers.named for outliers in found] == [(), (), ("a",), ()]
    calm_again = [chosen.take_in("local_train", outcome(calm)).running for _ in range(4)]
    assert calm_again[:3] == [{"a": 5}, {"a": 0}, {}]


def test_a_single_contribution_that_is_cut_is_recorded() -> None:
    chosen = book("aggregation.outlier_ratio=0")
    assert chosen.take_in("local_train", outcome({"a": 20.0, "b": 1.0})).running == {"a": 1}
    assert chosen.take_in("dkd_step", outcome({"a": 20.0, "b": 1.0}), "gradient").running == {}


def test_a_client_that_did_not_reply_keeps_its_count() -> None:
    chosen = book()
    chosen.take_in("local_train", outcome({"a": 50.0, "b": 1.0}))
    assert chosen.take_in("local_train", outcome({"b": 1.0})).running == {}
    assert chosen.take_in("local_train", outcome({"a": 50.0, "b": 1.0})).running == {"a": 2}


@pytest.mark.parametrize("claim", [300.0, 1e6, 2.0**53])
def test_a_claimed_size_does_not_switch_the_limit_off(claim: float) -> None:
    sizes = {**{f"c{number:03d}": 10.0 for number in range(9)}, "c009": claim}
    rule = book().rule("local_train", SCHEMA, sizes)
    assert isinstance(rule, GuardedMean)
    assert rule.sizes["c009"] == 300.0
    _, ratios = reduced(rule, [*[filled(SCHEMA, 1)] * 9, filled(SCHEMA, 1).scaled(-150.0)])
    assert rule.stands_out("c009", ratios[9])
    assert not rule.stands_out("c008", ratios[8])


def test_no_ratio_makes_an_outlier_where_there_is_no_limit() -> None:
    assert book("aggregation.outlier_ratio=0", "aggregation.rule.longest=0").take_in("local_train", outcome({"a": 1e9})).running == {}


def test_what_is_remembered_survives_a_restart() -> None:
    first = book("aggregation.rule=centred_clipping")
    first.take_in("dkd_step", outcome({"a": 50.0, "b": 0.5, "c": 1 / 3}, filled(SCHEMA, 1)))
    first.take_in("local_train", outcome({"a": 5.0}))
    config = Config()
    tensors, text = checkpoint.encode({}, Downlink(config).state(), first.state())
    _, _, state = checkpoint.decode(Blob(tensors, text))
    second = book("aggregation.rule=centred_clipping")
    second.load(state)
    rule = second.rule("dkd_step", SCHEMA, SIZES)
    assert isinstance(rule, CentredClipping)
    assert rule.previous is not None
    assert rule.previous.sha256() == filled(SCHEMA, 1).sha256()
    again = outcome({"a": 50.0, "b": 1.0}, filled(SCHEMA, 2))
    assert second.take_in("dkd_step", again) == first.take_in("dkd_step", again)
    assert dataclasses.replace(second.state().past["dkd_step"], previous=None) == dataclasses.replace(
        first.state().past["dkd_step"], previous=None
    )


def test_a_state_does_not_change_with_later_exchanges() -> None:
    chosen = book()
    chosen.take_in("local_train", outcome({"a": 50.0}))
    before = chosen.state()
    chosen.take_in("local_train", outcome({"a": 50.0}))
    assert before.past["local_train"].running == {"a": 1}
    chosen.load(before)
    assert chosen.take_in("local_train", outcome({"a": 50.0})).running == {"a": 2}


# Weights.


def plan(*overrides: str) -> ExchangePlan:
    config = Config.load(overrides=overrides)
    return ExchangePlan(config, {"local_train": ExchangeKind()}, SCHEMA, RuleBook(config.aggregation), Downlink(config))


def weights_of(claims: Mapping[str, float], *overrides: str, replying: Collection[str] = ()) -> dict[str, float]:
    exchange = plan(*overrides).describe(ExchangeId(RUN_ID, 1, 0, "local_train", 0), claims, filled(SCHEMA, 0), evaluate=False)
    return exchange.weights_of(replying or claims)


def test_a_claim_is_reduced_to_the_cap() -> None:
    claims = {"a": 10.0, "b": 20.0, "c": 2.0**53, "none": 0.0}
    assert weights_of(claims) == {"a": 10.0, "b": 20.0, "c": 600.0, "none": 0.0}
    assert weights_of(claims, "aggregation.weight_cap=2") == {"a": 10.0, "b": 20.0, "c": 40.0, "none": 0.0}


def test_clients_that_do_not_reply_reduce_no_weight() -> None:
    claims = {"a": 100.0, "b": 200.0, "c": 300.0, **{f"silent-{number}": 1.0 for number in range(10)}}
    assert weights_of(claims, replying="abc") == {"a": 100.0, "b": 200.0, "c": 300.0}


@pytest.mark.parametrize(
    ("overrides", "claims"), [(["aggregation.weight_cap=0"], (1, 1, 2**53)), ([], (1, 2**53)), ([], (1, 2**53, 0, 0, 0))]
)
def test_there_is_no_cap_where_none_is_wanted_or_too_few_have_a_weight(overrides: Sequence[str], claims: Sequence[int]) -> None:
    named = {str(number): float(claim) for number, claim in enumerate(claims)}
    assert weights_of(named, *overrides) == named


def test_an_exchange_names_its_rule_and_who_has_how_much() -> None:
    exchange = plan("scheduler.weights=uniform").describe(
        ExchangeId(RUN_ID, 1, 0, "local_train", 0), {"a": 1.0}, filled(SCHEMA, 0), evaluate=False, sizes={"a": 77.0}
    )
    assert isinstance(exchange.rule, GuardedMean)
    assert exchange.rule.sizes == {"a": 77.0}


# Losses.


def loss_of(*overrides: str, losses: Sequence[float], ratios: Mapping[str, float] | None = None) -> float | None:
    clients = {f"c{number}": 1.0 + number for number in range(len(losses))}
    replies = {client: Reply(loss=loss) for client, loss in zip(clients, losses, strict=True)}
    described = plan(*overrides).describe(ExchangeId(RUN_ID, 1, 0, "local_train", 0), clients, filled(SCHEMA, 0), evaluate=False)
    return book(*overrides).loss(described, Outcome(None, replies, {}, Traffic(), 0.0, ratios=ratios or {}))


def test_losses_are_averaged_by_weight_unless_a_client_is_scaled() -> None:
    assert loss_of(losses=[1.0, 4.0]) == 3.0
    assert loss_of(losses=[1.0, 4.0, 1e9], ratios={"c0": 1.0, "c1": 1.0, "c2": 20.0}) == 3.0


@pytest.mark.parametrize("name", ["median", "krum", "geometric_median", "norm_bounding", "centred_clipping"])
def test_a_lying_loss_moves_no_robust_rule(name: str) -> None:
    by_weight = name in ("geometric_median", "norm_bounding")  # weights 1, 2, 3, 4 and 5
    assert loss_of(f"aggregation.rule={name}", losses=[1.0, 2.0, 4.0, 5.0, 1e30]) == (5.0 if by_weight else 4.0)
    assert loss_of("aggregation.rule=trimmed_mean", losses=[1.0, 2.0, 4.0, 6.0, 1e30]) == 4.0
    assert loss_of(f"aggregation.rule={name}", losses=[]) is None
