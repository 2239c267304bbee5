"""A directory of named tensors that outlives the process: a client's teacher, and the model it is given at the end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from feddkd.errors import SchemaError, StateError
from feddkd.tensors import Schema, Tensors


class StateDir:
    """Keeps each name in one safetensors file, replaced in one step; no pickle."""

    def __init__(self, path: Path) -> None:
        """Raises StateError if the directory cannot be made or written."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make state directory {path}: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise StateError(f"state directory {path} is not writable")

    def save(self, name: str, tensors: Tensors, label: str) -> None:
        """Write `name`; a crash leaves either the old file or the new one. Raises StateError (disk full, say)."""
        final = self._file(name)
        partial = final.with_suffix(".partial")
        try:
            save_file(dict(tensors), partial, metadata={"label": label})
            partial.replace(final)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StateError(f"cannot write {final}: {error}") from error

    def label(self, name: str) -> str | None:
        """The label that `name` bears; None if it was never written. Raises StateError if it is damaged."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                return (stored.metadata() or {}).get("label")
        except (OSError, SafetensorError) as error:
            raise StateError(f"{file} is damaged: {error}") from error

    def load(self, name: str, schema: Schema, label: str) -> Tensors | None:
        """Read `name`; None if it was never written or bears another label. Raises StateError if it is damaged."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                if (stored.metadata() or {}).get("label") != label:
                    return None
                return Tensors.copy_of(schema, {key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, SchemaError) as error:
            raise StateError(f"{file} is damaged or of another model: {error}") from error

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"
