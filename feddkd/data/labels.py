"""Hides or corrupts labels of one client's examples, for benchmarks."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feddkd.config import Config, DataConfig
from feddkd.data.datasets import DataInfo
from feddkd.data.examples import Examples
from feddkd.errors import ConfigError
from feddkd.tasks.base import UNLABELLED, LearningTask

RULES_WITHOUT_CLASSES = ("iid", "quantity_dirichlet")
"""Rules of `[partition]` that do not look at classes."""

Integers = npt.NDArray[np.int64]
NoiseKind = Literal["symmetric", "pairwise", "own_classes"]


def check_labels(config: Config, task: LearningTask[Any], info: DataInfo, *, needed_by: str) -> None:
    """Check that what works with one class of each example is asked for only where there is one.

    Args:
        needed_by: the key of the algorithm or the objective that needs it, as `algorithms.needs_labels` says.

    Raises:
        ConfigError: a key needs it.
    """
    if task.has_one_class(info.target_shape):
        return
    data = config.data
    asked = {
        f"data.label_noise = {data.label_noise:g}": data.label_noise > 0,
        f"data.labels_per_class = {data.labels_per_class}": data.labels_per_class is not None,
        needed_by: needed_by != "",
        'dkd.teacher = "auto"': config.dkd.teacher == "auto",
    }
    first = next((key for key, is_asked in asked.items() if is_asked), None)
    if first is not None:
        raise ConfigError(f"{first}: it needs one class of each example, and those of task.name = {task.settings.name!r} have none here")


def check_partition(config: Config, task: LearningTask[Any], info: DataInfo) -> None:
    """Check that examples can be dealt to simulated clients by `partition.name`.

    Raises:
        ConfigError: the rule deals by class, and examples have none.
    """
    rule = config.partition.name
    if rule not in RULES_WITHOUT_CLASSES and not task.has_one_class(info.target_shape):
        choice = " or ".join(map(repr, RULES_WITHOUT_CLASSES))
        raise ConfigError(
            f"partition.name = {rule!r}: it deals examples by their class, and those of task.name = {task.settings.name!r} have none here; "
            f"use {choice}"
        )


def prepare_labels(examples: Examples, config: DataConfig, num_classes: int, seed: int, client_id: str) -> Examples:
    """Hide labels of one client's examples and add noise to the others, as `config` says.

    Equal arguments give equal labels. Which labels are hidden does not depend on the noise.

    Args:
        num_classes: labels lie in [0, num_classes).
        seed: of the run.

    Returns:
        Examples that share their inputs with `examples`; `examples` itself where `config` asks for
        nothing.
    """
    labels = examples.labels
    if config.labelled_share is not None or config.labels_per_class is not None:
        hiding = _seed(seed, "hidden_labels", client_id)
        labels = hide_labels(labels, config.labelled_share, config.labels_per_class, seed=hiding)
    if config.label_noise > 0:
        noise = _seed(seed, "label_noise", client_id)
        kind = config.label_noise_kind
        labels = add_label_noise(labels, config.label_noise, kind, num_classes, noise)
    return examples if labels is examples.labels else examples.with_labels(labels)


def hide_labels(labels: Tensor, share: float | None = None, per_class: int | None = None, *, seed: int) -> Tensor:
    """Replace labels by `UNLABELLED`, but for a random choice that is stratified over the classes.

    With m labels before, `share` keeps round(share * m) of them, at least one, in proportion to the
    classes (largest remainder), but at least one of each class where that many are kept.
    `per_class` keeps so many of each class, or all where it has fewer.

    Args:
        labels: int64 [n]; `UNLABELLED` stays as it is.
        share: in (0, 1].
        per_class: at least 1; exactly one of `share` and `per_class` is given.
        seed: equal arguments give equal choices.

    Returns:
        int64 [n], a new tensor.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(labels.numpy() != UNLABELLED)
    shuffled = rng.permutation(known)
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.unique(labels.numpy()[known], return_counts=True)[1]
    if share is not None:
        assert per_class is None
        kept = _shares(sizes, share, rng)
    else:
        assert per_class is not None
        kept = np.minimum(sizes, per_class)
    # The first of each class in the shuffled order: more kept labels include the fewer.
    rank = np.arange(len(known)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = torch.from_numpy(by_class[rank < np.repeat(kept, sizes)])
    result = torch.full_like(labels, UNLABELLED)
    result[chosen] = labels[chosen]
    return result


def add_label_noise(labels: Tensor, share: float, kind: NoiseKind, num_classes: int, seed: int) -> Tensor:
    """Replace each label by a wrong one with probability `share`, independently of the others.

    Args:
        labels: int64 [n], in [0, num_classes); `UNLABELLED` stays as it is.
        share: in [0, 1].
        kind: "symmetric" takes any of the num_classes - 1 other classes, each as likely as another;
            "pairwise" takes class y + 1 for class y, and 0 for the last; "own_classes" takes any
            other class that occurs in `labels`, and changes nothing where only one occurs.
        num_classes: at least 2.
        seed: equal arguments give equal labels.

    Returns:
        int64 [n], a new tensor.
    """
    rng = np.random.default_rng(seed)
    old = labels.numpy()
    # Drawn for all: the noise of an example does not depend on which others have a label.
    hit = (rng.random(len(old)) < share) & (old != UNLABELLED)
    classes = np.unique(old[old != UNLABELLED]) if kind == "own_classes" else np.arange(num_classes)
    if len(classes) < 2:
        return labels.clone()
    furthest = 2 if kind == "pairwise" else len(classes)
    places = np.searchsorted(classes, old) + rng.integers(1, furthest, len(old))
    wrong = classes[places % len(classes)]
    return torch.from_numpy(np.where(hit, wrong, old))


def _shares(sizes: Integers, share: float, rng: np.random.Generator) -> Integers:
    """How many labels each class keeps, for classes of `sizes` (int64 [classes], all positive)."""
    total = int(sizes.sum())
    count = min(max(round(share * total), 1), total)
    least = 1 if count >= len(sizes) else 0
    # In whole numbers, so that equal classes tie exactly; ties are broken at random.
    exact = sizes * count
    kept = np.maximum(exact // max(total, 1), least)
    ties = rng.permutation(len(sizes))
    while (missing := count - int(kept.sum())) != 0:
        step = 1 if missing > 0 else -1
        gain = step * (exact - kept * total)
        open_to_it = np.ones_like(kept, dtype=bool) if step > 0 else kept > least
        best = np.where(open_to_it, gain, np.iinfo(np.int64).min)[ties].argmax()
        kept[ties[best]] += step
    return kept


def _seed(seed: int, purpose: str, client_id: str) -> int:
    """A seed of one client's own, for one purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
