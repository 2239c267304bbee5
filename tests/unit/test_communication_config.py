"""`[communication]`: presets, codecs by exchange and direction, and what is refused with its key and its value."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.config import CommunicationConfig, Config, DKDConfig
from feddkd.config.communication import PLAIN, PRESETS
from feddkd.errors import ConfigError

ROUNDING = ["fp32", "fp16", "bf16", "int8", "int4", "eden1", "eden2", "eden3", "eden4"]

rounding = st.sampled_from(ROUNDING)
uploads = rounding | st.sampled_from(["topk:0.01", "topk:.25", "randk:0.125"])
tables = st.dictionaries(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda name: name not in CommunicationConfig.model_fields),
    st.fixed_dictionaries({}, optional={"up": uploads, "down": rounding}),
    max_size=3,
)


def trees() -> st.SearchStrategy[dict[str, Any]]:
    keys = {"up": uploads, "down": rounding, "preset": st.sampled_from(["none", "lossless"])}
    return st.builds(lambda own, exchanges: {**exchanges, **own}, st.fixed_dictionaries({}, optional=keys), tables)


def load(*overrides: str) -> Config:
    return Config.load(overrides=[f"communication.{override}" for override in overrides])


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(*overrides)
    text = str(refused.value)
    assert "\n" not in text
    return text.removeprefix("configuration: ")


def test_by_default_nothing_is_encoded() -> None:
    communication = Config().communication
    assert {communication.codec_up("local_train"), communication.codec_down("dkd_step"), communication.snapshot} == {PLAIN}
    assert communication.exchanges == {}


def test_a_table_of_an_exchange_comes_before_the_common_keys() -> None:
    communication = load("up=int8", "down=int4", "dkd_step.up=eden1", "local_train.down=fp32").communication
    assert [communication.codec_up(name) for name in ("local_train", "dkd_step", "other")] == ["int8", "eden1", "int8"]
    assert [communication.codec_down(name) for name in ("local_train", "dkd_step", "other")] == ["fp32", "int4", "int4"]


@given(trees())
def test_any_table_survives_toml(tree: dict[str, Any]) -> None:
    config = Config.parse({"communication": tree})
    for toml in (config.to_toml(), config.shared_toml()):
        read = Config.parse(tomllib.loads(toml))
        assert read.communication == config.communication
        assert read.dkd == config.dkd
        assert dict(read.communication.exchanges) == dict(config.communication.exchanges)
    assert Config.parse(tomllib.loads(config.to_toml())) == config


# Presets.


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_proposes_codecs_to_every_algorithm(preset: str) -> None:
    config = Config.load(overrides=[f"communication.preset={preset}", "algorithm.name=fedavg"])
    proposed = PRESETS[preset].get("communication", {})
    for key in ("up", "down", "snapshot"):
        assert getattr(config.communication, key) == proposed.get(key, PLAIN)
    assert config.dkd == DKDConfig()  # it has no such steps
    assert Config.parse(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("preset", ["balanced", "frugal"])
@pytest.mark.parametrize(("key", "value"), [("up", "int8"), ("down", "int4"), ("snapshot", "int8"), ("up", "fp32")])
def test_what_is_given_stays(preset: str, key: str, value: str) -> None:
    config = Config.load(overrides=[f"communication.preset={preset}", f"communication.{key}={value}", "algorithm.name=fedavg"])
    expected = {**PRESETS[preset]["communication"], key: value}
    assert {name: getattr(config.communication, name) for name in expected} == expected


def test_lossless_starts_from_the_previous_model_unless_told_otherwise() -> None:
    assert load("preset=lossless").dkd.start == "previous"
    told = Config.load(overrides=["communication.preset=lossless", "dkd.start=average", "dkd.steps=3"])
    assert (told.dkd.start, told.dkd.steps) == ("average", 3)
    control = Config.load(overrides=["communication.preset=lossless", "algorithm.name=fedavg_sgd"])
    assert control.dkd.start == "previous"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("algorithm", ["feddkd", "fedavg_sgd"])
def test_a_preset_proposes_steps_to_those_that_have_them(preset: str, algorithm: str) -> None:
    config = Config.load(overrides=[f"communication.preset={preset}", f"algorithm.name={algorithm}", "dkd.temperature=3.5"])
    proposed = {"temperature": 3.5, **PRESETS[preset].get("dkd", {})}
    assert {key: getattr(config.dkd, key) for key in proposed} == proposed
    assert Config.parse(tomllib.loads(config.to_toml())) == config


def test_a_preset_may_be_used_without_steps_on_the_way_down() -> None:
    """Its snapshots are then never sent."""
    config = Config.load(overrides=["communication.preset=balanced", "communication.down=fp32", "algorithm.name=fedavg"])
    assert config.communication.codec_down("local_train") == PLAIN
    assert Config.parse(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("tree", [{"communication": 3}, {"communication": {"preset": "balanced"}, "algorithm": 3}, {"communication": []}])
def test_a_preset_does_not_hide_what_else_is_wrong(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^configuration: (communication|algorithm) = "):
        Config.parse(tree)


def test_a_configuration_that_was_validated_may_be_validated_again() -> None:
    config = Config.load(overrides=["communication.preset=lossless", "communication.up=int8"])
    again = Config.parse({"communication": config.communication, "dkd": config.dkd})
    assert (again.communication, again.dkd) == (config.communication, config.dkd)


# What is refused.

CODECS = "fp32, bf16, eden1, eden2, eden3, eden4, fp16, int4, int8, randk:SHARE or topk:SHARE (topk:0.01 sends 1 %)"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("up=int9", f"communication.up = 'int9': {CODECS} (did you mean 'int8'?)"),
        ("down=EDEN2", f"communication.down = 'EDEN2': {CODECS}"),
        ("up=topk", f"communication.up = 'topk': {CODECS}"),
        ("up=topk:1.5", f"communication.up = 'topk:1.5': {CODECS}"),
        ("up=8", "communication.up = 8: input should be a valid string"),
        ("dkd_step.up=int9", f"communication.dkd_step.up = 'int9': {CODECS} (did you mean 'int8'?)"),
        ("upp=int8", "unknown key 'communication.upp' (did you mean 'up'?)"),
        ("dkd_step.upp=int8", "unknown key 'communication.dkd_step.upp' (did you mean 'up'?)"),
        ("preset=fast", "communication.preset = 'fast': input should be 'none', 'lossless', 'balanced' or 'frugal'"),
        ("snapshot=eden1", "communication.snapshot = 'eden1': input should be 'fp32', 'bf16' or 'int8'"),
        ("snapshot=bf16", "communication.snapshot = 'bf16': it has no effect without a codec in `down`; set `down`"),
        (
            "down=topk:0.01",
            "communication.down = 'topk:0.01': it cannot be broadcast, because the elements that it leaves out would be lost",
        ),
        (
            "dkd_step.down=randk:0.1",
            "communication.dkd_step.down = 'randk:0.1': it cannot be broadcast, because the elements that it leaves out would be lost",
        ),
    ],
)
def test_a_refusal_names_key_and_value(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize("key", ["up", "dkd_step.up"])
@pytest.mark.parametrize("codec", ["topk:0.0", "topk:0.26", "randk:.5", "randk:0.000000"])
def test_a_share_that_no_codec_keeps_is_refused(key: str, codec: str) -> None:
    """At once, not when the first contribution is asked for."""
    assert refusal(f"{key}={codec}") == f"communication.{key} = {codec!r}: the share must be above 0 and at most 0.25"


def test_a_share_may_be_the_largest_there_is() -> None:
    assert load("up=topk:0.25").communication.up == "topk:0.25"


def test_snapshots_need_one_exchange_that_sends_steps() -> None:
    assert load("snapshot=bf16", "dkd_step.down=int8").communication.snapshot == "bf16"
    assert "set `down`" in refusal("snapshot=bf16", "dkd_step.up=int8")
    assert "set `down`" in refusal("snapshot=bf16", "dkd_step.down=fp32")


def test_a_table_has_to_be_named_after_an_exchange() -> None:
    load("dkd_step.up=int8").check_exchanges(["local_train", "dkd_step"])
    for name in ("dkd_stepp", "deliver"):
        with pytest.raises(ConfigError) as refused:
            load(f"{name}.up=int8").check_exchanges(["local_train", "dkd_step"])
        assert str(refused.value) == f"communication.{name}: this algorithm has no such exchange; it has dkd_step, local_train"


def test_a_very_long_name_is_cut() -> None:
    assert len(refusal(f"{'x' * 5000}.up={'y' * 5000}")) < 800


@pytest.mark.parametrize("rounds", [["dkd.steps=0"], ["dkd.steps=0", "dkd.piggyback=true"], ["algorithm.name=fedavg_sgd", "dkd.steps=0"]])
def test_a_preset_proposes_no_steps_to_rounds_that_average(rounds: list[str]) -> None:
    config = Config.load(overrides=["communication.preset=frugal", *rounds])
    assert config.dkd.start == Config().dkd.start
    assert config.communication.up == "eden1"


def test_a_preset_that_changes_nothing_says_so() -> None:
    config = Config.load(overrides=["communication.preset=lossless", "algorithm.name=fedavg"])
    assert config.preset_lines() == ["preset lossless: it changes nothing for fedavg"]


@pytest.mark.parametrize(("override", "wish"), [("communication=frugal", "a table is expected"), ("dkd.scope=fc2", "a list is expected")])
def test_a_value_where_a_container_belongs_is_named_as_toml_does(override: str, wish: str) -> None:
    with pytest.raises(ConfigError, match=wish):
        Config.load(overrides=[override])


def test_a_preset_proposes_no_rate_to_another_optimizer() -> None:
    config = Config.load(overrides=["communication.preset=balanced", "dkd.optimizer=sgd"])
    assert (config.dkd.lr, config.dkd.beta2, config.dkd.steps) == (Config().dkd.lr, Config().dkd.beta2, 10)


def test_a_preset_does_not_hide_a_table_that_is_none() -> None:
    with pytest.raises(ConfigError, match="dkd = 3: a table is expected"):
        Config.load(overrides=["communication.preset=balanced", "dkd=3"])


def test_steps_that_stand_in_for_others_have_their_codecs() -> None:
    config = Config.load(overrides=["dkd.teacher=auto", "communication.dkd_step.up=eden1", "communication.self_step.up=int8"])
    assert [config.communication.codec_up(name) for name in ("dkd_step", "self_step", "sgd_step", "local_train")] == [
        "eden1",
        "int8",
        "eden1",
        PLAIN,
    ]
