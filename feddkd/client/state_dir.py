"""Keeps what a client must remember after its process ends: who it is, and named tensors."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from torch import Tensor

from feddkd.client.tensor_file import DamagedFileError, StoredTensors, read_label, read_tensors, write_tensors
from feddkd.client_ids import CLIENT_ID
from feddkd.errors import SchemaError, StateError, StateHeldError
from feddkd.failpoints import failpoint
from feddkd.locking import DirectoryLock
from feddkd.tensors import Schema, Tensors
from feddkd.text import printable

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SUFFIX = ".safetensors"

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

    Each name of tensors is one safetensors file, replaced in one step; no pickle. One that is damaged
    is renamed to NAME.safetensors.corrupt-1 (-2, ...), named in one warning, and from then on is one
    that was never written.
    """

    def __init__(self, path: Path, client_id: str, *, durable: bool = True) -> None:
        """Make the directory if it is not there, lock it, write down whose it is, and set aside what is damaged.

        Args:
            durable: whether a power failure leaves what was saved. It takes some 10 ms each time; without it, only
                the end of the process leaves it.

        Raises:
            StateError: it cannot be made or written, is another client's, or another process holds it.
        """
        self.path = path
        self._durable = durable
        self.client_id = client_id
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot create state directory {path}: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise StateError(f"state directory {path} is not writable")
        try:
            self._lock = DirectoryLock.of_this_process(path)
        except BlockingIOError:
            owner = self.read_text(CLIENT)
            whose = f" of client {owner!r}" if owner else ""
            raise StateHeldError(f"another process holds the state directory {path}{whose}") from None
        self._claim()
        self._check_files()

    @property
    def instance_id(self) -> str:
        """The client's secret, 32 hexadecimal digits, by which the server knows it after a restart.

        It is made on first use. Raises StateError if it cannot be read or written.
        """
        known = self.read_text(INSTANCE)
        if known is not None and _SECRET.fullmatch(known):
            return known
        if known is not None:
            self._warn([self._set_aside(self.path / INSTANCE, "it is no secret of a client")])
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
                f"state directory {self.path} belongs to client {owner!r}, not to {self.client_id!r}; each client needs its own directory"
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
                opened.flush()
                self._sync(partial)
            partial.replace(file)
            self._sync(self.path)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error

    def save(
        self, name: str, tensors: Mapping[str, Tensor], label: str, *, about: Mapping[str, str] | None = None, durable: bool = True
    ) -> None:
        """Write `name`; whenever the process ends, there is either the old file or the new one.

        Args:
            about: further metadata of the file, for people.
            durable: it survives a power failure, too, once this returns, if the directory is durable.

        Raises:
            StateError: it cannot be written.
        """
        final = self._file(name)
        partial = final.with_suffix(".partial")
        try:
            write_tensors(partial, tensors, label, about)
            if durable:
                self._sync(partial)
            failpoint("client.state.before_rename")
            partial.replace(final)
            failpoint("client.state.after_rename")
            if durable:
                self._sync(self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StateError(f"cannot write {final}: {error}") from error

    def label(self, name: str) -> str | None:
        """Return the label of `name`; None if it was never written, or is damaged. Raises StateError if it cannot be read."""
        return self._read(name, read_label)

    def load(self, name: str, schema: Schema, label: str) -> Tensors | None:
        """Read `name`; None if it was never written, has another label, or is damaged.

        A damaged file is set aside, and the log names it.

        Raises:
            StateError: it cannot be read, or is of another model.
        """
        if self.label(name) != label:
            return None
        stored = self.read(name)
        if stored is None:
            return None
        try:
            return Tensors.copy_of(schema, stored.tensors)
        except SchemaError as error:
            raise StateError(f"{self._file(name)} is of another model: {error}") from error

    def read(self, name: str) -> StoredTensors | None:
        """Read `name` with its label; None if it was never written, or is damaged. Raises StateError if it cannot be read."""
        return self._read(name, read_tensors)

    def names(self, prefix: str) -> list[str]:
        """List what was saved under names that begin with `prefix`."""
        return sorted(file.stem for file in self.path.glob(f"{prefix}*{SUFFIX}"))

    def rename(self, name: str, other: str) -> None:
        """Put `name` in the place of `other`, in one step; a power failure does not undo it. Raises StateError."""
        file = self._file(name)
        try:
            file.replace(self._file(other))
            self._sync(self.path)
        except OSError as error:
            raise StateError(f"cannot rename {file}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Remove `name` if it is there. Raises StateError."""
        file = self._file(name)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot remove {file}: {error.strerror}") from error

    def _read(self, name: str, reader: Callable[[Path], _T]) -> _T | None:
        file = self._file(name)
        if not file.exists():
            return None
        try:
            return reader(file)
        except DamagedFileError as damage:
            self._warn([self._set_aside(file, str(damage))])
            return None

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def _check_files(self) -> None:
        """Set aside every file of tensors that is damaged: what needs it finds out now, not in every round."""
        found = []
        for file in sorted(self.path.glob(f"*{SUFFIX}")):
            try:
                read_tensors(file)
            except DamagedFileError as damage:
                found.append(self._set_aside(file, str(damage)))
        if found:
            self._warn(found)

    def _set_aside(self, file: Path, damage: str) -> str:
        """Rename a damaged file; returns what to say of it. Raises StateError."""
        taken = {each.name for each in self.path.glob(f"{file.name}.corrupt-*")}
        aside = next(name for number in itertools.count(1) if (name := f"{file.name}.corrupt-{number}") not in taken)
        try:
            file.rename(self.path / aside)
        except OSError as error:
            raise StateError(f"{file} is damaged, and cannot be set aside: {error.strerror}") from error
        return f"{file} is damaged ({damage}) and is now {aside}"

    def _sync(self, path: Path) -> None:
        """Write a file, or the names in a folder, through to the disk. Raises OSError."""
        if not self._durable:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _warn(self, found: Sequence[str]) -> None:
        logger.warning("%s: %s", self.client_id, "; ".join(map(printable, found)))
