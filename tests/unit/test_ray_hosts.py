"""What the engine asks of Ray, with a stand-in that computes in this process: these tests need no Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness import small_config

from feddkd.config import Config
from feddkd.engines.hosts import HostLostError
from feddkd.engines.ray import RayActor, RayHosts
from feddkd.engines.ray_host import CONFIG, Packed, RayHost
from feddkd.errors import ConfigError, RunError, StateError


class RayError(Exception):
    """What all of Ray's errors are."""


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GetTimeoutError(RayError):
    pass


class Errors:
    RayError = RayError
    RayTaskError = RayTaskError
    GetTimeoutError = GetTimeoutError


class Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        return lambda: self._method(*arguments)


class Actor:
    def __init__(self, kind: type) -> None:
        self._object = kind()

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._object, name))


class StandIn:
    """Ray, as far as the engine uses it: a reference is a function that computes its value.

    Attributes:
        options_of: what every actor asked for.
        lost: what `get` raises in the place of a result.
    """

    exceptions: ClassVar = Errors

    def __init__(self) -> None:
        self.options_of: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self.lost: Exception | None = None
        self._kind: type = RayHost

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": 2.0}

    def put(self, value: Any) -> Any:
        return value

    def get(self, reference: Callable[[], Any], timeout: float | None = None) -> Any:
        if self.lost is not None:
            raise self.lost
        try:
            return reference()
        except Exception as error:
            raise RayTaskError(error) from error

    def remote(self, kind: type) -> StandIn:
        self._kind = kind
        return self

    def options(self, **options: Any) -> StandIn:
        self.options_of.append(options)
        outer = self

        class Chosen(StandIn):
            def remote(self, *_: Any) -> Any:
                return Actor(outer._kind)

        return Chosen()

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(actor)


def hosts_of(config: Config, folder: Path) -> tuple[RayHosts, StandIn]:
    (folder / CONFIG).write_text(config.to_toml())
    ray = StandIn()
    return RayHosts(ray, config, folder), ray


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_actor_asks_for_its_share_of_a_gpu_and_its_cores(share: float, tmp_path: Path) -> None:
    config = small_config(f"runtime.ray_gpus={share}", "runtime.threads=2", "runtime.client_processes=1")
    hosts, ray = hosts_of(config, tmp_path)
    hosts.start({})
    (options,) = ray.options_of
    assert (options["num_gpus"], options["num_cpus"]) == (share, 2)
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_every_client_is_counted_and_the_data_are_shared(tmp_path: Path) -> None:
    hosts, _ = hosts_of(small_config(), tmp_path)
    assert list(hosts.counts) == ["client-0", "client-1", "client-2", "client-3"]
    assert hosts.movable
    assert isinstance(hosts._examples, Packed)
    assert hosts.start({}).has_constants("client-0", b"")


def test_what_an_actor_raises_is_raised_here(tmp_path: Path) -> None:
    hosts, ray = hosts_of(small_config(), tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(StateError, match="this node does not see"):
        hosts.start({})
    assert len(ray.killed) == 1


@pytest.mark.parametrize("error", [RayError("the actor died\nand more"), RayError(), RayError("\n"), GetTimeoutError()])
def test_an_actor_that_is_gone_is_a_host_that_is_lost(error: Exception, tmp_path: Path) -> None:
    hosts, ray = hosts_of(small_config(), tmp_path)
    ray.lost = error
    with pytest.raises(HostLostError, match=r"^RayError: the actor died$|^RayError$|^no answer within 120 s"):
        hosts.start({})
    assert len(ray.killed) == 1


@pytest.mark.parametrize(
    ("overrides", "started", "said"),
    [
        (("runtime.client_processes=3",), 3, ""),
        (("runtime.client_processes=8", "partition.clients=10"), 4, "runtime.client_processes = 8: the cluster has room for 4 of them"),
        (("runtime.client_processes=8",), 4, ""),  # four clients: no more are wanted
        (("runtime.client_processes=4", "runtime.ray_gpus=1"), 2, "runtime.client_processes = 4: the cluster has room for 2 of them"),
        (("runtime.client_processes=2", "runtime.threads=8"), 1, "runtime.client_processes = 2: the cluster has room for 1 of them"),
    ],
)
def test_no_more_actors_are_started_than_the_cluster_has_room_for(
    overrides: tuple[str, ...], started: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hosts, _ = hosts_of(small_config(*overrides), tmp_path)
    assert hosts.num_hosts == started
    assert [record.getMessage() for record in caplog.records if "room" in record.getMessage()] == ([said] if said else [])


def test_an_error_of_the_program_is_not_taken_for_a_lost_host() -> None:
    class Wrong:
        def settle(self, *_: Any) -> None:
            raise KeyError("a")

        def has_constants(self, *_: Any) -> bool:
            raise ConfigError("of the configuration")

    actor = RayActor(StandIn(), Actor(Wrong))
    with pytest.raises(RunError, match=r"KeyError: 'a'$"):
        actor.call("settle")
    with pytest.raises(ConfigError, match="of the configuration"):
        actor.has_constants("a", b"")
