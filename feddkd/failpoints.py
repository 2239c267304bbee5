"""Faults on request, at named points of the program.

`failpoint(name)` stands before or after each step that makes something durable or sends it. It does
nothing unless the environment variable `FEDDKD_FAILPOINTS` of the process names it:

    FEDDKD_FAILPOINTS="journal.append.before_fsync=kill@2;blobs.write.before_write=enospc"

An action happens once, the Nth time that the process comes to the point (`@N`; without it, the first):

    kill         end the process as `kill -9` does
    raise        raise FailpointError
    sleep(S)     wait S seconds
    hold_gil(S)  wait S seconds with Python's lock held: nothing but C code goes on meanwhile
    enospc       raise the OSError of a full disk
    eio          raise the OSError of a broken one

A name that no point has and an action that does not exist are refused when this module is imported.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from feddkd.errors import ConfigError

VARIABLE = "FEDDKD_FAILPOINTS"

SERVER_FAILPOINTS: tuple[str, ...] = (
    "engine.exchange.after_begin",
    "engine.reply.after_chunk",
    "engine.exchange.before_outcome",
    "engine.acknowledge.before",
    "engine.acknowledge.after_first",
    "journal.append.before_write",
    "journal.append.before_fsync",
    "journal.append.after_fsync",
    "blobs.write.before_write",
    "blobs.write.before_fsync",
    "blobs.write.before_rename",
    "blobs.write.after_rename",
    "blobs.prune.before",
    "scheduler.exchange.before_append",
    "scheduler.exchange.after_append",
    "scheduler.round.before_checkpoint",
    "scheduler.round.after_checkpoint",
    "scheduler.run.before_finish",
    "scheduler.run.after_finish",
)
"""Every point that a server's process comes to, or may come to, during a run."""

CLIENT_FAILPOINTS: tuple[str, ...] = (
    "client.join.after",
    "client.broadcast.after_chunk",
    "client.task.before_compute",
    "client.teacher.before_save",
    "client.teacher.after_save",
    "client.state.before_rename",
    "client.state.after_rename",
    "client.outbox.before_write",
    "client.outbox.after_write",
    "client.outbox.before_remove",
    "client.reply.before_send",
    "client.receipt.before_settle",
    "client.receipt.after_settle",
)
"""The same of a client's process."""


class FailpointError(RuntimeError):
    """A failpoint was told to raise; nothing in the program expects this error."""


class Plan:
    """The planned actions by failpoint: the contents of `FEDDKD_FAILPOINTS`."""

    def __init__(self, text: str) -> None:
        """Read the variable's text.

        Raises:
            ConfigError: it is not of the form NAME=ACTION@N;..., or a name or an action does not exist.
        """
        self._lock = threading.Lock()
        self._hits: dict[str, int] = {}
        self._actions: dict[tuple[str, int], Callable[[str], None]] = {}
        for entry in filter(None, (entry.strip() for entry in text.split(";"))):
            name, hit, action = _parse(entry)
            if (name, hit) in self._actions:
                raise ConfigError(f"{VARIABLE}: {name} has two actions at its visit {hit}")
            self._actions[name, hit] = action

    def visit(self, name: str) -> None:
        """Count that the program came to a point, and do there what is planned for this visit."""
        with self._lock:
            self._hits[name] = self._hits.get(name, 0) + 1
            action = self._actions.get((name, self._hits[name]))
        if action is not None:
            action(name)


_ENTRY = re.compile(r"(?P<name>[a-z_.]+)=(?P<action>[a-z_]+)(\((?P<seconds>[0-9.]+)\))?(@(?P<hit>[1-9][0-9]*))?")


def _parse(entry: str) -> tuple[str, int, Callable[[str], None]]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ConfigError(f"{VARIABLE}: {entry!r} is not of the form NAME=ACTION or NAME=ACTION@N")
    name = match["name"]
    if name not in SERVER_FAILPOINTS + CLIENT_FAILPOINTS:
        raise ConfigError(f"{VARIABLE}: there is no failpoint {name!r}")
    return name, int(match["hit"] or 1), _action(entry, match["action"], match["seconds"])


def _action(entry: str, action: str, seconds: str | None) -> Callable[[str], None]:
    if seconds is None and action in _ACTIONS:
        return _ACTIONS[action]
    if seconds is not None and action in _WAITS:
        try:
            return _WAITS[action](float(seconds))
        except ValueError:
            raise ConfigError(f"{VARIABLE}: {entry!r} does not name a number of seconds") from None
    raise ConfigError(f"{VARIABLE}: {entry!r} names no action: {', '.join(_ACTIONS)}, {', '.join(f'{name}(SECONDS)' for name in _WAITS)}")


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(name: str) -> NoReturn:
    raise FailpointError(f"failpoint {name}")


def _os_error(number: int) -> Callable[[str], None]:
    def fail(name: str) -> NoReturn:
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")

    return fail


def _sleep(seconds: float) -> Callable[[str], None]:
    return lambda _: time.sleep(seconds)


def _hold_gil(seconds: float) -> Callable[[str], None]:
    def hold(_: str) -> None:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # what PyDLL calls does not let go of the lock

    return hold


_ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": _kill,
    "raise": _raise,
    "enospc": _os_error(errno.ENOSPC),
    "eio": _os_error(errno.EIO),
}
_WAITS: dict[str, Callable[[float], Callable[[str], None]]] = {"sleep": _sleep, "hold_gil": _hold_gil}


def _planned() -> Plan | None:
    text = os.environ.get(VARIABLE, "")
    return Plan(text) if text else None


_plan = _planned()


def failpoint(name: str) -> None:
    """Do what `FEDDKD_FAILPOINTS` plans for this point; without the variable, nothing."""
    if _plan is not None:
        _plan.visit(name)


@contextmanager
def planned(text: str) -> Iterator[None]:
    """Let this process follow another plan for a while, in the place of the environment's.

    Raises:
        ConfigError: as `Plan`.
    """
    global _plan
    before = _plan
    _plan = Plan(text)
    try:
        yield
    finally:
        _plan = before
