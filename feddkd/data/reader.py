"""Reads batches of inputs from a map-style data set, in this process or with loader processes."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from feddkd.config.data_keys import Scale
from feddkd.data.bad_examples import BadExamples, name_of
from feddkd.data.inputs import as_tensor, check_input_dtype, finite, is_numbers, network_inputs
from feddkd.data.rows import Entries
from feddkd.data.seeding import generator_states, generators_kept, seed_generators, seed_of_pass, seed_of_read
from feddkd.data.targets import TargetReading
from feddkd.errors import DataError
from feddkd.imports import one_line
from feddkd.structures import Structure, leaves, map_leaves, rows_of, stacked


class MapDataset(Protocol):
    """What torch calls a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Batch(NamedTuple):
    """Inputs that were read together.

    Attributes:
        kept: int64 [B], which of the examples asked for they are.
        inputs: float32 or int64 [B, ...]; None if none could be used.
        targets: [B, ...]; None also where they are not read from rows.
        problems: the others' positions in the data set, and why they cannot be used.
    """

    kept: Tensor
    inputs: Structure | None
    targets: Structure | None
    problems: list[tuple[int, str]]


class _Order(NamedTuple):
    """One example to read; `seed` is None where reads are not random."""

    position: int
    seed: int | None


class _Row(NamedTuple):
    """An example as it was read; `target` is None where it is not read from rows."""

    input: Structure
    target: Structure | None


class Rows:
    """Reads single examples; it is sent to loader processes, so it holds the data set and nothing that is not needed there.

    Attributes:
        form: dtypes and shapes of the first input that was read; others cannot be used.
    """

    def __init__(self, dataset: MapDataset, entries: Entries, scale: Scale, targets: TargetReading | None = None) -> None:
        self.dataset = dataset
        self.form: Structure | None = None
        self.entries = entries
        self.targets = targets
        self._scale = scale

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, order: _Order) -> tuple[int, _Row | str]:
        """Read one example as the network receives it, or say why it cannot be used."""
        if order.seed is not None:
            seed_generators(order.seed)
        try:
            row = self.dataset[order.position]
            found = map_leaves(self._checked, self.entries.input_of(row), is_leaf=is_numbers)
            target = None if self.targets is None else self.targets.read(self.entries.label_of(row))
            return order.position, _Row(self._of_one_form(found), target)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's data set may raise anything
            return order.position, str(error) if isinstance(error, DataError) else one_line(error)

    def _checked(self, entry: Any) -> Tensor:
        """Convert one tensor of an input. Raises DataError if it cannot be used."""
        raw = as_tensor(entry)
        check_input_dtype(raw)
        one = network_inputs(raw.unsqueeze(0), self._scale)
        if not bool(finite(one)):
            raise DataError("it holds a value that is not finite")
        return one[0]

    def _of_one_form(self, found: Structure) -> Structure:
        """Return an input. Raises DataError if it has not the form of the first one."""
        form = map_leaves(lambda leaf: _Form(leaf.dtype, tuple(leaf.shape)), found)
        if self.form is None:
            self.form = form
        if form != self.form:
            raise DataError(f"its input is {form}, and that of others {self.form}")
        return found


