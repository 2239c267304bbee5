"""Keep tensors in files that are named by the SHA-256 of their content.

A file is in the safetensors format, with one text beside the tensors. It appears under its name in one
step, when all of it is on the disk, and is checked against its name whenever it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feddkd.durable import sync_folder
from feddkd.errors import StateError
from feddkd.failpoints import failpoint
from feddkd.files import open_regular
from feddkd.text import printable

_PIECE_BYTES = 1 << 20
_LARGE_BYTES = 1 << 20
"""From here on a thread more pays: it waits for the disk while the content is hashed."""

_TEXT = "text"
_NAME = re.compile("[0-9a-f]{64}")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Blob(NamedTuple):
    """What one file holds.

    Attributes:
        tensors: by name.
        text: what was written beside them.
    """

    tensors: dict[str, Tensor]
    text: str


class DamagedError(StateError):
    """A file is missing, or its content does not match its name.

    Attributes:
        name: of the blob.
        is_other_content: whether the file is there, and its content is not what was written.
    """

    def __init__(self, name: str, message: str, *, is_other_content: bool = False) -> None:
        super().__init__(message)
        self.name = name
        self.is_other_content = is_other_content


class BlobStore:
    """A folder of blobs."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there. Raises StateError."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot create {folder}: {error.strerror}") from error

    def write(self, tensors: Mapping[str, Tensor], text: str = "") -> str:
        """Store tensors; they survive a crash once this returns.

        Args:
            tensors: of any dtype that safetensors knows, on any device.

        Returns:
            The blob's name, 64 hexadecimal digits: equal content has one name and is stored once.

        Raises:
            StateError: the file cannot be written. Nothing of it stays.
        """
        plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items(), key=_place)}
        partial = self.folder / f"{secrets.token_hex(16)}.partial"
        final: Path | None = None
        is_new = False
        try:
            failpoint("blobs.write.before_write")
            with partial.open("wb") as stream:
                for piece in _pieces(plain, text):
                    stream.write(piece)
                stream.flush()
                failpoint("blobs.write.before_fsync")
                name = _hash_and_sync(plain, text, stream)
            failpoint("blobs.write.before_rename")
            final = self._file(name)
            is_new = not final.exists()
            partial.replace(final)
            failpoint("blobs.write.after_rename")
            sync_folder(self.folder)
        except OSError as error:
            # What may not be on the disk must not be found there; what was there before is, and others may need it.
            for file in (partial, final) if final is not None and is_new else (partial,):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            raise StateError(f"cannot write {final or partial}: {error.strerror}") from error
        return name

    def read(self, name: str) -> Blob:
        """Read a blob back, equal bit for bit, on the CPU.

        Raises:
            DamagedError: it is not there, or its content is not what was written; it is moved to `NAME.corrupt`.
            StateError: it cannot be read.
        """
        try:
            return read_blob(self.folder, name)
        except DamagedError as error:
            if not error.is_other_content:
                raise
            file = self._file(name)
            aside = file.with_suffix(".corrupt")
            with contextlib.suppress(OSError):
                file.replace(aside)
            raise DamagedError(name, f"{error}; it was moved to {aside.name}") from None

    def keep_only(self, names: Collection[str]) -> None:
        """Delete all blobs but these, and what a crash left half written. What cannot be deleted stays."""
        failpoint("blobs.prune.before")
        try:
            files = list(self.folder.iterdir())
        except OSError:
            return
        for file in files:
            if file.suffix == ".partial" or (file.suffix == ".safetensors" and file.stem not in names):
                with contextlib.suppress(OSError):
                    file.unlink()

    def _file(self, name: str) -> Path:
        return _file_of(self.folder, name)


def read_blob(folder: Path, name: str) -> Blob:
    """Read a blob and check it, without changing anything in its folder.

    Raises:
        DamagedError: it is not there, or its content is not what was written.
        StateError: it cannot be read.
    """
    file = _file_of(folder, name)
    try:
        with open_regular(file) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise DamagedError(name, f"{file} is missing") from None
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    if found != name:
        raise DamagedError(name, f"{file} is damaged: its SHA-256 is {found[:12]}...", is_other_content=True)
    try:
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(_TEXT, "")
            return Blob({key: stored.get_tensor(key) for key in stored.keys()}, text)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(name, f"{file} cannot be read: {error}") from error


def _file_of(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise DamagedError(name, f"{printable(name, 80)!r} names no blob")
    return folder / f"{name}.safetensors"


def _hash_and_sync(tensors: Mapping[str, Tensor], text: str, stream: IO[bytes]) -> str:
    """Put a file on the disk and hash what was written meanwhile; returns the SHA-256. Raises OSError."""
    if os.fstat(stream.fileno()).st_size < _LARGE_BYTES:
        os.fsync(stream.fileno())
        return _hash(tensors, text)
    with ThreadPoolExecutor(1) as executor:
        synced = executor.submit(os.fsync, stream.fileno())
        name = _hash(tensors, text)
        synced.result()
    return name


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(tensors, text):
        digest.update(piece)
    return digest.hexdigest()


def _place(item: tuple[str, Tensor]) -> tuple[int, str]:
    """Order tensors so that each begins at a multiple of its element's size, which readers rely on."""
    return -item[1].element_size(), item[0]


def _pieces(tensors: Mapping[str, Tensor], text: str) -> Iterator[bytes | memoryview]:
    """Lay out a file: never a copy of all of it in memory."""
    header: dict[str, object] = {"__metadata__": {_TEXT: text}}
    start = 0
    for name, value in tensors.items():
        stop = start + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors are aligned
    yield len(encoded).to_bytes(8, "little") + encoded
    for value in tensors.values():
        if value.numel():
            for piece in torch.split(value.as_strided((value.numel(),), (1,)).view(torch.uint8), _PIECE_BYTES):
                yield piece.numpy().data
