"""Lays out a partition: how many examples of each class every client gets."""

from __future__ import annotations

from rich import box
from rich.table import Table
from torch import Tensor

from feddkd.config import Config
from feddkd.data.partitions import client_ids

MAX_COLUMNS = 20
"""With more classes than this the table lists each client's largest classes instead of one column a class."""

LARGEST = 5


def table_of(counts: Tensor, title: str) -> Table:
    """A table of `counts` (int64 [clients, classes])."""
    return _wide_table(counts, title) if counts.shape[1] <= MAX_COLUMNS else _compact_table(counts, title)


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


def summary_of(settings: Config, counts: Tensor) -> dict[str, object]:
    rows = counts.tolist()
    return {
        "data": settings.data.name,
        "partition": settings.partition.name,
        "seed": settings.seed,
        "clients": [{"id": name, "examples": sum(row), "classes": row} for name, row in zip(client_ids(len(rows)), rows, strict=True)],
        "total": {"examples": int(counts.sum()), "classes": counts.sum(0).tolist()},
    }


def _wide_table(counts: Tensor, title: str) -> Table:
    """One column for each class; an empty cell is a class that the client lacks."""
    table = _new_table(title, counts)
    for label, total in enumerate(counts.sum(0).tolist()):
        table.add_column(str(label), footer=str(total), justify="right")
    for name, row in zip(client_ids(len(counts)), counts.tolist(), strict=True):
        table.add_row(name, str(sum(row)), *(str(count) if count else "" for count in row))
    return table


def _compact_table(counts: Tensor, title: str) -> Table:
    table = _new_table(title, counts)
    table.add_column("classes", footer=str(int((counts.sum(0) > 0).sum())), justify="right")
    table.add_column("largest (class: examples)", footer=_largest(counts.sum(0)))
    for name, row in zip(client_ids(len(counts)), counts, strict=True):
        table.add_row(name, str(int(row.sum())), str(int((row > 0).sum())), _largest(row))
    return table


def _new_table(title: str, counts: Tensor) -> Table:
    # Narrow: ten classes of MNIST fit into 80 columns.
    table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("client", footer="total", no_wrap=True)
    table.add_column("examples", footer=str(int(counts.sum())), justify="right", no_wrap=True)
    return table


def _largest(row: Tensor) -> str:
    order = row.argsort(descending=True, stable=True)[:LARGEST].tolist()
    return ", ".join(f"{label}: {int(row[label])}" for label in order if row[label] > 0)
