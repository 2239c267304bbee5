"""Holds all clients of a run to the same classes, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import grpc

from feddkd.data.class_names import MOST_LETTERS, names_differ, shown_names
from feddkd.transport.refusals import NotAdmittedError


class ClassContract:
    """The names of a run's classes: those that are given, or those of the first client that tells some.

    Attributes:
        names: in the order of the classes' numbers; empty until they are known.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._told_by = ""

    def give(self, names: Sequence[str], told_by: str) -> None:
        """Take names as those of the run; `told_by` says whose they are, for messages."""
        self.names, self._told_by = tuple(names), told_by

    def check(self, client_id: str, names: Sequence[str]) -> None:
        """Compare what a client tells with what is known. One that tells nothing is not refused.

        Raises:
            NotAdmittedError: its classes are others, or have other numbers.
        """
        if not names:
            return
        if any(not name or len(name) > MOST_LETTERS for name in names):
            _refuse(grpc.StatusCode.INVALID_ARGUMENT, f"names of classes have 1 to {MOST_LETTERS} characters")
        if self.names and names_differ(self.names, names):
            _refuse(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the classes of {client_id} are {shown_names(names)}, and those of {self._told_by} {shown_names(self.names)}: "
                "all sites need the same classes in the same order",
            )

    def take(self, client_id: str, names: Sequence[str]) -> None:
        """Take in what a client tells that was checked and is admitted."""
        if names and not self.names:
            self.give(names, client_id)


def _refuse(code: grpc.StatusCode, reason: str) -> NoReturn:
    raise NotAdmittedError(code, reason)
