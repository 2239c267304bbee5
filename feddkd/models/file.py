"""Write a model as a safetensors file, the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

LENGTH_BYTES = 8
"""A file begins with the length of its header, little-endian."""


def write_model(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, contiguous and on the CPU, with metadata in the order of its keys.

    Raises:
        OSError: it cannot be written.
        SafetensorError: likewise; safetensors does not always tell why.
    """
    save_file(dict(tensors), file, metadata=dict(metadata))
    if len(metadata) > 1:
        _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Put the keys of the metadata in order: safetensors writes them in none."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same JSON, in another order"
        stream.seek(LENGTH_BYTES)
        stream.write(text.ljust(length))
