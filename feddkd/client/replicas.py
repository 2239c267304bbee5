"""Keeps the models that a client's next steps lead from, in memory or in its state directory."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import dataclass
from typing import Any

from feddkd.client.state_dir import StateDir
from feddkd.compression.replica import Replica
from feddkd.errors import FedDKDError, StateError
from feddkd.tensors import Schema, Tensors

logger = logging.getLogger(__name__)

PREFIX = "replica-"
"""Begins the names of what is put away."""

_MODEL, _MEAN = "model/", "mean/"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one client's models are put away.

    Attributes:
        run_id: what was put away in another run is of no use.
    """

    state: StateDir
    run_id: str


class Replicas:
    """What one client received last in one run, by schema.

    A simulation has more clients than fit into memory. It puts those away that do not compute, one file for each
    schema, and their next exchange reads it again. Who is away can take a step as well as who is not, so the bytes on
    the wire stay the same. A file is not written through to the disk: without it, the server sends a whole model.
    So it does where a file cannot be read. From any thread: others put away what a client does not use.
    """

    def __init__(self, place: Place | None = None) -> None:
        """Begin with what was put away in this run.

        Args:
            place: None keeps everything in memory.
        """
        self._place = place
        self._here: dict[Schema, Replica] = {}
        self._lock = threading.RLock()

    def get(self, schema: Schema) -> Replica | None:
        """Return the replica of a schema; None if there is none, or its file cannot be read, which the log says."""
        with self._lock:
            if schema not in self._here and self._place is not None:
                try:
                    found = _read(self._place, schema)
                except FedDKDError as error:
                    self._warn(error)
                    return None
                if found is not None:
                    self._here[schema] = found
            return self._here.get(schema)

    def __contains__(self, schema: Schema) -> bool:
        return self.get(schema) is not None

    def __getitem__(self, schema: Schema) -> Replica:
        found = self.get(schema)
        if found is None:
            raise KeyError(schema)
        return found

    def __setitem__(self, schema: Schema, replica: Replica) -> None:
        with self._lock:
            self._here[schema] = replica

    def __delitem__(self, schema: Schema) -> None:
        with self._lock:
            self._here.pop(schema, None)
            if self._place is not None:
                try:
                    self._place.state.remove(_name(schema))
                except StateError as error:
                    self._warn(error)

    def put_away(self) -> None:
        """Write what is in memory to the state directory, and let go of it; where that fails, the log says so."""
        if self._place is None:
            return
        with self._lock:
            here, self._here = self._here, {}
            for schema, replica in here.items():
                try:
                    _write(self._place, schema, replica)
                except StateError as error:
                    self._warn(error)

    def _warn(self, error: FedDKDError) -> None:
        assert self._place is not None
        logger.warning("%s: it will need a whole model next: %s", self._place.state.client_id, error)


def _name(schema: Schema) -> str:
    return f"{PREFIX}{hashlib.sha256(repr(schema).encode()).hexdigest()[:16]}"


def _write(place: Place, schema: Schema, replica: Replica) -> None:
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in replica.model.items()}
    if replica.running_mean is not None:
        tensors |= {f"{_MEAN}{name}": tensor for name, tensor in replica.running_mean.items()}
    label = {"run_id": place.run_id, "mean_count": replica.mean_count}
    place.state.save(_name(schema), tensors, json.dumps(label), durable=False)


def _read(place: Place, schema: Schema) -> Replica | None:
    """Read what was put away in this run. Raises StateError if it cannot be read."""
    stored = place.state.read(_name(schema))
    label = _label(stored.label) if stored is not None else {}
    if stored is None or label.get("run_id") != place.run_id:
        return None
    model = {name.removeprefix(_MODEL): tensor for name, tensor in stored.tensors.items() if name.startswith(_MODEL)}
    mean = {name.removeprefix(_MEAN): tensor for name, tensor in stored.tensors.items() if name.startswith(_MEAN)}
    of_mean = Tensors.copy_of(Schema(spec for spec in schema.specs if spec.name in mean), mean) if mean else None
    return Replica.of(Tensors.copy_of(schema, model), of_mean, int(label["mean_count"]))


def _label(text: str) -> dict[str, Any]:
    try:
        label = json.loads(text)
    except ValueError:
        return {}
    return label if isinstance(label, dict) else {}
