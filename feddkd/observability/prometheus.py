"""The Prometheus metrics of a run, in a registry of their own.

Label values come from short lists that are known before the run. No round number is a label. The run id is one only
in `feddkd_run_info`, and client ids only in `feddkd_site_*`, for a bounded number of clients. Sizes are in bytes,
times in seconds, ratios from 0 to 1; down is towards the client. docs/metrics.md lists every metric.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import PlatformCollector, ProcessCollector, disable_created_metrics

from feddkd import algorithms
from feddkd.config import Config
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts
from feddkd.observability.certificate_metrics import CertificateExpiry
from feddkd.observability.learning_metrics import LearningMetrics
from feddkd.observability.metrics import CommunicationMetrics, RunMetrics
from feddkd.observability.registry import MetricsRegistry
from feddkd.observability.scrape import scrape
from feddkd.observability.server_metrics import ServiceMetrics
from feddkd.observability.site_metrics import SiteMetrics
from feddkd.observability.web import Request, Response
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord

CERTIFICATE_ROLES = ("server", "client_ca")
"""Of the certificates that a server reads from files."""


class PrometheusMetrics(Observer):
    """Turns the scheduler's events into metrics, which can be read from any thread.

    Attributes:
        registry: holds all of them, and those of the process; not the library's global one, so runs do not collide.
        certificates: until when they are valid; NaN until it is given their files.
    """

    def __init__(self, config: Config) -> None:
        """Register every metric, each with its labels at 0 or, where 0 would be a claim, at NaN.

        Raises:
            ConfigError: there is no such algorithm.
        """
        # The library's switch is global: a `_created` series for each of ours would double them and say nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = MetricsRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        exchanges = (*algorithms.find(config.algorithm.name).exchanges(config), DELIVER)
        self._run = RunMetrics(self.registry, config)
        self._communication = CommunicationMetrics(self.registry, exchanges)
        self._learning = LearningMetrics(self.registry, config)
        self._sites = SiteMetrics(self.registry, config)
        self._service = ServiceMetrics(self.registry)
        self.certificates = CertificateExpiry(self.registry, CERTIFICATE_ROLES)

    def page(self, request: Request) -> Response:
        """Answer a scrape."""
        return scrape(self.registry, request)

    def clients_available(self, examples: Mapping[str, ExampleCounts]) -> None:
        self._sites.count(examples)

    def run_started(self, run_id: str, rounds: int) -> None:
        self._run.start(run_id, rounds)

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self._run.round_started(round_number)

    def engine_ready(self, engine: Engine) -> None:
        self._communication.watch(engine)
        self._sites.watch(engine)
        self._service.watch(engine)

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._run.exchange_done()
        self._communication.add(record)
        self._learning.add(record)
        self._sites.add(record)
        self._sites.outliers(record.outliers)

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:
        self._learning.evaluated("server", evaluation)
        self._learning.raise_best(evaluation)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self._run.rounds.labels("failed").inc()

    def paused(self, reason: str) -> None:
        self._run.enter("paused")

    def round_done(self, record: RoundRecord) -> None:
        self._run.rounds.labels("completed").inc()
        self._run.round_duration.observe(record.seconds)
        self._communication.round_done(record)
        if record.evaluation is not None:
            self._learning.raise_best(record.evaluation)

    def run_done(self, record: RunRecord) -> None:
        self._end("completed")

    def run_failed(self, reason: str) -> None:
        self._end("failed")

    def run_stopped(self, reason: str) -> None:
        self._end("stopped")

    def _end(self, outcome: str) -> None:
        self._service.ended(outcome)
        self._run.enter(outcome)
