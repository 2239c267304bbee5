"""Loads the training and test examples of a configuration."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import torch

from feddkd.config import DataConfig
from feddkd.data.digits import LARGEST_VALUE, is_test_example, load_digits
from feddkd.data.examples import Examples, Loaded, MemoryExamples, StreamedExamples, first_input, joined, labelled_index
from feddkd.data.image_folder import load_image_folder
from feddkd.data.own_data import load_own, load_unlabelled, reading_of
from feddkd.data.torchvision_sets import load_image_set
from feddkd.errors import ConfigError, DataError
from feddkd.imports import named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInfo:
    """Shape and number of classes of the data, which a model needs.

    Attributes:
        input_shape: shape of one example, (channels, height, width) for images.
        num_classes: labels lie in [0, num_classes).
        input_dtype: float32 or int64; None where the data were not read.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    input_dtype: torch.dtype | None = None

    @property
    def possible_dtypes(self) -> tuple[torch.dtype, ...]:
        """What inputs may be: the dtype that is known, or either of the two that data become."""
        return (torch.float32, torch.int64) if self.input_dtype is None else (self.input_dtype,)


BUILT_IN = {
    "digits": DataInfo((1, 8, 8), 10, torch.float32),
    "mnist": DataInfo((1, 28, 28), 10, torch.float32),
    "fashion_mnist": DataInfo((1, 28, 28), 10, torch.float32),
    "emnist": DataInfo((1, 28, 28), 47, torch.float32),
    "cifar10": DataInfo((3, 32, 32), 10, torch.float32),
    "cifar100": DataInfo((3, 32, 32), 100, torch.float32),
    "svhn": DataInfo((3, 32, 32), 10, torch.float32),
}
"""Sets whose shape is known without their files; emnist is its "balanced" split."""


def describe(config: DataConfig) -> DataInfo:
    """Return shape and classes of the data, without reading them where possible.

    Only a user's own data whose `input_shape` or `num_classes` is not configured are loaded to find
    out. What is found then holds for these files: sites that may lack classes must configure it.

    Raises:
        ConfigError: a key that is needed is missing, or contradicts a built-in set.
        DataError: a user's own data cannot be loaded.
    """
    known = BUILT_IN.get(config.name)
    if known is not None:
        _check_agrees(config, known)
        return known
    if config.input_shape is not None and config.num_classes is not None:
        return DataInfo(config.input_shape, config.num_classes)
    if config.name == "image_folder":
        missing = "input_shape" if config.input_shape is None else "num_classes"
        raise ConfigError(f"data.{missing} is not set: image_folder needs it, as in input_shape = [3, 64, 64] and num_classes = 4")
    return _infer(config, load_own(config, train=True, seed=0))


def info_of(config: DataConfig, examples: Examples) -> DataInfo:
    """Complete `describe` by the dtype of what was loaded, without loading it once more."""
    info = describe(config) if config.name in BUILT_IN or (config.input_shape and config.num_classes) else _infer(config, examples)
    return info if info.input_dtype is not None else dataclasses.replace(info, input_dtype=first_input(examples).dtype)


def load_train(config: DataConfig, seed: int) -> Examples:
    """Load the training examples, unlabelled ones included.

    With `data.subset` = N they are the first N of a shuffle of all with `seed`, in file order.

    Raises:
        ConfigError: a key that is needed is missing or wrong.
        DataError: the data are missing, unreadable or malformed, or fewer than `data.subset`.
    """
    examples = _load(config, train=True, seed=seed)
    if config.subset is None:
        return examples
    if config.subset > len(examples):
        raise DataError(f"data.subset = {config.subset}: {config.name} has only {len(examples)} training examples")
    shuffled = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.subset(shuffled[: config.subset].sort().values).compact()


def load_test(config: DataConfig, seed: int = 0) -> Examples:
    """Load the examples of the test split; `seed` is the run's, for an iterable data set that shuffles.

    Raises:
        ConfigError: a key that is needed is missing or wrong.
        DataError: the data are missing, unreadable or malformed.
    """
    return _load(config, train=False, seed=seed)


