"""What a client says decides nothing, and reaches log and record as one printable line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from either_engine import ENGINES, Zeros, run_on
from harness import (
    SCHEMA,
    HandClient,
    Recorder,
    answer_frames,
    reasons,
    small_config,
)
from live import Scene, status_of

from feddkd.errors import PausedError
from feddkd.exchange import Reply, Task
from feddkd.observability.ledger import Ledger
from feddkd.observability.run_folder import EXCHANGES
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.messages import failure_message, id_from_message
from feddkd.transport.pb import federation_pb2 as pb

WORDS = {
    "disconnected": "disconnected from my camera",
    "not connected": "not connected",
    "escape sequences": "\x1b[2J\x1b]0;owned\x07 all is well",
    "a second line": "no data\nWARNING the server was stopped\r\n",
    "another direction": "\u202etxt.exe\u2066\u200f",
    "a line separator": "no\u2028data\u2029\x85",
    "no ASCII": "pas de données 数据",
    "a format": "%s %(message)s {0} [red]",
    "a long one": "x" * 100_000,
}
CONFIG = small_config(
    "algorithm.name=fedavg",
    "rounds=1",
    "scheduler.retries=0",
    "scheduler.min_clients=2",
    "scheduler.wait_for_clients=2",
    "data.test_set=false",
)


def assert_printable(text: str) -> None:
    assert text.isprintable(), ascii(text)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Everything that was logged so far, without the filter that the command line adds."""
    caplog.set_level(logging.DEBUG, "feddkd")
    return lambda: [record.getMessage() for record in caplog.records]


class CameraError(Exception):
    """A user's error; its name stands before its words."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_words_of_a_failure_end_a_run_like_any_others(
    engine: str,
    words: str,
    tmp_path: Path,
) -> None:
    def fail(_: Task, reply: Reply) -> Reply:
        raise CameraError(words)

    zeros, recorder = Zeros(CONFIG), Recorder()
    workers = {"good": zeros.worker(), "bad": zeros.worker(fail)}
    with (
        contextlib.closing(Ledger(tmp_path, CONFIG)) as ledger,
        pytest.raises(PausedError, match="waiting for more would not help") as stopped,
    ):
        run_on(engine, CONFIG, workers, [recorder, ledger])
    assert_printable(str(stopped.value))
    (failure,) = recorder.failures
    assert_printable(failure[2])
    (exchange,) = recorder.exchanges
    assert_printable(exchange.clients_missing["bad"])
    assert len(exchange.clients_missing["bad"]) <= 200
    record = (tmp_path / EXCHANGES).read_text()
    assert_printable(record.removesuffix("\n"))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_failure_may_say_anything_and_waits_for_nobody(
    scene: Scene,
    words: str,
    log: Callable[[], list[str]],
) -> None:
    """By hand: not even the name of an error stands before these words."""
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        result = scene.begin("hand", "honest")
        work, _ = hand.work()
        failure = pb.Failure(id=work.id, reason=words)
        hand.send(pb.ParticipateRequest(failure=failure).SerializeToString())
        outcome = result.result()
    assert not outcome.connection_lost
    assert_printable(reasons(outcome)["hand"])
    for message in log():
        assert_printable(message)


@pytest.mark.parametrize("words", ["x\x1b[2J", "x\nx", "\u202ex", "x\u2028"], ids=ascii)
def test_the_name_of_a_tensor_is_shown_printable(
    scene: Scene,
    words: str,
    log: Callable[[], list[str]],
) -> None:
    extra = Tensors(Schema([*SCHEMA.specs, TensorSpec(words, torch.int8, (1,))]))
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        result = scene.begin("hand", "honest")
        work, _ = hand.work()
        hand.send(*answer_frames(work, extra))
        outcome = result.result()
    assert "is not expected" in reasons(outcome)["hand"]
    assert_printable(reasons(outcome)["hand"])
    for message in log():
        assert_printable(message)


@pytest.mark.parametrize("words", [*WORDS.values(), "x" * 64], ids=[*WORDS, "64 letters"])
def test_a_software_version_is_logged_printable_or_refused(
    scene: Scene,
    words: str,
    log: Callable[[], list[str]],
) -> None:
    with scene.hand() as hand:
        try:
            hand.join(software=words)
        except grpc.RpcError:
            assert len(words) > 64
    for message in log():
        assert_printable(message)
        assert len(message) < 200


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_malformed_client_id_comes_back_printable_and_is_logged_once(
    scene: Scene,
    words: str,
    log: Callable[[], list[str]],
) -> None:
    before = len(log())
    with HandClient(scene.server.address, words) as hand:
        code, details = status_of(hand.join)
        assert status_of(hand.join)[0] is code
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert_printable(details)
    (message,) = log()[before:]
    assert message.startswith("refused ")
    assert_printable(message)
    assert len(message) < 300


def test_the_name_of_an_exchange_that_is_not_open_is_not_logged(
    scene: Scene,
    log: Callable[[], list[str]],
) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        before = len(log())
        other = pb.ExchangeId(run_id="\x1b[2J", round=1, name="a\nb")
        hand.send(failure_message(id_from_message(other), "no"))
        hand.receipt()
        assert log()[before:] == []
