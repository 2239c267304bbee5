"""What a client makes of a broadcast when its disk fails, or when another client needs the memory meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import RUN_ID, FakeWorker, answering, filled

from feddkd.client.constants import HeldConstants
from feddkd.client.held import Held
from feddkd.client.replicas import Place, Replicas
from feddkd.client.state_dir import StateDir
from feddkd.client.work import Work
from feddkd.compression.constants import CONSTANT, Constants
from feddkd.compression.replica import Replica
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.messages import id_to_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK = 64
SCHEMA = Schema([TensorSpec("w", torch.float32, (60,))])
FROZEN = Schema([TensorSpec("base", torch.float32, (70,), trainable=False)])
MODEL, STEP = filled(SCHEMA, 1), filled(SCHEMA, 2)
CONSTANTS, OTHERS = (Constants.of(filled(FROZEN, seed)) for seed in (3, 4))


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """A client that holds a model, and may have to put it away."""
    replicas = Replicas(Place(StateDir(tmp_path / "client", "client", durable=False), RUN_ID))
    replicas[SCHEMA] = Replica(MODEL)
    return Held(None, replicas)


def step_broadcast() -> tuple[pb.Work, Payload, Tensors]:
    """A step from the model that the client holds, and the model that it leads to."""
    server = Replica(MODEL)
    before = server.version
    server.advance(STEP)
    payload = Payload(STEP, CHUNK)
    told = pb.Replica(base_sha256=before, content_sha256=server.version)
    work = pb.Work(id=id_to_message(ExchangeId(RUN_ID, 1, 0, "dkd_step", 0)), payload=payload.header, replica=told)
    return work, payload, server.model


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", [False, True], ids=["a sound disk", "a full disk"])
def test_a_client_that_is_put_away_while_it_receives_a_step_still_takes_it(
    fails: bool, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, payload, expected = step_broadcast()
    work = Work(message, answering(MODEL), held)
    frames = list(payload.frames())
    assert len(frames) > 1
    work.receive(frames[0])
    if fails:
        monkeypatch.setattr("feddkd.client.state_dir.write_tensors", full)
    held.put_away()
    for frame in frames[1:]:
        work.receive(frame)
    assert work.start().payload.sha256() == expected.sha256()
    assert held.replicas[SCHEMA].model.sha256() == expected.sha256()  # the next step leads from it


def broken(name: str) -> Callable[..., None]:
    def raises(*_: object, **__: object) -> None:
        raise StateError(f"cannot use {name}")

    return raises


def test_a_client_whose_model_cannot_be_read_says_that_it_lacks_it(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    message, _, _ = step_broadcast()
    held.put_away()
    monkeypatch.setattr(StateDir, "read", broken("the file"))
    work = Work(message, answering(MODEL), held)
    assert work.is_lacking
    assert not work.has_reply
    assert "it will need a whole model next: cannot use the file" in caplog.text


def test_a_client_whose_model_is_another_one_lacks_it_also_where_its_file_cannot_be_removed(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, payload, _ = step_broadcast()
    message.replica.content_sha256 = bytes(16)
    monkeypatch.setattr(StateDir, "remove", broken("the file"))
    work = Work(message, answering(MODEL), held)
    for frame in payload.frames():
        work.receive(frame)
    assert work.is_lacking


class Forgetful(FakeWorker):
    """Has nowhere to keep constants."""

    def __init__(self) -> None:
        super().__init__(lambda _: pytest.fail("there is nothing to compute"), SCHEMA)
        self._constants = HeldConstants(OTHERS, StandIn)


class StandIn:
    """A state directory of a disk that is full."""

    def label(self, _: str) -> None:
        return None

    save = load = broken("the disk")


def test_a_client_that_cannot_keep_constants_refuses_the_broadcast(caplog: pytest.LogCaptureFixture) -> None:
    payload = Payload(MODEL.beside(**{CONSTANT: CONSTANTS.tensors}), CHUNK)
    identity = id_to_message(ExchangeId(RUN_ID, 1, 0, "local_train", 0))
    message = pb.Work(id=identity, payload=payload.header, constants_sha256=CONSTANTS.version, has_constants=True)
    work = Work(message, Forgetful(), Held())
    for frame in payload.frames():
        work.receive(frame)
    assert work.refusal == "cannot use the disk"
    assert work.has_reply
    assert "cannot use the disk" in caplog.text
