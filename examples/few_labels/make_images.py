"""Deal scikit-learn's digits to three sites as PNG files, nearly all without a label, and to the server as a test set.

python make_images.py        writes a/, b/, c/ and server/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from feddkd.data.digits import LARGEST_VALUE, load_digits

SITES = {"a": (0, 1, 2, 3), "b": (3, 4, 5, 6), "c": (6, 7, 8, 9)}
"""The digits that each site has images of."""

LABELLED = 5
"""Images of each digit that a site has labelled."""

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    images, digits = (tensor.numpy() for tensor in load_digits())
    pixels = np.round(images * (255 / LARGEST_VALUE)).astype(np.uint8).reshape(-1, 8, 8)
    for digit in range(10):
        own = pixels[digits == digit]
        test, training = own[4::5], np.delete(own, slice(4, None, 5), axis=0)
        write(test, Path("server/test") / str(digit))
        holders = [site for site, classes in SITES.items() if digit in classes]
        for site, share in zip(holders, np.array_split(training, len(holders)), strict=True):
            write(share[:LABELLED], Path(site) / "train" / str(digit))
            write(share[LABELLED:], Path(site) / "train" / "unlabelled", prefix=f"{digit}-")
    for site in SITES:
        for digit in range(10):  # also those that it has no image of: classes are numbered by their folders
            (Path(site) / "train" / str(digit)).mkdir(parents=True, exist_ok=True)
        labelled = len(list(Path(site).glob("train/[0-9]/*.png")))
        unlabelled = len(list(Path(site).glob("train/unlabelled/*.png")))
        print(f"{site}/train: {labelled} labelled images, {unlabelled} without a label")


def write(images: Pixels, folder: Path, prefix: str = "") -> None:
    """Write images, uint8 [n, 8, 8], as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{prefix}{number:03}.png")


if __name__ == "__main__":
    main()
