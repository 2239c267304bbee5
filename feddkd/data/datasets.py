"""Loads the training and test examples of a configuration."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.digits import LARGEST_VALUE, is_test_example, load_digits
from feddkd.data.examples import Examples, Loaded, MemoryExamples, StreamedExamples, first_example, labelled_index
from feddkd.data.image_folder import load_image_folder
from feddkd.data.joined import joined
from feddkd.data.own_data import load_own, load_unlabelled, reading_of
from feddkd.data.own_targets import check_inputs_fit, has_labels, shape_of, way_out_of_shape
from feddkd.data.torchvision_sets import load_image_set
from feddkd.errors import ConfigError, DataError
from feddkd.imports import named
from feddkd.structures import Structure, leaves
from feddkd.tasks.base import LearningTask, Shapes
from feddkd.tasks.classification import CLASSIFICATION

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInfo:
    """Shapes of the data, which a model needs.

    Attributes:
        input_shape: shape of one example, (channels, height, width) for images; empty where an input is no single tensor.
        num_classes: labels lie in [0, num_classes); for other tasks, how many numbers the network gives for an example.
        input_dtype: float32 or int64; None where the data were not read.
        target_shape: of one target; empty for one label or number.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    input_dtype: torch.dtype | None = None
    target_shape: tuple[int, ...] = ()

    @property
    def keys(self) -> dict[str, Any]:
        """The same as keys of `[data]`; a site then need not read the server's data to learn them."""
        return {"input_shape": self.input_shape, "num_classes": self.num_classes, "target_shape": self.target_shape}

    @property
    def shapes(self) -> Shapes:
        """What a task needs to know of them."""
        return Shapes(self.input_shape, self.num_classes, self.target_shape)

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


def describe(config: DataConfig, task: LearningTask[Any] = CLASSIFICATION) -> DataInfo:
    """Return shapes and classes of the data, without reading them where possible.

    Only a user's own data whose shapes or `num_classes` are not configured are loaded to find
    out. What is found then holds for these files: sites that may lack classes must configure it.

    Raises:
        ConfigError: a key that is needed is missing, or contradicts a built-in set or the task.
        DataError: a user's own data cannot be loaded.
    """
    task.check_data(config.num_classes, config.target_shape)
    known = BUILT_IN.get(config.name)
    if known is not None or config.name == "image_folder":
        _check_has_labels(config, task)
    if known is not None:
        _check_agrees(config, known)
        return known
    configured = _configured(config, task)
    if configured is not None:
        return configured
    if config.name == "image_folder":
        missing = "input_shape" if config.input_shape is None else "num_classes"
        raise ConfigError(f"data.{missing} is not set: image_folder needs it, as in input_shape = [3, 64, 64] and num_classes = 4")
    return _infer(config, load_own(config, train=True, seed=0, task=task), task)


def info_of(config: DataConfig, examples: Examples, task: LearningTask[Any] = CLASSIFICATION) -> DataInfo:
    """Complete `describe` by the dtype of what was loaded, without loading it once more."""
    known = config.name in BUILT_IN or _configured(config, task) is not None
    info = describe(config, task) if known else _infer(config, examples, task)
    if info.input_dtype is not None:
        return info
    first, _ = first_example(examples)
    return dataclasses.replace(info, input_dtype=_dtype_of(first))


def _configured(config: DataConfig, task: LearningTask[Any]) -> DataInfo | None:
    """Return what the configuration says of the data; None if it does not say all."""
    target_shape = task.target_shape(config.target_shape, config.num_classes)
    num_classes = config.num_classes or (None if target_shape is None else task.num_outputs(target_shape))
    if config.input_shape is None or num_classes is None or target_shape is None:
        return None
    return DataInfo(config.input_shape, num_classes, target_shape=target_shape)


def load_train(config: DataConfig, seed: int, task: LearningTask[Any] = CLASSIFICATION) -> Examples:
    """Load the training examples, unlabelled ones included.

    With `data.subset` = N they are the first N of a shuffle of all with `seed`, in file order.

    Raises:
        ConfigError: a key that is needed is missing or wrong.
        DataError: the data are missing, unreadable or malformed, or fewer than `data.subset`.
    """
    examples = _load(config, True, seed, task)
    if config.subset is None:
        return examples
    if config.subset > len(examples):
        raise DataError(f"data.subset = {config.subset}: {config.name} has only {len(examples)} training examples")
    shuffled = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.subset(shuffled[: config.subset].sort().values).compact()


def load_test(config: DataConfig, seed: int = 0, task: LearningTask[Any] = CLASSIFICATION) -> Examples:
    """Load the examples of the test split; `seed` is the run's, for an iterable data set that shuffles.

    Raises:
        ConfigError: a key that is needed is missing or wrong.
        DataError: the data are missing, unreadable or malformed.
    """
    return _load(config, False, seed, task)