def _load(config: DataConfig, train: bool, seed: int) -> Examples:
    examples: Loaded
    if config.name == "digits":
        info, examples = describe(config), _digits(train)
    elif config.name in BUILT_IN:
        inputs, labels, names = load_image_set(config.name, config.root, train)
        info, examples = describe(config), MemoryExamples(inputs, labels.long(), class_names=names)
    elif config.name == "image_folder":
        info = describe(config)
        examples = load_image_folder(config, train, info.input_shape, info.num_classes, reading_of(config, "image_folder"))
    else:
        examples = load_own(config, train, seed)
        # The training examples show what is not configured: to describe them would load them once more.
        info = _infer(config, examples) if train else describe(config)
    _check(examples, info, named("data.name", config.name))
    _tell_random_reads(examples, train)
    return _with_unlabelled(examples, info, config, seed) if train else examples


def _tell_random_reads(examples: Loaded, train: bool) -> None:
    """Log how examples whose reads are random are treated."""
    if not isinstance(examples, StreamedExamples) or not examples.is_random:
        return
    split = "training" if train else "test"
    if examples.reader.is_repeatable:
        logger.info("reads of %s examples are random: each is seeded, and soft labels are computed for each batch", split)
    else:
        logger.warning(
            "reads of %s examples differ under one seed: they draw from a generator of their own, so no run can be repeated; "
            "draw from the global generator of torch, numpy or random instead",
            split,
        )


def _with_unlabelled(examples: Loaded, info: DataInfo, config: DataConfig, seed: int) -> Loaded:
    """`examples`, followed by the inputs that the function `data.unlabelled` gives, if there is one."""
    if ":" not in config.unlabelled:
        return examples
    others, where = load_unlabelled(config, seed), named("data.unlabelled", config.unlabelled)
    _check(others, info, where)
    mine, theirs = first_input(examples).dtype, first_input(others).dtype
    if mine != theirs:
        name = named("data.name", config.name)
        raise DataError(f"{where}: inputs become {theirs}, and those of {name} {mine}; data.scale says what is scaled")
    return joined(examples, others, reading_of(config, where))


def _digits(train: bool) -> MemoryExamples:
    """scikit-learn's 1,797 handwritten digits, scaled to [0, 1]."""
    images, labels = load_digits()
    inputs = images.float().div_(LARGEST_VALUE)
    chosen = is_test_example(labels)
    if train:
        chosen = ~chosen
    return MemoryExamples(inputs[chosen], labels[chosen], class_names=tuple(str(digit) for digit in range(10)))


def _infer(config: DataConfig, examples: Examples) -> DataInfo:
    """What is configured about a user's own data, completed by what the examples show."""
    first = first_input(examples)
    input_shape = config.input_shape or tuple(first.shape[1:])
    if config.num_classes is None and len(labelled_index(examples)) == 0:
        raise ConfigError(f"data.num_classes is not set: {named('data.name', config.name)} has no labels to infer it from")
    return DataInfo(input_shape, config.num_classes or int(examples.labels.max()) + 1, first.dtype)


def _check_agrees(config: DataConfig, known: DataInfo) -> None:
    if config.input_shape not in (None, known.input_shape):
        raise ConfigError(f"data.input_shape = {list(config.input_shape or ())}: {config.name} has {list(known.input_shape)}")
    if config.num_classes not in (None, known.num_classes):
        raise ConfigError(f"data.num_classes = {config.num_classes}: {config.name} has {known.num_classes}")


def _check(examples: Examples, info: DataInfo, where: str) -> None:
    """Refuse what would fail in the middle of training: of streamed examples only the first is read.

    Raises:
        DataError: labels outside [0, num_classes), or inputs of another shape; the message begins with `where`.
    """
    labels = examples.labels[labelled_index(examples)]
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= info.num_classes:
        raise DataError(f"{where}: label {low if low < 0 else high} is outside [0, {info.num_classes}) (data.num_classes)")
    inputs = examples.inputs if isinstance(examples, MemoryExamples) else first_input(examples)
    if tuple(inputs.shape[1:]) != info.input_shape:
        raise DataError(f"{where}: inputs have shape {list(inputs.shape[1:])} where data.input_shape = {list(info.input_shape)}")
