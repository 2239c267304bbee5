"""Images that lie in one folder for each class, and in one for those without a label.

torchvision's ImageFolder would count `unlabelled` as a class. Its transforms round the size of an
image before they crop it: they give other pixels, and so other results, than Pillow's `fit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.examples import Reading, StreamedExamples
from feddkd.data.image_depth import is_deep, unit_pixels
from feddkd.errors import ConfigError, DataError
from feddkd.extras import install_command
from feddkd.imports import one_line
from feddkd.tasks.base import UNLABELLED

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

MOST_SHOWN = 20
"""Folders that a message names."""

UNLABELLED_FOLDER = "unlabelled"
"""The folder beside the class folders whose images have no label; no class can have this name."""


class ImageFiles:
    """A map-style data set over image files; it is sent to loader processes, so it holds paths and nothing else.

    An image becomes grey (1 channel) or RGB (3), is scaled until it just covers the wanted size and is
    cropped to its centre: [channels, height, width], uint8, or float32 in [0, 1] where the file has
    more than 8 bits a channel.
    """

    def __init__(self, paths: list[str], labels: Tensor, input_shape: tuple[int, ...], white_level: float | None = None) -> None:
        self.paths = paths
        self.labels = labels
        self.input_shape = input_shape
        self.white_level = white_level

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label.

        Raises:
            DataError: the file is not an image that can be read; the reason alone.
        """
        from PIL import Image

        try:
            with Image.open(self.paths[index]) as image:
                return self._fitted(image), self.labels[index]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(one_line(error)) from error

    def _fitted(self, image: Any) -> Tensor:
        """Convert a PIL image to the wanted channels and size."""
        from PIL import Image, ImageOps

        channels, height, width = self.input_shape
        if is_deep(image):
            grey = Image.fromarray(unit_pixels(image, self.white_level))
            one = torch.from_numpy(np.array(ImageOps.fit(grey, (width, height), Image.Resampling.BILINEAR)))
            return one.expand(channels, height, width)
        fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(fitted))
        return pixels.view(height, width, channels).permute(2, 0, 1)


def load_image_folder(
    config: DataConfig, train: bool, input_shape: tuple[int, ...], num_classes: int, reading: Reading
) -> StreamedExamples:
    """Load the images below root/train or root/test; without root/train, root is the training set.

    Classes are numbered in the alphabetical order of their folders. A class that a site has no
    examples of needs an empty folder there, so that the numbers agree on every site. A folder
    `unlabelled` beside them is no class: its training images have no label, and in the test set it
    is ignored. So are hidden files and folders, whose names begin with a dot.

    Raises:
        ConfigError: `input_shape` is not (1 or 3, height, width).
        DataError: a folder is missing, the number of class folders is not `num_classes`, or there is no image.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ConfigError(f"data.input_shape = {list(input_shape)}: image_folder needs [1, height, width] or [3, height, width]")
    _require_pillow()
    folder = image_root(config.root, train)
    classes = class_folders(folder)
    if len(classes) != num_classes:
        raise DataError(
            f"image_folder: {folder} has {len(classes)} class folders where data.num_classes = {num_classes}: {_shown(classes)}. "
            "A class that has no examples here needs an empty folder, so that classes have the same numbers everywhere; "
            f"unlabelled images belong in {UNLABELLED_FOLDER}/"
        )
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    if train:
        files += [(path, UNLABELLED) for path in _images(folder / UNLABELLED_FOLDER)]
    if not files:
        raise DataError(f"image_folder: no image below {folder}/<class>/ ({', '.join(sorted(SUFFIXES))})")
    labels = torch.tensor([label for _, label in files])
    images = ImageFiles([str(path) for path, _ in files], labels, input_shape, config.white_level)
    return StreamedExamples(images, labels, reading, tuple(classes))


def class_folders(folder: Path) -> list[str]:
    """List the names of the class folders in `folder`, in the order of the classes' numbers."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != UNLABELLED_FOLDER and not _is_hidden(entry))


def _is_hidden(entry: Path) -> bool:
    """Whether an operating system or a tool keeps something for itself there, as in ._x and .ipynb_checkpoints."""
    return entry.name.startswith(".") or entry.name == "__MACOSX"


def image_root(root: Path | None, train: bool) -> Path:
    """Find the folder that holds the class folders of a split. Raises DataError."""
    if root is None:
        raise DataError("data.root is not set: image_folder needs the folder that holds train/<class>/ and test/<class>/")
    if not root.is_dir():
        raise DataError(f"data.root = {root}: there is no such folder; image_folder expects train/<class>/ and test/<class>/ in it")
    if train:
        return root / "train" if (root / "train").is_dir() else root
    if not (root / "test").is_dir():
        raise DataError(f"image_folder: there is no test set in {root / 'test'}; add it or set data.test_set = false")
    return root / "test"


def _shown(names: list[str]) -> str:
    """Folder names for a message, the first of many."""
    return ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "") if names else "none"


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not any(map(_is_hidden, (path, *path.relative_to(folder).parents))))


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise DataError(f"image_folder needs Pillow; get it with: {install_command('vision')}") from None