@dataclass(frozen=True)
class _Form:
    """Dtype and shape of a tensor; a leaf of a structure, and so no tuple."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    __repr__ = __str__


def _collate(rows: list[tuple[int, _Row | str]]) -> Batch:
    good = [(place, read) for place, (_, read) in enumerate(rows) if isinstance(read, _Row)]
    problems = [(position, read) for position, read in rows if isinstance(read, str)]
    inputs = stacked([read.input for _, read in good]) if good else None
    targets = stacked([read.target for _, read in good]) if good and good[0][1].target is not None else None
    return Batch(torch.tensor([place for place, _ in good], dtype=torch.int64), inputs, targets, problems)


def _placed(batch: Batch, places: list[int]) -> Batch:
    """Say where a batch, which was read from some `places` of a piece, belongs in it."""
    return batch._replace(kept=torch.tensor(places, dtype=torch.int64)[batch.kept])


class Reader:
    """Reads from one data set, for an examples object and all its subsets. What is known to be bad is not read again.

    Attributes:
        is_random: reads of one example differ; set by `probe`.
        is_repeatable: they are equal under equal seeds.
    """

    def __init__(self, rows: Rows, bad: BadExamples, workers: int) -> None:
        """Read `rows`, with `workers` processes in passes; what cannot be used is added to `bad`.

        Raises:
            DataError: the data set cannot be sent to loader processes.
        """
        self.rows = rows
        self.bad = bad
        self.is_random = False
        self.is_repeatable = True
        self._workers = workers
        self._orders = _Orders()
        self._loader: DataLoader[Any] | None = None
        self._passes = 0
        if workers > 0:
            _check_can_be_sent(rows, workers)

    def read(self, positions: Sequence[int]) -> Batch:
        """Read one batch in this process."""
        return next(self._here([list(positions)]))

    def stream(self, pieces: list[list[int]]) -> Iterator[Batch]:
        """Read batches one after the other."""
        return self._here(pieces) if self._workers == 0 else self._by_loader(pieces)

    def probe(self, positions: Sequence[int]) -> None:
        """Find out whether reads are random, by reading some examples twice.

        They are if an example differs, or if reading it draws from a global generator.
        """
        with generators_kept():
            for position in positions:
                drew, first = self._read_with_seed(position, 1)
                differs = not _equal(first, self._read_with_seed(position, 2)[1])
                if drew or differs:
                    self.is_random = True
                    self.is_repeatable = self.is_repeatable and _equal(first, self._read_with_seed(position, 1)[1])

    def _read_with_seed(self, position: int, seed: int) -> tuple[bool, _Row | str]:
        """Read one example; the first value says whether that drew from a global generator."""
        seed_generators(seed)
        before = generator_states()
        _, read = self.rows[_Order(position, None)]
        return generator_states() != before, read

    def _here(self, pieces: list[list[int]]) -> Iterator[Batch]:
        for orders in self._seeded(pieces):
            places = self._not_known_bad(orders)
            with generators_kept() if self.is_random else contextlib.nullcontext():
                batch = _collate([self.rows[orders[place]] for place in places])
            yield self._told(orders, _placed(batch, places))

    def _by_loader(self, pieces: list[list[int]]) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._new_loader()
        self._passes += 1
        current = self._passes
        seeded = self._seeded(pieces)
        asked = [self._not_known_bad(orders) for orders in seeded]
        self._orders.pieces = [[orders[place] for place in places] for orders, places in zip(seeded, asked, strict=True)]
        iterator = iter(self._loader)
        for orders, places in zip(seeded, asked, strict=True):
            # The loader has one iterator: a pass begun meanwhile has taken it over, and what comes next is its batch.
            if current != self._passes:
                raise RuntimeError("a second pass over streamed examples began before this one ended")
            yield self._told(orders, _placed(next(iterator), places))

    def _not_known_bad(self, orders: list[_Order]) -> list[int]:
        """Find the places of a piece whose example may be good: what cannot be used is not read again."""
        return [place for place, order in enumerate(orders) if order.position not in self.bad.found]

    def _seeded(self, pieces: list[list[int]]) -> list[list[_Order]]:
        seed = seed_of_pass() if self.is_random else None
        return [[_Order(position, None if seed is None else seed_of_read(seed, position)) for position in piece] for piece in pieces]

    def _told(self, orders: list[_Order], batch: Batch) -> Batch:
        """Count what could not be read, and leave out what could not be read earlier. Raises BadExamplesError."""
        for position, problem in batch.problems:
            self.bad.add(position, name_of(self.rows.dataset, position), problem)
        if not self.bad.found or batch.inputs is None:
            return batch
        still_good = [orders[place].position not in self.bad.found for place in batch.kept.tolist()]
        if all(still_good):
            return batch
        mask = torch.tensor(still_good)
        if not mask.any():
            return batch._replace(kept=batch.kept[mask], inputs=None, targets=None)
        targets = None if batch.targets is None else rows_of(batch.targets, mask)
        return batch._replace(kept=batch.kept[mask], inputs=rows_of(batch.inputs, mask), targets=targets)

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.rows,  # type: ignore[arg-type]  # a Dataset by protocol, not by inheritance
            batch_sampler=self._orders,
            collate_fn=_collate,
            num_workers=self._workers,
            persistent_workers=True,
            multiprocessing_context="spawn",  # a fork would copy gRPC's locks and threads in an unusable state
            generator=torch.Generator(),  # the loader draws a seed every pass; not from the global stream
        )


class _Orders(Sampler[list[_Order]]):
    """A batch sampler that the reader sets before every pass, so that the loader's processes can stay."""

    def __init__(self) -> None:
        self.pieces: list[list[_Order]] = []

    def __iter__(self) -> Iterator[list[_Order]]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _check_can_be_sent(rows: Rows, workers: int) -> None:
    try:
        pickle.Pickler(_Nowhere(), protocol=pickle.HIGHEST_PROTOCOL).dump(rows)
    except Exception as error:  # a user's __getstate__ may raise anything
        raise DataError(
            f"data.workers = {workers}: its data set cannot be sent to loader processes ({one_line(error)}); "
            "use functions and classes of a module's top level and open files when they are read, or set data.workers = 0"
        ) from error


def _equal(first: _Row | str, second: _Row | str) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    mine, other = list(leaves(tuple(first))), list(leaves(tuple(second)))
    return len(mine) == len(other) and all(map(_same, mine, other))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())  # a missing number is NaN
    return first is None and second is None
