"""Keeps a client away from a server that another one has replaced."""

from __future__ import annotations

import json
import logging

from feddkd.client.state_dir import StateDir
from feddkd.errors import StateError, UnreachableError
from feddkd.text import printable

logger = logging.getLogger(__name__)

SERVERS = "servers"
"""The file with the newest server of each of the last runs."""

RUNS_KEPT = 8
RUN_ID_CHARACTERS = 64


class Fence:
    """The highest incarnation that a client has seen of each of its last runs.

    A server that was paused by its machine, and replaced meanwhile, wakes up and knows nothing of its
    successor. A client that has seen the successor must not work for it.
    """

    def __init__(self, state: StateDir | None = None) -> None:
        """Read what an earlier process has seen; a file that is damaged says nothing.

        Args:
            state: where it is kept; by default it ends with the process.

        Raises:
            StateError: the file cannot be read.
        """
        self._state = state
        self._seen = _parse(state.read_text(SERVERS) or "") if state is not None else {}

    def admit(self, run_id: str, incarnation: int) -> None:
        """Take in which server of a run this is.

        Args:
            incarnation: 0 if it does not say so.

        Raises:
            UnreachableError: another server has taken over this run.
        """
        seen = self._seen.get(run_id, 0)
        if incarnation < seen:
            raise UnreachableError(
                f"it is server {incarnation} of run {printable(run_id, RUN_ID_CHARACTERS)}, which was replaced by server {seen}"
            )
        if incarnation == seen or len(run_id) > RUN_ID_CHARACTERS:
            return
        self._seen.pop(run_id, None)  # the run that was served last stands last
        self._seen[run_id] = incarnation
        while len(self._seen) > RUNS_KEPT:
            del self._seen[next(iter(self._seen))]
        if self._state is None:
            return
        try:
            self._state.write_text(SERVERS, json.dumps(self._seen))
        except StateError as error:
            logger.warning("%s: after a restart it may work for a server that was replaced: %s", self._state.client_id, error)


def _parse(text: str) -> dict[str, int]:
    try:
        seen = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(seen, dict):
        return {}
    return {run_id: number for run_id, number in seen.items() if isinstance(number, int)}
