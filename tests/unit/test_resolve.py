import pytest

from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.errors import ConfigError


def resolved(*overrides: str) -> Config:
    return resolve(Config.load(overrides=["partition.clients=12", *overrides]))


def test_the_clients_of_a_simulation_are_all_of_them() -> None:
    scheduler = resolved().scheduler
    assert (scheduler.clients, scheduler.quorum, scheduler.starting_clients) == (12, 12, 12)


@pytest.mark.parametrize(
    ("overrides", "quorum", "starting"),
    [
        (["scheduler.cohort=0.25"], 3, 12),
        (["scheduler.cohort=20"], 12, 12),
        (["scheduler.min_clients=4"], 4, 12),
        (["scheduler.min_clients=4", "scheduler.wait_for_clients=5"], 4, 5),
        (["scheduler.clients=12"], 12, 12),
        ([f"scheduler.clients={[f'client-{number:02}' for number in range(12)]}"], 12, 12),
    ],
)
def test_what_is_said_of_them_holds(overrides: list[str], quorum: int, starting: int) -> None:
    scheduler = resolved(*overrides).scheduler
    assert (scheduler.quorum, scheduler.starting_clients) == (quorum, starting)


def test_nothing_else_changes_and_to_resolve_again_changes_nothing() -> None:
    given = Config.load(overrides=["partition.clients=12", "algorithm.name=a.b:C", "algorithm.depth=3", "data.root=x"])
    once = resolve(given)
    assert once.model_copy(update={"scheduler": given.scheduler}) == given
    assert resolve(once) == once
    assert once.to_toml() == Config.load(overrides=[*_as_overrides(given), "scheduler.clients=12"]).to_toml()


def _as_overrides(config: Config) -> list[str]:
    return [f"partition.clients={config.partition.clients}", "algorithm.name=a.b:C", "algorithm.depth=3", "data.root=x"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scheduler.clients=11", r"^scheduler\.clients = 11: partition\.clients is 12$"),
        ("scheduler.clients=['a', 'b']", r"^scheduler\.clients: the clients of a simulation are named client-00 to client-11$"),
        (
            "scheduler.wait_for_clients=13",
            r"^configuration: scheduler\.wait_for_clients: 13 clients can never join, scheduler\.clients has 12$",
        ),
        ("scheduler.min_clients=13", r"^configuration: scheduler\.min_clients: 13 clients can never answer, scheduler\.clients has 12$"),
        ("scheduler.enough=0.5", r"^configuration: scheduler\.enough: 6 answers are fewer than min_clients = 12; lower that as well$"),
    ],
)
def test_what_a_simulation_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(override)
