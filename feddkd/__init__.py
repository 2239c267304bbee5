"""Federated learning with decentralized knowledge distillation, measured byte by byte.

`run` runs a federation and returns a `Run`; `load_run` reads one from its folder. The other names are
what an algorithm of one's own is made of. `import feddkd` takes no time: a name is imported when it
is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "ClientSide",
    "Cohort",
    "Config",
    "ConfigError",
    "ExchangeKind",
    "ExchangeRecord",
    "FedAvg",
    "FedDKD",
    "FedDKDError",
    "LocalObjective",
    "Observer",
    "Reply",
    "RoundRecord",
    "Run",
    "RunError",
    "ServerOptimizer",
    "Site",
    "Table",
    "Task",
    "Tensors",
    "TrackedRun",
    "Tracker",
    "__version__",
    "load_run",
    "own_settings",
    "run",
    "train_locally",
]

if TYPE_CHECKING:
    from feddkd.aggregator.server_optimizer import ServerOptimizer
    from feddkd.algorithms.base import Algorithm, ClientSide, Cohort, own_settings
    from feddkd.algorithms.fedavg import FedAvg
    from feddkd.algorithms.feddkd import FedDKD
    from feddkd.algorithms.local_training import train_locally
    from feddkd.algorithms.site import LocalObjective, Site
    from feddkd.api.results import Run, load_run
    from feddkd.api.running import run
    from feddkd.config import Config, Table
    from feddkd.errors import ConfigError, FedDKDError, RunError
    from feddkd.exchange import ExchangeKind, Reply, Task
    from feddkd.observability.trackers.tracker import TrackedRun, Tracker
    from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord
    from feddkd.tensors import Tensors
else:
    _MODULES = {
        "aggregator.server_optimizer": ["ServerOptimizer"],
        "algorithms.base": ["Algorithm", "ClientSide", "Cohort", "own_settings"],
        "algorithms.fedavg": ["FedAvg"],
        "algorithms.feddkd": ["FedDKD"],
        "algorithms.local_training": ["train_locally"],
        "algorithms.site": ["LocalObjective", "Site"],
        "api.results": ["Run", "load_run"],
        "api.running": ["run"],
        "config": ["Config", "Table"],
        "errors": ["ConfigError", "FedDKDError", "RunError"],
        "exchange": ["ExchangeKind", "Reply", "Task"],
        "observability.trackers.tracker": ["TrackedRun", "Tracker"],
        "scheduler.records": ["ExchangeRecord", "Observer", "RoundRecord"],
        "tensors": ["Tensors"],
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """List the public names, those that are not imported yet included."""
        return sorted({*globals(), *__all__})
