"""A registry of Prometheus metrics, in which a collector that fails takes no other with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class MetricsRegistry(CollectorRegistry):
    """Leaves out the metrics of a collector for as long as it raises an error, and logs the first one."""

    def register(self, collector: Collector) -> None:
        super().register(_Guarded(collector))

    def unregister(self, collector: Collector) -> None:
        super().unregister(next(each for each in self._collector_to_names if isinstance(each, _Guarded) and each.guarded is collector))


class _Guarded(Collector):
    """Collects nothing where the collector raises an error.

    Attributes:
        guarded: the collector.
    """

    def __init__(self, collector: Collector) -> None:
        self.guarded = collector
        self._has_failed = False

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, as the collector does."""
        describe: Callable[[], Iterable[Metric]] = getattr(self.guarded, "describe", list)
        return describe()

    def collect(self) -> Iterable[Metric]:
        try:
            found = list(self.guarded.collect())
        except Exception:
            if not self._has_failed:
                names = ", ".join(metric.name for metric in self.describe()) or type(self.guarded).__name__
                logger.warning("the metrics %s cannot be collected, and are left out", names, exc_info=True)
            self._has_failed = True
            return []
        self._has_failed = False
        return found
