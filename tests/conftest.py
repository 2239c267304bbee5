from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from federation import CONFIGS, Federation
from gated import ClientProcess, Moment
from hypothesis import settings
from live import Scene, errors_in, live_scene
from run_history import RunHistory, violations
from watching import Clock

from feddkd.engines.grpc_exchange import GrpcExchange

TESTS = Path(__file__).parent

# No test depends on how fast the machine is; and what is tried is the same every time. `--hypothesis-profile=explore` tries more.
settings.register_profile("feddkd", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("feddkd")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape what UTF-8 cannot encode in a report: pytest-xdist sends it from process to process."""
    report = yield
    return encodable(report)


def encodable(value: object) -> object:
    """Return a report's value with lone surrogates, as in logged names of files, escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(encodable, value))
    return value


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Undo what a command set up in the log of this process."""
    loggers = [logging.getLogger(), logging.getLogger("feddkd")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def importable_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let client processes import the modules of this folder by name."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def start_client(tmp_path: Path) -> Iterator[Callable[..., ClientProcess]]:
    """Starts processes that host simulated clients; they are killed at the end of the test."""
    processes: list[ClientProcess] = []

    def start(address: str, clients: Sequence[int], gates: Sequence[Moment] = ()) -> ClientProcess:
        arguments = [str(tmp_path / "config.toml"), "--server", address, "--state", str(tmp_path / "clients"), "--clients"]
        process = ClientProcess([*arguments, *map(str, clients)], gates)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.close()


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    """A live server with an honest client; afterwards both must still be well."""
    with live_scene() as scene:
        yield scene
        scene.check_alive()
    assert errors_in(caplog) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that exchanges over gRPC go by."""
    clock = Clock()
    monkeypatch.setattr(GrpcExchange, "_now", staticmethod(lambda: clock.now))
    return clock


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunHistory]:
    """undisturbed(name): what one of CONFIGS leaves behind when nothing goes wrong."""

    @cache
    def run(name: str) -> RunHistory:
        with Federation(tmp_path_factory.mktemp(name), CONFIGS[name], visits=True) as federation:
            federation.run()
            history = federation.history()
        assert violations(history) == []
        return history

    return run
