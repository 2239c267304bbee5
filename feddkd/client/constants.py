"""Keeps the tensors of the network that a client receives once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableMapping

from feddkd.algorithms.site import Store
from feddkd.compression.constants import NO_CONSTANTS, Constants
from feddkd.errors import CorruptionError
from feddkd.tensors import Schema, Tensors

CONSTANTS = "constants"
"""The name under which a client stores what it received."""


class HeldConstants:
    """The constants that a client has: those that it built, and those that a server sent.

    Attributes:
        schema: of all of them.
        current: those that the server computes with.
    """

    def __init__(
        self,
        built: Constants = NO_CONSTANTS,
        open_store: Callable[[], Store] | None = None,
        shared: MutableMapping[bytes, Constants] | None = None,
    ) -> None:
        """Begin with what the client built, and what an earlier process received.

        Args:
            built: from the configuration and the seed.
            open_store: opens what keeps the tensors that are received; it is open only while they are read or written,
                because its lock is an open file. None keeps them in memory.
            shared: what any client of this process received, by version: equal tensors are in memory once.

        Raises:
            StateError: the store cannot be read.
        """
        self.schema: Schema = built.schema
        self.current = built
        self._known = {built.version: built}
        self._shared = shared if shared is not None else {}
        self._open_store = open_store
        if len(self.schema) and open_store is not None:
            self._recall(open_store())

    def _recall(self, store: Store) -> None:
        label = store.label(CONSTANTS)
        if label is None or not label.startswith(_prefix(self.schema)):
            return  # nothing, or of another network
        tensors = store.load(CONSTANTS, self.schema, label)
        if tensors is not None:
            self._keep(Constants.of(tensors))

    def has(self, version: bytes) -> bool:
        """Return whether constants of this content are at hand."""
        return version in self._known

    def use(self, version: bytes) -> None:
        """Compute with the constants of this content from now on. Raises CorruptionError if they are not at hand."""
        if version not in self._known:
            raise CorruptionError("the broadcast needs constant tensors that this client does not hold")
        self.current = self._known[version]

    def take(self, tensors: Tensors, version: bytes) -> None:
        """Keep what the server sent.

        Raises:
            CorruptionError: its content is not what `version` names.
            StateError: it cannot be written.
        """
        received = Constants.of(tensors)
        if received.version != version:
            raise CorruptionError("the constant tensors are not those that the server names")
        if self._open_store is not None:
            self._open_store().save(CONSTANTS, tensors, label=f"{_prefix(self.schema)}{version.hex()}")
        self._keep(received)

    def _keep(self, received: Constants) -> None:
        self._known[received.version] = self._shared.setdefault(received.version, received)


def _prefix(schema: Schema) -> str:
    """Begin a label: names the tensors by a hash."""
    return f"{hashlib.sha256(repr(schema).encode()).hexdigest()[:16]}/"
