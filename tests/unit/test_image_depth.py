"""Image files of any mode stay in range, and hidden files are no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from feddkd.config import Config
from feddkd.data.datasets import load_train
from feddkd.data.image_folder import ImageFiles
from feddkd.errors import DataError

GREYS = np.linspace(0, 1, 64).reshape(8, 8)


def saved(folder: Path, mode: str, suffix: str = "tiff") -> str:
    """Save a ramp from black to white in a mode of Pillow's."""
    deep = {"I;16": (65535, np.uint16), "I": (65535, np.int32), "F": (1, np.float32)}
    if mode in deep:
        white, dtype = deep[mode]
        image = Image.fromarray((GREYS * white).astype(dtype))
    else:
        image = Image.fromarray((GREYS * 255).astype(np.uint8)).convert("RGB" if mode in ("CMYK", "RGBA") else "L").convert(mode)
    assert image.mode == mode
    file = folder / f"{mode.replace(';', '')}.{suffix}"
    image.save(file)
    return str(file)


def read(file: str, channels: int = 1, white_level: float | None = None) -> Any:
    row = ImageFiles([file], torch.tensor([0]), (channels, 8, 8), white_level)[0][0]
    return row.float() / 255 if row.dtype == torch.uint8 else row


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "suffix", "white"),
    [
        ("L", "png", None),
        ("LA", "png", None),
        ("P", "png", None),
        ("RGB", "png", None),
        ("RGBA", "png", None),
        ("CMYK", "tiff", None),
        ("I;16", "png", None),
        ("I;16", "tiff", None),
        ("I", "tiff", 65535),
        ("F", "tiff", 1),
    ],
)
def test_a_ramp_stays_a_ramp(mode: str, suffix: str, white: float | None, channels: int, tmp_path: Path) -> None:
    pixels = read(saved(tmp_path, mode, suffix), channels, white)
    assert pixels.shape == (channels, 8, 8)
    assert torch.allclose(pixels[0], torch.from_numpy(GREYS).float(), atol=0.03)


def test_an_image_of_one_bit_is_black_and_white(tmp_path: Path) -> None:
    assert set(read(saved(tmp_path, "1", "png")).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("mode", "white", "reason"),
    [("I", None, "does not say what white is"), ("F", None, "set data.white_level"), ("I;16", 4095, "outside of [0, 4095]")],
)
def test_what_white_is_must_be_known_and_hold(mode: str, white: float | None, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(saved(tmp_path, mode), white_level=white)
    assert reason in str(caught.value)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/._0.png", "cat/.trash/0.png", ".DS_Store/x.png"])
def test_hidden_files_and_folders_are_no_images_and_no_classes(hidden: str, tmp_path: Path) -> None:
    for file in ("cat/0.png", "dog/0.png", hidden):
        (tmp_path / "train" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "train" / file)
    data = {"name": "image_folder", "root": str(tmp_path), "input_shape": [1, 8, 8], "num_classes": 2}
    train = load_train(Config.parse({"data": data}).data, 0)
    assert len(train) == 2
    assert train.class_names == ("cat", "dog")
