"""Keep named tensors in one safetensors file that shows whether it is whole; no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feddkd.errors import StateError
from feddkd.models.file import write_model

SAID = "sha256 label"
"""Key of what a file says of itself: its SHA-256, a space, and its label."""


class DamagedFileError(StateError):
    """A file is damaged; the message says how."""


class StoredTensors(NamedTuple):
    """What a file holds."""

    label: str
    tensors: Mapping[str, Tensor]


def write_tensors(file: Path, tensors: Mapping[str, Tensor], label: str, about: Mapping[str, str] | None = None) -> None:
    """Write tensors, contiguous and on the CPU, with a label and the SHA-256 of both.

    Args:
        about: further metadata, for people.

    Raises:
        OSError: it cannot be written.
        SafetensorError: likewise; safetensors does not always tell why.
    """
    write_model(file, tensors, {**(about or {}), SAID: f"{_digest(tensors, label)} {label}"})


def read_label(file: Path) -> str:
    """Read the label alone; what the tensors hold is not checked.

    Raises:
        DamagedFileError: it is no safetensors file, or not all of one.
        StateError: it cannot be read.
    """
    with _problems(file), safe_open(file, framework="pt") as stored:
        return _said(stored.metadata())[0]


def read_tensors(file: Path) -> StoredTensors:
    """Read all tensors.

    Raises:
        DamagedFileError: it is not as it was written.
        StateError: it cannot be read.
    """
    with _problems(file), safe_open(file, framework="pt") as stored:
        label, digest = _said(stored.metadata())
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if _digest(tensors, label) != digest:
        raise DamagedFileError("its SHA-256 does not match")
    return StoredTensors(label, tensors)


def _said(metadata: Mapping[str, str] | None) -> tuple[str, str]:
    """Return label and digest. Raises DamagedFileError: every file has both."""
    digest, space, label = (metadata or {}).get(SAID, "").partition(" ")
    if not space:
        raise DamagedFileError("its label and its SHA-256 are missing")
    return label, digest


@contextmanager
def _problems(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise DamagedFileError(str(error)) from error
    except OSError as error:
        raise StateError(f"cannot read {file}: {error}") from error


def _digest(tensors: Mapping[str, Tensor], label: str) -> str:
    """Hash the label, and name, dtype, shape and bytes of every tensor; returns hexadecimal digits."""
    digest = hashlib.sha256(f"{label}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
