"""Signals that wait while something must not be interrupted."""

from __future__ import annotations

import signal

import pytest

from feddkd.cli.signals import held_back


def test_a_signal_waits_until_the_context_ends() -> None:
    done: list[str] = []

    def work() -> None:
        with held_back(signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_handlers_are_as_before_when_it_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_back(signal.SIGINT):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_is_raised_though_a_signal_came() -> None:
    def fail() -> None:
        with held_back(signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
            raise ImportError

    with pytest.raises(ImportError):
        fail()