def _load(config: DataConfig, train: bool, seed: int, task: LearningTask[Any]) -> Examples:
    examples: Loaded
    if config.name == "digits":
        info, examples = describe(config, task), _digits(train)
    elif config.name in BUILT_IN:
        inputs, labels, names = load_image_set(config.name, config.root, train)
        info, examples = describe(config, task), MemoryExamples(inputs, labels.long(), class_names=names)
    elif config.name == "image_folder":
        info = describe(config, task)
        examples = load_image_folder(config, train, info.input_shape, info.num_classes, reading_of(config, "image_folder"))
    else:
        examples = load_own(config, train, seed, task)
        # The training examples show what is not configured: to describe them would load them once more.
        info = _infer(config, examples, task) if train else describe(config, task)
    check_inputs_fit(first_example(examples)[0], task, named("data.name", config.name))
    _check_inputs(examples, info, named("data.name", config.name))
    _check_targets(examples, info, task, named("data.name", config.name))
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
    _check_inputs(others, info, where)
    mine, theirs = (_dtype_of(first_example(each)[0]) for each in (examples, others))
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


def _infer(config: DataConfig, examples: Examples, task: LearningTask[Any]) -> DataInfo:
    """What is configured about a user's own data, completed by what the examples show."""
    task.check_data(config.num_classes, config.target_shape)
    first, target = first_example(examples)
    check_inputs_fit(first, task, named("data.name", config.name))
    target_shape = task.target_shape(config.target_shape, config.num_classes)
    if target_shape is None:
        target_shape = shape_of(target)
    num_classes = config.num_classes or task.num_outputs(target_shape)
    if num_classes is None:
        num_classes = _most_classes(config, examples, target_shape)
    input_shape = config.input_shape or (tuple(first.shape[1:]) if isinstance(first, Tensor) else ())
    return DataInfo(input_shape, num_classes, _dtype_of(first), target_shape)


def _most_classes(config: DataConfig, examples: Examples, target_shape: tuple[int, ...]) -> int:
    """Count the classes that the labels show. Raises ConfigError."""
    why = (
        "has no labels to infer it from" if len(labelled_index(examples)) == 0 else "has targets of their own shape" if target_shape else ""
    )
    if why:
        raise ConfigError(f"data.num_classes is not set: {named('data.name', config.name)} {why}")
    return max(2, int(examples.labels.max()) + 1)


def _dtype_of(batch: Structure) -> torch.dtype:
    """Return the dtype of inputs, of the first tensor where there are several."""
    found: torch.dtype = next(leaves(batch)).dtype
    return found


def _check_has_labels(config: DataConfig, task: LearningTask[Any]) -> None:
    """Raises ConfigError where a built-in set has other targets than the task expects."""
    if not has_labels(config, task):
        shape = f" with data.target_shape = {list(config.target_shape)}" if config.target_shape else ""
        raise ConfigError(
            f"task.name = {task.settings.name!r}{shape}: data.name = {config.name!r} has one class of each example; "
            "use a function of your own (package.module:function) that returns other targets"
        )


def _check_agrees(config: DataConfig, known: DataInfo) -> None:
    if config.input_shape not in (None, known.input_shape):
        raise ConfigError(f"data.input_shape = {list(config.input_shape or ())}: {config.name} has {list(known.input_shape)}")
    if config.num_classes not in (None, known.num_classes):
        raise ConfigError(f"data.num_classes = {config.num_classes}: {config.name} has {known.num_classes}")


def _check_inputs(examples: Loaded, info: DataInfo, where: str) -> None:
    """Refuse inputs of another shape; of streamed examples only the first is read. Raises DataError, which begins with `where`."""
    inputs = examples.inputs if isinstance(examples, MemoryExamples) else first_example(examples)[0]
    if isinstance(inputs, Tensor) and tuple(inputs.shape[1:]) != info.input_shape:
        raise DataError(f"{where}: inputs have shape {list(inputs.shape[1:])} where data.input_shape = {list(info.input_shape)}")


def _check_targets(examples: Loaded, info: DataInfo, task: LearningTask[Any], where: str) -> None:
    """Refuse targets that would fail in the middle of training; of streamed examples only the first is read.

    Raises:
        DataError: classes outside [0, num_classes), or targets of another shape; the message begins with `where`.
    """
    if task.has_one_class(info.target_shape):
        targets: Structure = examples.labels[labelled_index(examples)]
    elif isinstance(examples, MemoryExamples) and examples.targets is not None:
        targets = examples.targets.values
    else:
        _, targets = first_example(examples)
    if isinstance(targets, Tensor) and shape_of(targets) != info.target_shape:
        shape, way_out = list(shape_of(targets)), way_out_of_shape(targets[0], info.target_shape, info.num_classes)
        raise DataError(f"{where}: targets have shape {shape} where data.target_shape = {list(info.target_shape)}{way_out}")
    try:
        task.check_targets(targets, info.num_classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
