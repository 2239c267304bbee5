"""Strong augmentation: shifted images, in color also flipped ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from feddkd.algorithms.augmentation import shifted

Image = NDArray[np.float32]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(image: Image, down: int, right: int) -> Image:
    """Pixel by pixel; zeros come in."""
    out = np.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def candidates(image: Image) -> list[Image]:
    """All that may come of an image."""
    _, height, width = image.shape
    down, right = max(1, height // 10), max(1, width // 10)
    starts = [image, image[:, :, ::-1]] if len(image) == 3 else [image]
    shifts = [(i, j) for i in range(-down, down + 1) for j in range(-right, right + 1)]
    # An image is shifted, then flipped: its own columns are what is moved.
    return [np.ascontiguousarray(moved(start, *shift)) for start in starts for shift in shifts]


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """No pixel is zero, and no two are alike."""
    return torch.arange(1, batch * channels * height * width + 1, dtype=torch.float32).view(batch, channels, height, width)


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 4), st.sampled_from([(1, 3), (8, 8), (20, 11)]))
@settings(deadline=None, max_examples=20)
def test_each_image_is_moved_by_a_tenth_at_most_and_color_may_be_flipped(
    seed: int, batch: int, channels: int, size: tuple[int, int]
) -> None:
    before = images(batch, channels, *size)
    after = shifted(before, generator(seed))
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    for one, found in zip(before.numpy(), after.numpy(), strict=True):
        assert any(np.array_equal(found, candidate) for candidate in candidates(one))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_shift_and_flip_occurs(channels: int) -> None:
    one = images(1, channels, 20, 8)
    after = shifted(one.expand(1000, -1, -1, -1), generator(0))
    possible = {candidate.tobytes() for candidate in candidates(one[0].numpy())}
    assert {found.tobytes() for found in after.numpy()} == possible


def test_the_generator_alone_decides() -> None:
    before = images(16, 1, 20, 20)
    first, again, other = (shifted(before, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(4, 3), (4, 20, 20)])
def test_inputs_without_edges_stay_as_they_are(shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape)
    assert torch.equal(shifted(inputs, generator(0)), inputs)
