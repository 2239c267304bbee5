"""What hand-made cohorts have in common: no codec, and notes that nobody reads but a test."""

from __future__ import annotations

from functools import cached_property

from feddkd.tensors import Tensors


class UncodedCohort:
    """What is sent is what arrives; `exchange` has to put it into `sent`."""

    sent: Tensors

    @cached_property
    def notes(self) -> dict[str, float]:
        return {}

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        self.sent = model
        return model

    def note(self, name: str, value: float) -> None:
        self.notes[name] = value
