"""TensorBoard: event files in the folder `tensorboard` of the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from feddkd.observability.trackers.tracker import TrackedRun, Tracker
from feddkd.registry import TRACKERS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Writes scalars by round, those below `by_bytes/` by bytes, and the configuration as text."""

    extra: ClassVar[str] = "tensorboard"
    modules: ClassVar[tuple[str, ...]] = ("tensorboard",)

    _writer: SummaryWriter

    def begin(self, run: TrackedRun) -> str:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / FOLDER
        self._writer = SummaryWriter(str(folder))
        if not run.known_as:
            self._text("run", run.tags)
            self._text("configuration", run.parameters)
        return str(folder)

    def log(self, round_number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)
        for name, value in by_bytes.items():
            self._writer.add_scalar(f"by_bytes/{name}", value, wire_bytes)
        self._writer.flush()

    def end(self, *, completed: bool, model: Path | None) -> None:
        outcome = {"outcome": "completed" if completed else "failed"}
        self._text("end", outcome | ({"model": str(model)} if model is not None else {}))
        self._writer.close()

    def _text(self, tag: str, lines: Mapping[str, str]) -> None:
        table = "\n".join(f"    {name} = {value}" for name, value in lines.items())  # four spaces: Markdown shows them as they are
        self._writer.add_text(tag, table)
