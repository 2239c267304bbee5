"""Notifies the observers of a run, and isolates their failures from each other and from the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

from feddkd.errors import FedDKDError
from feddkd.imports import one_line
from feddkd.scheduler.records import Observer
from feddkd.text import printable

logger = logging.getLogger(__name__)


class Observers:
    """The observers of one run.

    Essential observers, which keep the record, are told first, and what they raise ends the run.
    Any other observer that raises is logged once and is told nothing more.
    """

    def __init__(self, observers: Iterable[Observer] = (), was_stopped: Callable[[], bool] = bool) -> None:
        """Args:
        was_stopped: says of a run that ended early whether somebody stopped it; by default it failed.
        """
        self._was_stopped = was_stopped
        self._observers = sorted(observers, key=lambda observer: not observer.essential)

    @classmethod
    def of(cls, observers: Observers | Iterable[Observer]) -> Observers:
        """Return the object itself if it is one already, so that a dropped observer stays dropped."""
        return observers if isinstance(observers, Observers) else cls(observers)

    def add(self, observer: Observer) -> None:
        """Let another observer hear what comes from now on."""
        self._observers.append(observer)

    def tell(self, event: Callable[[Observer], None], *, history: bool = False) -> None:
        """Call `event` with every observer.

        Args:
            history: it happened in an earlier process of the run.

        Raises:
            Exception: what an essential observer raised; later observers do not hear of the event.
        """
        for observer in list(self._observers):
            if history and not observer.follows_history:
                continue
            try:
                event(observer)
            except Exception as error:  # whatever it is, only an essential observer may end the run
                if observer.essential:
                    raise
                self._drop(observer, error)

    def tell_failure(self, reason: str) -> None:
        """Tell every observer that the run failed, or was stopped. Raises nothing: the run has its reason already."""
        is_stopped = self._was_stopped()
        for observer in list(self._observers):
            try:
                if is_stopped:
                    observer.run_stopped(reason)
                else:
                    observer.run_failed(reason)
            except Exception as error:  # noqa: BLE001  # one failure must not hide the other
                self._drop(observer, error)

    @contextlib.contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Tell every observer of what is raised here, before it goes on."""
        try:
            yield
        except BaseException as error:
            self.tell_failure(_reason(error))
            raise

    def _drop(self, observer: Observer, error: Exception) -> None:
        self._observers.remove(observer)
        name = type(observer).__name__
        logger.warning("%s failed and is switched off for the rest of this run: %s", name, printable(one_line(error)))
        logger.info("where %s failed", name, exc_info=error)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FedDKDError) else one_line(error)
