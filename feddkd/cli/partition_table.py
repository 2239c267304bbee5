"""Lays out a partition: how many examples of each class every client gets."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from feddkd.config import Config
from feddkd.data.partitions import client_ids

MAX_COLUMNS = 20
"""With more classes than this the table lists each client's largest classes instead of one column a class."""

LARGEST = 5

UNBOUNDED = 10_000
"""Wider than any table is."""


def table_of(counts: Tensor, unlabelled: Tensor, title: str, width: int) -> Table:
    """Lay out a table that is at most `width` characters wide.

    Args:
        counts: examples of each class, int64 [clients, classes]; [clients, 1] where a task knows no class of an
            example, and there is no column of classes.
        unlabelled: examples without a label, int64 [clients].
    """
    if counts.shape[1] <= MAX_COLUMNS:
        wide = _wide_table(counts, unlabelled, title)
        if Console(width=UNBOUNDED).measure(wide).maximum <= width:
            return wide
    return _compact_table(counts, unlabelled, title)


def title_of(settings: Config, examples: int) -> str:
    rule = settings.partition
    setting = {
        "labels_per_client": f"labels = {rule.labels}",
        "shards": f"labels = {rule.labels}",
        "dirichlet": f"alpha = {rule.alpha:g}",
        "quantity_dirichlet": f"alpha = {rule.alpha:g}",
    }.get(rule.name)
    parts = (settings.data.name, f"{examples:,} examples", rule.name + (f" ({setting})" if setting else ""), f"seed {settings.seed}")
    return ", ".join(parts)


def summary_of(settings: Config, counts: Tensor, unlabelled: Tensor) -> dict[str, object]:
    """The same as an object for JSON; `unlabelled` is in it if a client has such examples."""
    rows = zip(client_ids(len(counts)), counts, unlabelled, strict=True)
    any_unlabelled = bool(unlabelled.any())
    return {
        "data": settings.data.name,
        "partition": settings.partition.name,
        "seed": settings.seed,
        "clients": [{"id": name, **_numbers(row, without, any_unlabelled)} for name, row, without in rows],
        "total": _numbers(counts.sum(0), unlabelled.sum(), any_unlabelled),
    }


def _numbers(row: Tensor, without: Tensor, any_unlabelled: bool) -> dict[str, object]:
    """Examples of each class (int64 [classes]) and `without` a label (int64 []), for one client or for all."""
    some = {"unlabelled": int(without)} if any_unlabelled else {}
    return {"examples": int(row.sum() + without), **some, "classes": row.tolist()}


def _wide_table(counts: Tensor, unlabelled: Tensor, title: str) -> Table:
    """One column for each class; an empty cell is a class that the client lacks."""
    table = _new_table(title, counts, unlabelled)
    if counts.shape[1] == 1:
        for cells in _first_cells(counts, unlabelled):
            table.add_row(*cells)
        return table
    for label, total in enumerate(counts.sum(0).tolist()):
        table.add_column(str(label), footer=str(total), justify="right")
    for cells, row in zip(_first_cells(counts, unlabelled), counts.tolist(), strict=True):
        table.add_row(*cells, *(str(count) if count else "" for count in row))
    return table


def _compact_table(counts: Tensor, unlabelled: Tensor, title: str) -> Table:
    table = _new_table(title, counts, unlabelled)
    table.add_column("classes", no_wrap=True, footer=str(int((counts.sum(0) > 0).sum())), justify="right")
    table.add_column("largest (class: examples)", footer=_largest(counts.sum(0)), no_wrap=True, overflow="ellipsis")
    for cells, row in zip(_first_cells(counts, unlabelled), counts, strict=True):
        table.add_row(*cells, str(int((row > 0).sum())), _largest(row))
    return table


def _new_table(title: str, counts: Tensor, unlabelled: Tensor) -> Table:
    # Narrow: ten classes of MNIST fit into 80 columns.
    table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("client", footer="total", no_wrap=True)
    table.add_column("examples", footer=str(int(counts.sum() + unlabelled.sum())), justify="right", no_wrap=True)
    if unlabelled.any():
        table.add_column("no label", footer=str(int(unlabelled.sum())), justify="right", no_wrap=True)
    return table


def _first_cells(counts: Tensor, unlabelled: Tensor) -> Iterator[list[str]]:
    """The cells of each client's row that stand before its classes."""
    sizes = (counts.sum(1) + unlabelled).tolist()
    for name, size, without in zip(client_ids(len(counts)), sizes, unlabelled.tolist(), strict=True):
        yield [name, str(size)] + ([str(without)] if unlabelled.any() else [])


def _largest(row: Tensor) -> str:
    order = row.argsort(descending=True, stable=True)[:LARGEST].tolist()
    return ", ".join(f"{label}: {int(row[label])}" for label in order if row[label] > 0)
