"""Splits one data set among clients, and a client's examples into training and held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feddkd.config import PartitionConfig
from feddkd.errors import PartitionError
from feddkd.tasks.base import UNLABELLED

Indices = npt.NDArray[np.int64]

DRAWS = {"dirichlet": 10_000, "quantity_dirichlet": 100_000}
"""How often a Dirichlet rule draws before it gives up: a few seconds."""


def client_ids(count: int) -> list[str]:
    """Return `client-0` .. `client-9`, padded with zeros to one width, so that they sort in client order."""
    width = len(str(count - 1))
    return [f"client-{number:0{width}}" for number in range(count)]


def partition(config: PartitionConfig, labels: Tensor, num_classes: int, seed: int) -> list[Tensor]:
    """Deal the examples with `labels` (int64 [n], in [0, num_classes) or `UNLABELLED`) to `config.clients` clients.

    Returns one sorted int64 tensor of positions in `labels` for each client: disjoint, none empty,
    and together all of them. Equal arguments give equal partitions. A rule that looks at labels
    deals the examples that have one; those without are dealt evenly, at random.

    Raises:
        PartitionError: it cannot be done; the message names the key and the value.
    """
    if config.clients > len(labels):
        raise PartitionError(f"partition.clients = {config.clients}: there are only {len(labels)} examples")
    classes: Indices = labels.numpy()
    rng = np.random.default_rng(seed)
    match config.name:
        case "iid":
            parts = _iid(config, len(labels), rng)
        case "quantity_dirichlet":
            parts = _quantity_dirichlet(config, len(labels), rng)
        case _ if (classes == UNLABELLED).any():
            parts = _dealt_with_unlabelled(config, classes, num_classes, rng)
        case _:
            parts = _dealt_by_label(config, classes, num_classes, rng)
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


def class_counts(parts: Sequence[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """Count the labelled examples of each class at each client: int64 [clients, num_classes]."""
    held = (labels[part] for part in parts)
    return torch.stack([torch.bincount(mine[mine != UNLABELLED], minlength=num_classes) for mine in held])


def unlabelled_counts(parts: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Count the unlabelled examples at each client: int64 [clients]."""
    return torch.stack([(labels[part] == UNLABELLED).sum() for part in parts])


