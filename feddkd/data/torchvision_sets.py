"""The classic image sets, read from the files that torchvision downloads.

Images are taken as they are: uint8 in memory, [0, 1] when gathered, no normalisation and no
augmentation (the protocol of NIID-Bench, except for its CIFAR-10 crops and flips, which would make
cached teacher logits wrong).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feddkd.data.class_names import names_of_dataset
from feddkd.errors import DataError
from feddkd.extras import install_command
from feddkd.imports import one_line
from feddkd.torchvision_compat import import_torchvision


@dataclass(frozen=True)
class ImageSet:
    """How torchvision reads one data set.

    Attributes:
        open: called as open(torchvision.datasets, root, train); gives torchvision's data set object.
        images: uint8 [n, channels, height, width] of that object.
        labels: its integer labels.
        files: the train and the test file below the root, for an error message.
        download: called as download(torchvision.datasets, root); fetches it from the addresses that torchvision knows.
    """

    open: Callable[[Any, Path, bool], Any]
    images: Callable[[Any], Tensor]
    labels: Callable[[Any], Any]
    files: tuple[str, str]
    download: Callable[[Any, str], Any]


def _targets(dataset: Any) -> Any:
    return dataset.targets


def _grey_images(dataset: Any) -> Tensor:
    images: Tensor = dataset.data
    return images.unsqueeze(1)


def _transposed_images(dataset: Any) -> Tensor:
    # EMNIST's files hold every image transposed; turned back, its digits look like MNIST's.
    return _grey_images(dataset).transpose(2, 3).contiguous()


def _channels_last_images(dataset: Any) -> Tensor:
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()


def _idx_files(folder: str, train: str, test: str) -> tuple[str, str]:
    return f"{folder}/raw/{train}-images-idx3-ubyte", f"{folder}/raw/{test}-images-idx3-ubyte"


IMAGE_SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        open=lambda sets, root, train: sets.MNIST(root, train=train),
        images=_grey_images,
        labels=_targets,
        files=_idx_files("MNIST", "train", "t10k"),
        download=lambda sets, root: sets.MNIST(root, download=True),
    ),
    "fashion_mnist": ImageSet(
        open=lambda sets, root, train: sets.FashionMNIST(root, train=train),
        images=_grey_images,
        labels=_targets,
        files=_idx_files("FashionMNIST", "train", "t10k"),
        download=lambda sets, root: sets.FashionMNIST(root, download=True),
    ),
    "emnist": ImageSet(
        open=lambda sets, root, train: sets.EMNIST(root, split="balanced", train=train),
        images=_transposed_images,
        labels=_targets,
        files=_idx_files("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
        download=lambda sets, root: sets.EMNIST(root, split="balanced", download=True),
    ),
    "cifar10": ImageSet(
        open=lambda sets, root, train: sets.CIFAR10(root, train=train),
        images=_channels_last_images,
        labels=_targets,
        files=("cifar-10-batches-py/data_batch_1..5", "cifar-10-batches-py/test_batch"),
        download=lambda sets, root: sets.CIFAR10(root, download=True),
    ),
    "cifar100": ImageSet(
        open=lambda sets, root, train: sets.CIFAR100(root, train=train),
        images=_channels_last_images,
        labels=_targets,
        files=("cifar-100-python/train", "cifar-100-python/test"),
        download=lambda sets, root: sets.CIFAR100(root, download=True),
    ),
    "svhn": ImageSet(
        open=lambda sets, root, train: sets.SVHN(root, split="train" if train else "test"),
        images=lambda dataset: torch.from_numpy(dataset.data),
        labels=lambda dataset: dataset.labels,
        files=("train_32x32.mat", "test_32x32.mat"),
        download=lambda sets, root: [sets.SVHN(root, split, download=True) for split in ("train", "test")],
    ),
}


def load_image_set(name: str, root: Path | None, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Load one of `IMAGE_SETS`; nothing is downloaded.

    Returns:
        Images uint8 [n, channels, height, width], integer labels [n], and the names of the classes, where torchvision has them.

    Raises:
        DataError: torchvision or the files are missing, or the files are damaged.
    """
    image_set = IMAGE_SETS[name]
    if root is None:
        raise DataError(f"data.root is not set: {name} needs the folder that holds its files; {_advice(name, Path('data'))}")
    sets = import_torchvision().datasets
    try:
        dataset = image_set.open(sets, root, train)
        return image_set.images(dataset), torch.as_tensor(image_set.labels(dataset)), names_of_dataset(dataset)
    except ModuleNotFoundError as error:
        command = install_command("vision")
        raise DataError(f"data.name = {name!r}: {error.name} is not installed; get it with: {command}") from None
    except Exception as error:  # readers of damaged files raise anything, from EOFError to AssertionError
        file = root / image_set.files[0 if train else 1]
        raise DataError(
            f"data.name = {name!r}: cannot read {file} under data.root = {root} ({one_line(error)}); {_advice(name, root)}"
        ) from error


def download(name: str, root: Path) -> None:
    """Download one of `IMAGE_SETS` into `root`, training and test split; what is there already is not loaded again.

    Raises:
        DataError: torchvision is missing, the files cannot be fetched, or `root` cannot be written.
    """
    sets = import_torchvision().datasets
    try:
        IMAGE_SETS[name].download(sets, str(root))
    except ModuleNotFoundError as error:
        raise DataError(f"{name}: {error.name} is not installed; get it with: {install_command('vision')}") from None
    except Exception as error:  # a download can fail in any way: no network, a full disk, a wrong checksum
        raise DataError(f"{name} cannot be downloaded to {root} ({one_line(error)}); is there a network?") from error


def _advice(name: str, root: Path) -> str:
    return f"to download it: {shlex.join(['feddkd', 'data', 'fetch', name, str(root)])}"
