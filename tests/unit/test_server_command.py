"""How SIGTERM ends a server."""

from __future__ import annotations

import os
import signal
import threading
from typing import cast

import pytest

from feddkd.cli import serving
from feddkd.engines.grpc import GrpcEngine


class Engine:
    """Keeps for what reason it was aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.reason = ""

    def abort(self, reason: str) -> None:
        self.reason = reason
        self.aborted.set()


def test_a_server_ends_even_where_the_exception_of_sigterm_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SECOND_CHANCE_S", 0.0)
    engine, before = Engine(), signal.getsignal(signal.SIGTERM)
    with serving.ended_by_sigterm(cast("GrpcEngine", engine)):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert engine.aborted.wait(60)
    assert engine.reason == "the server was stopped"
    assert signal.getsignal(signal.SIGTERM) == before
