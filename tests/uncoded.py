"""The part of a hand-made cohort that is about codecs: there are none."""

from __future__ import annotations

from feddkd.tensors import Tensors


class UncodedCohort:
    """What is sent is what arrives; `exchange` has to note it in `sent`."""

    sent: Tensors

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        self.sent = model
        return model

    def note(self, name: str, value: float) -> None:
        """There is no record."""
