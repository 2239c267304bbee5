"""CIFAR-10 from JPEG files: what is read, what is kept, and that a cell of the benchmarks runs on it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grid_cells import ROOT, TINY
from PIL import Image

from feddkd.errors import ConfigError, DataError

sys.path.insert(0, str(ROOT / "benchmarks"))

from niid_bench import run
from niid_bench.cells import Cell, Settings, configure
from niid_bench.cifar10_jpeg import CLASSES, load
from niid_bench.grid import read_lines


def write_images(root: Path, a_class: int = 2) -> None:
    """`a_class` images of each class in train and test, each of one grey: ten times the class, and the number in it."""
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(a_class):
                write_image(root / part / name / f"{number:04}.jpg", 10 * label + number)


def write_image(path: Path, grey: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    Image.new("L", size, grey).convert(mode).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "cifar10_jpeg")
    return tmp_path / "cifar10_jpeg"


@pytest.mark.parametrize("train", [True, False])
def test_images_come_by_class_and_name_with_the_original_numbers_of_the_classes(root: Path, train: bool) -> None:
    images, labels = load(root, train)
    assert (images.dtype, images.shape) == (torch.uint8, (20, 3, 32, 32))
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    wanted = torch.tensor([10 * label + number for label in range(10) for number in range(2)])
    assert torch.equal(images, wanted.to(torch.uint8).view(-1, 1, 1, 1).expand_as(images))


def test_channels_come_first_and_rows_before_columns(root: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16, :, 0] = 255  # the upper half is red
    Image.fromarray(pixels).save(root / "train" / "airplane" / "0000.jpg", subsampling=0)
    image = load(root, train=True)[0][0].float()
    assert image[0, :8].mean() > 200
    assert image[0, 24:].mean() < 50
    assert image[1:].mean() < 50


def test_grey_files_become_three_channels(root: Path) -> None:
    write_image(root / "train" / "airplane" / "0000.jpg", 77, mode="L")
    assert torch.equal(load(root, train=True)[0][0], torch.full((3, 32, 32), 77, dtype=torch.uint8))


def test_pixels_are_read_from_the_cache_after_the_first_call(root: Path) -> None:
    first, labels = load(root, train=True)
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    again, labels_again = load(root, train=True)
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert sorted(path.name for path in root.iterdir()) == ["test", "train", "train.npy"]


@pytest.mark.parametrize("damage", ["count", "shape", "dtype", "half a file", "no array"])
def test_a_cache_that_does_not_fit_the_files_is_replaced(root: Path, damage: str) -> None:
    first, _ = load(root, train=True)
    cache = root / "train.npy"
    pixels = first.numpy()
    wrong = {"count": pixels[1:], "shape": pixels[..., :31], "dtype": pixels.astype(np.float32)}
    if damage in wrong:
        np.save(cache, wrong[damage])
    else:
        cache.write_bytes(cache.read_bytes()[:1000] if damage == "half a file" else b"")
    assert torch.equal(load(root, train=True)[0], first)
    assert np.load(cache).shape == (20, 3, 32, 32)


def test_a_folder_that_cannot_be_written_is_decoded_without_a_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(load(root, train=True)[0]) == 20
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]


def test_what_is_missing_or_no_image_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root is not set"):
        load(None, train=True)
    broken = root / "train" / "cat" / "0001.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*train/cat/0001\.jpg"):
        load(root, train=True)
    write_image(broken, 1, size=(31, 32))
    with pytest.raises(DataError, match=r"cat/0001\.jpg has 31 x 32 pixels"):
        load(root, train=True)
    shutil.rmtree(root / "test" / "frog")
    with pytest.raises(DataError, match=r"no images .*test/frog/\*\.jpg"):
        load(root, train=False)


def test_a_cell_names_the_function_and_what_a_model_must_know() -> None:
    config = configure(Cell("mini", "cifar10_jpeg", "feddkd", "c2", 0), Settings(data_root=Path("/sets")))
    data = config.data
    assert (data.name, data.root) == ("niid_bench.cifar10_jpeg:load", Path("/sets/cifar10_jpeg"))
    assert (data.input_shape, data.num_classes, data.subset) == ((3, 32, 32), 10, 12000)


def test_a_cell_runs_in_a_process_of_its_own_from_any_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [text for override in TINY if not override.startswith(("data.name", "data.subset")) for text in ("-o", override)]
    chosen = ["--data", "cifar10_jpeg", "--algorithm", "fedavg_sgd", "--partition", "iid", "--seed", "3", "--rounds", "1"]
    places = ["--data-root", str(root.parent), "--results", str(tmp_path / "r.jsonl"), "--records", str(tmp_path / "records")]
    assert run.main(["mini", *chosen, *places, "--jobs", "1", *small, "-o", "data.subset=20"]) == 0
    [line] = read_lines(tmp_path / "r.jsonl")
    assert (line["data"], line["config"]["data"]["name"]) == ("cifar10_jpeg", "niid_bench.cifar10_jpeg:load")


def test_a_missing_folder_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folder cifar10_jpeg"):
        run.main(["mini", "--data", "cifar10_jpeg", "--data-root", str(tmp_path), "--results", str(tmp_path / "r.jsonl")])
