"""Keeps what a client must remember after its process ends: who it is, and named tensors."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from feddkd.errors import SchemaError, StateError
from feddkd.locking import DirectoryLock
from feddkd.tensors import Schema, Tensors
from feddkd.transport.frames import CLIENT_ID

CLIENT = "client"
"""The file that says whose directory it is."""

INSTANCE = "instance"
"""The file with the client's secret; only its owner can read it."""

INSTANCE_BYTES = 16
TEXT_CHARACTERS = 8192
"""Longer text files are none of ours."""
_SECRET = re.compile(f"[0-9a-f]{{{2 * INSTANCE_BYTES}}}")


class StateDir:
    """The state directory of one client: locked for one process, and bound to one client id.

    Two processes on one directory would read each other's teacher, so the second is refused. Within
    one process the lock is shared; it ends with the process, or once no `StateDir` of it is in use.
    `DirectoryLock` says what holds on a network file system.

    A copy of a directory has a lock of its own. Since it also has the secret, two processes can pass
    for one client; the server then ends the one that came first.

    Each name of tensors is one safetensors file, replaced in one step; no pickle.
    """

    def __init__(self, path: Path, client_id: str) -> None:
        """Make the directory if it is not there, lock it, and write down whose it is.

        Raises:
            StateError: it cannot be made or written, is another client's, or another process holds it.
        """
        self.path = path
        self.client_id = client_id
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make state directory {path}: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise StateError(f"state directory {path} is not writable")
        try:
            self._lock = DirectoryLock.of_this_process(path)
        except BlockingIOError:
            owner = self.read_text(CLIENT)
            whose = f" of client {owner!r}" if owner else ""
            raise StateError(f"another process holds the state directory {path}{whose}") from None
        self._claim()

    @property
    def instance_id(self) -> str:
        """The client's secret, 32 hexadecimal digits, by which the server knows it after a restart.

        It is made on first use. Raises StateError if it cannot be read or written.
        """
        known = self.read_text(INSTANCE)
        if known is not None and _SECRET.fullmatch(known):
            return known
        secret = secrets.token_hex(INSTANCE_BYTES)
        self.write_text(INSTANCE, secret)
        return secret

    def _claim(self) -> None:
        """Write down whose directory this is. Raises StateError if it is another client's."""
        owner = self.read_text(CLIENT)
        if owner == self.client_id:
            return
        if owner is not None and CLIENT_ID.fullmatch(owner):
            raise StateError(
                f"state directory {self.path} belongs to client {owner!r}, not to {self.client_id!r}; "
                "each client needs a directory of its own"
            )
        self.write_text(CLIENT, self.client_id)

    def read_text(self, name: str) -> str | None:
        """Read a small text file, without its newline; None if there is none. Raises StateError."""
        file = self.path / name
        try:
            with file.open(encoding="ascii", errors="replace") as opened:
                return opened.read(TEXT_CHARACTERS).strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"cannot read {file}: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        """Write a small file that only its owner can read, in one step. Raises StateError."""
        file = self.path / name
        partial = self.path / f"{name}.partial"
        try:
            partial.unlink(missing_ok=True)  # left by a crash, perhaps with other permissions
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as opened:
                opened.write(text + "\n")
            partial.replace(file)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error

    def save(self, name: str, tensors: Tensors, label: str) -> None:
        """Write `name`; a crash leaves either the old file or the new one. Raises StateError."""
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
        """Return the label of `name`; None if it was never written. Raises StateError."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                return (stored.metadata() or {}).get("label")
        except (OSError, SafetensorError) as error:
            raise StateError(f"{file} is damaged: {error}") from error

    def load(self, name: str, schema: Schema, label: str) -> Tensors | None:
        """Read `name`; None if it was never written or has another label.

        Raises:
            StateError: the file is damaged, or of another model.
        """
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
