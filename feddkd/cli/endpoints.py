"""What a run shows to other programs, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feddkd.cli.options import METRICS_HOST


@dataclass(frozen=True, slots=True)
class Port:
    """A port for other programs to ask at.

    Attributes:
        number: None for none; 0 takes a free one.
    """

    number: int | None = None
    host: str = METRICS_HOST


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a run shows to other programs, and where.

    Attributes:
        linger_s: seconds that the metrics and the live page stay after the run has ended.
        metrics_textfile: holds the metrics, also after the process has ended; None for no file.
        trackers: of experiments, by name or import path.
        traces: whether traces are sent with OpenTelemetry.
    """

    metrics: Port = field(default_factory=Port)
    live: Port = field(default_factory=Port)
    linger_s: float = 0.0
    metrics_textfile: Path | None = None
    trackers: tuple[str, ...] = ()
    traces: bool = False

    @property
    def ports(self) -> Mapping[str, Port]:
        """The ports that are wanted, by what is served there."""
        wanted = {"metrics": self.metrics, "live page": self.live}
        return {name: port for name, port in wanted.items() if port.number is not None}
