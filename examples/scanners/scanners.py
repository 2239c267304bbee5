"""A BatchNorm network for PNG images of three sites, whose scanners differ.

python scanners.py        writes a/, b/ and c/: scikit-learn's digits as each site's scanner shows them
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import nn

from feddkd.data.digits import LARGEST_VALUE, load_digits

SCANNERS = {"a": (0.0, 1.0), "b": (0.6, 0.4), "c": (0.1, 0.2)}
"""Of each site: the brightness of its background, and what is added where there is ink."""

Images = npt.NDArray[np.float64]


def main() -> None:
    images, digits = (tensor.numpy() for tensor in load_digits())
    rng = np.random.default_rng(0)
    dealt = np.array_split(rng.permutation(len(images)), len(SCANNERS))
    for (site, (background, ink)), mine in zip(SCANNERS.items(), dealt, strict=True):
        seen = background + ink * images[mine].reshape(-1, 8, 8) / LARGEST_VALUE + rng.normal(0, 0.02, (len(mine), 8, 8))
        write(seen, digits[mine], Path(site) / "train")
        print(f"{site}/train: {len(mine)} images")


def write(images: Images, digits: npt.NDArray[np.int64], root: Path) -> None:
    """Write images [n, 8, 8] from 0 to 1 as PNG files, each into the folder of its class."""
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        file = root / str(digit) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * image.clip(0, 1)).astype(np.uint8)).save(file)


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network that maps float32 [B, 1, 8, 8] to logits [B, 10]."""
    channels, height, width = input_shape
    first = [nn.BatchNorm2d(channels), nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(32 * (height // 2) * (width // 2), num_classes))


if __name__ == "__main__":
    main()
