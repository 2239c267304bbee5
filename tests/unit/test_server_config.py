"""A run's configuration as a client knows it, and what it notices when the server names another."""

from __future__ import annotations

import pytest

from feddkd.client.server_config import ServerConfig
from feddkd.config import Config
from feddkd.errors import ConfigError


def toml(*overrides: str) -> str:
    return Config.load(overrides=overrides).to_toml()


def test_how_a_configuration_is_written_makes_no_difference() -> None:
    known = ServerConfig("seed = 0\nrounds = 4")
    assert known.difference("seed = 0\nrounds = 4") is None
    assert known.difference("# the same\nrounds = 4 # rounds") is None
    assert known.difference(toml("rounds=4")) is None


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["training.lr=0.9"], "differs in training.lr"),
        (["algorithm.name=fedprox"], "differs in algorithm.local_objective.name, algorithm.mu, algorithm.name"),
        (["scheduler.cohort=3"], "differs in scheduler.cohort"),
        (["seed=1", "rounds=3", "training.lr=1", "dkd.lr=1", "dkd.steps=3"], "differs in dkd.lr, dkd.steps, seed and 1 more"),
        (["rounds=3", "training.schedule=cosine"], "differs in rounds, training.schedule"),
    ],
)
def test_every_setting_that_differs_is_named(change: list[str], difference: str) -> None:
    assert ServerConfig(toml()).difference(toml(*change)) == difference
    assert ServerConfig(toml(*change)).difference(toml()) == difference


@pytest.mark.parametrize(
    "change", ["rounds=9", "data.root=/elsewhere", "scheduler.durability=round", "scheduler.resume_grace_s=1", "runtime.device=cpu"]
)
def test_what_may_differ_when_a_run_goes_on_makes_no_difference_and_is_taken_over(change: str) -> None:
    known = ServerConfig(toml("rounds=4"))
    assert known.difference(toml("rounds=4", change)) is None
    assert known.latest == Config.load(overrides=["rounds=4", change])
    assert known.config.rounds == 4


def test_rounds_stay_where_the_learning_rate_ends_with_the_last_one() -> None:
    assert ServerConfig(toml("training.schedule=cosine")).difference(toml("training.schedule=cosine", "rounds=9")) == "differs in rounds"


def test_what_cannot_be_read_is_another_configuration() -> None:
    known = ServerConfig(toml())
    assert known.difference("rounds = ") is not None
    assert "unknown key 'training.pace'" in str(known.difference("[training]\npace = 1"))
    assert "\x1b" not in str(known.difference('[training]\n"\\u001b[2J" = 1'))


def test_a_configuration_that_is_wrong_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^the server's configuration is not valid TOML"):
        _ = ServerConfig("rounds = ").config
    with pytest.raises(ConfigError, match=r"^the server's configuration: unknown key 'pace'"):
        _ = ServerConfig("pace = 1").config


@pytest.mark.parametrize("text", ["a = " + "[" * 3000 + "]" * 3000, "a = " + "9" * 5000, ".".join("a" * 100_000) + " = 1", "#" * 2_000_000])
def test_what_would_take_long_to_read_is_not_read(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^the server's configuration"):
        _ = ServerConfig(text).config
    assert "the server's configuration" in str(ServerConfig(toml()).difference(text))