def hold_out(index: Tensor, labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split `index` (int64 [n], positions in `labels`) into a training and a held-out part, both sorted.

    Held out are round(share * m) of the m examples that have a label, the classes in proportion, at
    least one if share > 0 and m >= 2; at least one of them is always left for training, and so are
    all examples without a label.
    """
    known = (labels[index] != UNLABELLED).nonzero().squeeze(1)
    n = len(known)
    size = min(max(round(share * n), 1 if share > 0 else 0), n - 1)
    if size <= 0:
        return index.sort().values, index[:0]
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(n)
    by_class = shuffled[np.argsort(labels[index[known]].numpy()[shuffled], kind="stable")]
    # Evenly spaced from a random start: every class gives its share, up to one example.
    chosen = by_class[((np.arange(size) + rng.random()) * n / size).astype(np.int64)]
    held = torch.zeros(len(index), dtype=torch.bool)
    held[known[torch.from_numpy(chosen)]] = True
    return index[~held].sort().values, index[held].sort().values


def _dealt_by_label(config: PartitionConfig, classes: Indices, num_classes: int, rng: np.random.Generator) -> list[Indices]:
    """What a rule gives that looks at the labels; all of them are in [0, num_classes)."""
    if config.name == "labels_per_client":
        return _labels_per_client(config, classes, num_classes, rng)
    if config.name == "dirichlet":
        return _dirichlet(config, classes, num_classes, rng)
    return _shards(config, classes, rng)


def _dealt_with_unlabelled(config: PartitionConfig, classes: Indices, num_classes: int, rng: np.random.Generator) -> list[Indices]:
    """The examples that have a label as the rule says, and a random equal piece of the others for each client."""
    known, others = np.flatnonzero(classes != UNLABELLED), np.flatnonzero(classes == UNLABELLED)
    try:
        dealt = _dealt_by_label(config, classes[known], num_classes, rng)
    except PartitionError as error:
        raise PartitionError(f"{error} (among the {len(known)} examples that have a label)") from None
    pieces = np.array_split(rng.permutation(others), config.clients)
    return [np.concatenate([known[part], piece]) for part, piece in zip(dealt, pieces, strict=True)]


def _iid(config: PartitionConfig, n: int, rng: np.random.Generator) -> list[Indices]:
    """A shuffle, cut into equal pieces."""
    return np.array_split(rng.permutation(n), config.clients)


def _labels_per_client(config: PartitionConfig, classes: Indices, num_classes: int, rng: np.random.Generator) -> list[Indices]:
    """NIID-Bench's noniid-#labelk: every client holds exactly `labels` classes, and holders of a class share it equally."""
    held = _deal_classes(config, num_classes, rng)
    parts: list[list[Indices]] = [[] for _ in range(config.clients)]
    for label in range(num_classes):
        holders = [client for client in range(config.clients) if label in held[client]]
        members = rng.permutation(np.flatnonzero(classes == label))
        if len(members) < len(holders):
            raise PartitionError(
                f"partition.clients = {config.clients}: {len(holders)} clients hold class {label}, "
                f"which has only {len(members)} examples (partition.labels = {config.labels})"
            )
        for client, piece in zip(holders, np.array_split(members, max(len(holders), 1)), strict=False):
            parts[client].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _deal_classes(config: PartitionConfig, num_classes: int, rng: np.random.Generator) -> list[set[int]]:
    """The classes of each client: number i holds class i mod num_classes and `labels` - 1 random others.

    NIID-Bench drops the classes that nobody holds, which happens only with fewer clients than
    classes. Here the random ones are taken from those first, so that no example is lost.
    """
    if config.labels > num_classes:
        raise PartitionError(f"partition.labels = {config.labels}: there are only {num_classes} classes")
    if config.clients * config.labels < num_classes:
        raise PartitionError(
            f"partition.labels = {config.labels}: {config.clients} clients (partition.clients) with this many classes each "
            f"do not cover all {num_classes} classes"
        )
    unheld = rng.permutation(np.arange(min(config.clients, num_classes), num_classes)).tolist()
    held: list[set[int]] = []
    for client in range(config.clients):
        mine = {client % num_classes}
        while len(mine) < config.labels:
            mine.add(unheld.pop() if unheld else int(rng.integers(num_classes)))
        held.append(mine)
    return held


def _dirichlet(config: PartitionConfig, classes: Indices, num_classes: int, rng: np.random.Generator) -> list[Indices]:
    """NIID-Bench's noniid-labeldir: each class is dealt in Dirichlet(alpha) proportions.

    A client that already has its fair share n / clients gets none of the class, and all is drawn
    again until every client has `min_size` examples. Sizes are drawn first and examples dealt once.
    """
    _check_min_size(config, len(classes))
    totals = np.bincount(classes, minlength=num_classes)
    for _ in range(DRAWS["dirichlet"]):
        counts = _label_proportions(config, totals, rng)
        if counts.sum(0).min() >= config.min_size:
            break
    else:
        raise _gave_up(config)
    parts: list[list[Indices]] = [[] for _ in range(config.clients)]
    for label, row in enumerate(counts):
        members = rng.permutation(np.flatnonzero(classes == label))
        for part, piece in zip(parts, np.split(members, np.cumsum(row)[:-1]), strict=True):
            part.append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _label_proportions(config: PartitionConfig, totals: Indices, rng: np.random.Generator) -> Indices:
    """One draw of the label Dirichlet: examples of each class for each client, int64 [classes, clients]."""
    fair_size = totals.sum() / config.clients
    counts = np.zeros((len(totals), config.clients), dtype=np.int64)
    sizes = np.zeros(config.clients, dtype=np.int64)
    for label, total in enumerate(totals):
        open_to_more = sizes < fair_size
        proportions = rng.dirichlet(np.full(config.clients, config.alpha)) * open_to_more
        if proportions.sum() == 0:  # a tiny alpha gave the whole class to clients that are full
            proportions = open_to_more if open_to_more.any() else np.ones(config.clients)
        counts[label] = _sizes(proportions, total)
        sizes += counts[label]
    return counts


def _quantity_dirichlet(config: PartitionConfig, n: int, rng: np.random.Generator) -> list[Indices]:
    """NIID-Bench's iid-diff-quantity: a shuffle, cut into Dirichlet(alpha) sizes of at least `min_size`."""
    _check_min_size(config, n)
    for proportions in _quantity_proportions(config, rng):
        sizes = _sizes(proportions, n)
        if sizes.min() >= config.min_size:
            return np.split(rng.permutation(n), np.cumsum(sizes)[:-1])
    raise _gave_up(config)


def _quantity_proportions(config: PartitionConfig, rng: np.random.Generator) -> Iterator[npt.NDArray[np.float64]]:
    block = 100  # one call draws many: a small alpha may need tens of thousands
    for _ in range(DRAWS["quantity_dirichlet"] // block):
        yield from rng.dirichlet(np.full(config.clients, config.alpha), size=block)


def _shards(config: PartitionConfig, classes: Indices, rng: np.random.Generator) -> list[Indices]:
    """McMahan et al. (2017): sorted by label, cut into clients * labels equal shards, `labels` shards for each client."""
    count = config.clients * config.labels
    if count > len(classes):
        raise PartitionError(
            f"partition.labels = {config.labels}: {config.clients} clients (partition.clients) need {count} shards, "
            f"and there are only {len(classes)} examples"
        )
    shuffled = rng.permutation(len(classes))
    shards = np.array_split(shuffled[np.argsort(classes[shuffled], kind="stable")], count)
    dealt = rng.permutation(count).reshape(config.clients, config.labels)
    return [np.concatenate([shards[number] for number in numbers]) for numbers in dealt]


def _sizes(proportions: npt.NDArray[np.floating], total: int) -> Indices:
    """Whole numbers that sum to `total`, in the given proportions (which need not sum to one)."""
    cumulative = np.cumsum(proportions)
    # Divided by its own last element, so that trailing zeros stay zeros whatever the rounding.
    bounds: Indices = np.rint(cumulative / cumulative[-1] * total).astype(np.int64)
    bounds[1:] -= bounds[:-1].copy()
    return bounds


def _check_min_size(config: PartitionConfig, n: int) -> None:
    needed = config.min_size * config.clients
    if needed > n:
        raise PartitionError(
            f"partition.min_size = {config.min_size}: {config.clients} clients (partition.clients) with this many examples each "
            f"need {needed}, and there are only {n}"
        )


def _gave_up(config: PartitionConfig) -> PartitionError:
    return PartitionError(
        f"partition.alpha = {config.alpha}: in {DRAWS[config.name]} draws some of the {config.clients} clients (partition.clients) "
        f"always had fewer than partition.min_size = {config.min_size} examples; raise alpha or lower min_size"
    )
