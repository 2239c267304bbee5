"""The cells of the laboratory, in the order of their importance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from attacks.clients import BOTH, GRADIENTS, UPDATES
from attacks.known import ABSENT, ATTACKS, NONE
from attacks.rules import DEFAULTS, MEAN, RULES

ROOT = Path(__file__).resolve().parent.parent.parent
DATA_ROOT = ROOT / "data"
CLIENTS = 10

FEDDKD, FEDAVG = "feddkd", "fedavg"
ALGORITHMS = {FEDDKD: "FedDKD", FEDAVG: "FedAvg"}
IID, TWO_CLASSES, ONE_CLASS = "iid", "c2", "c1"
PARTITIONS = {IID: "IID", TWO_CLASSES: "two classes each", ONE_CLASS: "one class each"}
DIGITS, MNIST = "digits", "mnist"
DATA = {DIGITS: "digits", MNIST: "MNIST"}

SEEDS = (0, 1, 2)

PROTECTING = tuple(name for name in RULES if name != MEAN)
REAL = tuple(name for name in ATTACKS if name not in (NONE, ABSENT))
MNIST_RULES = (MEAN, DEFAULTS, "multi_krum", "centred_clipping")
MNIST_ATTACKS = (NONE, "sign_flip", "times_-10", "alie", "ipm_0.5", "ipm_5", "label_flip")

ROUNDS = {(DIGITS, FEDDKD): 6, (DIGITS, FEDAVG): 20, (MNIST, FEDDKD): 4, (MNIST, FEDAVG): 10}
"""FedAvg's rounds have one exchange in place of FedDKD's 21, so that it gets more of them."""

_PARTITION = {
    IID: ("partition.name=iid",),
    TWO_CLASSES: ("partition.name=labels_per_client", "partition.labels=2"),
    ONE_CLASS: ("partition.name=labels_per_client", "partition.labels=1"),
}
_DATA = {
    DIGITS: (),
    MNIST: ("data.name=mnist", "data.subset=2000", "model.name=niid_cnn"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: one attack against one rule.

    Attributes:
        on: the contributions that are attacked: updates, gradients or both.
        attackers: how many of the ten clients; 0 without attack.
    """

    data: str
    algorithm: str
    partition: str
    rule: str
    attack: str
    on: str
    attackers: int
    seed: int

    def overrides(self, data_root: Path = DATA_ROOT) -> list[str]:
        """Return the configuration of the run as KEY=VALUE.

        Args:
            data_root: the folder that has the folder mnist.
        """
        root = [f"data.root={data_root / MNIST}"] if self.data == MNIST else []
        return [*self.settings(), f"seed={self.seed}", *root]

    def settings(self) -> list[str]:
        """Return the overrides that do not follow from machine or seed."""
        sizes = [f"rounds={ROUNDS[self.data, self.algorithm]}", f"partition.clients={CLIENTS}", "data.holdout=0.0"]
        chosen = [*_PARTITION[self.partition], *_DATA[self.data], *RULES[self.rule].overrides(self)]
        return [f"algorithm.name={self.algorithm}", *sizes, *chosen]

    def line(self) -> dict[str, Any]:
        """Return what a result says of the cell."""
        return {name: getattr(self, name) for name in Cell.__dataclass_fields__}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Cell:
        """Return the cell that a result is of."""
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Stage:
    """Cells that are run together: all rules against all attacks.

    Attributes:
        on: what is attacked; attacks that are no change of tensors run once, with `BOTH`.
    """

    data: str
    partition: str
    attackers: int
    seed: int
    on: tuple[str, ...] = (BOTH,)
    rules: Sequence[str] = tuple(RULES)
    attacks: Sequence[str] = tuple(ATTACKS)

    def cells(self) -> Iterator[Cell]:
        for attack, algorithm, on, rule in product(self.attacks, ALGORITHMS, self.on, self.rules):
            if _has_meaning(attack, algorithm, on):
                attackers = 0 if attack == NONE else self.attackers
                yield Cell(self.data, algorithm, self.partition, rule, attack, on, attackers, self.seed)


def _has_meaning(attack: str, algorithm: str, on: str) -> bool:
    """Whether an attack says something new of an algorithm with these contributions."""
    known = ATTACKS[attack]
    if known.only_for not in (None, algorithm):
        return False
    return on == BOTH or (known.on_tensors and attack != ABSENT and algorithm == FEDDKD)


def stages() -> Iterator[Stage]:
    """All stages; what matters most comes first, so that a grid that is cut short can be used.

    Without protection the mean is attacked with one seed alone: it differs from the defaults only
    where these scale or cap a client. Losses of every seed are measured against its clean mean.
    """
    first, *others = SEEDS
    yield Stage(DIGITS, IID, 2, first)
    yield from (Stage(DIGITS, IID, 2, seed, rules=(MEAN,), attacks=(NONE,)) for seed in others)
    yield from (Stage(DIGITS, IID, 1, seed, rules=(DEFAULTS,)) for seed in SEEDS)
    yield Stage(DIGITS, IID, 1, first, rules=(MEAN,))
    yield Stage(DIGITS, TWO_CLASSES, 2, first, rules=(MEAN,), attacks=(NONE,))
    yield Stage(DIGITS, TWO_CLASSES, 2, first, rules=PROTECTING)
    yield Stage(DIGITS, ONE_CLASS, 2, first, attacks=(NONE,))
    yield from (Stage(DIGITS, IID, 2, seed, rules=PROTECTING, attacks=(NONE, *REAL)) for seed in others)
    yield from (Stage(DIGITS, IID, attackers, first, rules=PROTECTING, attacks=REAL) for attackers in (3, 1))
    yield Stage(MNIST, IID, 2, first, rules=MNIST_RULES, attacks=MNIST_ATTACKS)
    yield from (Stage(DIGITS, part, 2, seed, attacks=(NONE,)) for part in (TWO_CLASSES, ONE_CLASS) for seed in others)
    yield Stage(DIGITS, IID, 2, first, on=(UPDATES, GRADIENTS), rules=PROTECTING, attacks=REAL)
    yield from (Stage(DIGITS, TWO_CLASSES, 2, seed, rules=PROTECTING, attacks=REAL) for seed in others)


def all_cells() -> list[Cell]:
    """All cells in their order, each once."""
    return list(dict.fromkeys(cell for stage in stages() for cell in stage.cells()))
