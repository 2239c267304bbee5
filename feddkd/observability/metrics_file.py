"""Keeps metrics in a file, in the format of node_exporter's textfile collector: they outlive the process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.registry import Collector

from feddkd.errors import ConfigError

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 15.0
"""Seconds between two writes: a file that is much older, of a run that has no end, is of a process that was killed."""


class MetricsFile:
    """Writes the metrics every `WRITE_EVERY_S` seconds, on a thread of its own, and a last time when it is closed."""

    def __init__(self, registry: CollectorRegistry, file: Path, every_s: float = WRITE_EVERY_S) -> None:
        """Write it a first time.

        Raises:
            ConfigError: it cannot be written.
        """
        self._file = file
        self._every_s = every_s
        self._metrics = _OfTheRun(registry)
        self._closing = threading.Event()
        try:
            self._write()
        except OSError as error:
            raise ConfigError(f"cannot write --metrics-textfile {file}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._keep_writing, name="feddkd-metrics-file", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write the file a last time."""
        self._closing.set()
        self._thread.join()

    def _keep_writing(self) -> None:
        told = False
        while True:
            is_last = self._closing.wait(self._every_s)
            try:
                self._write()
                told = False
            except OSError as error:  # a full disk does not end a run for its metrics
                if not told:
                    logger.warning("cannot write %s: %s; it is tried again", self._file, error.strerror)
                told = True
            except Exception:
                if not told:
                    logger.exception("cannot write %s; it is tried again", self._file)
                told = True
            if is_last:
                return

    def _write(self) -> None:
        """Replace the file: who reads it sees all of it or all of the one before."""
        write_to_textfile(str(self._file), self._metrics)


class _OfTheRun(Collector):
    """The metrics of feddkd alone: node_exporter has those of a process itself, and refuses them twice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.name.startswith("feddkd_"))
