"""The table `[algorithm]`: which algorithm runs, its own settings, and what clients minimise in local training.

The settings of an algorithm are in its own file. `name` chooses their class, so a setting that an
algorithm does not have is refused by name. The algorithms whose whole idea is a local loss are local
objectives too: FedDKD with `local_objective = "fedntd"` is FedDKD whose clients train as FedNTD's do.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from feddkd.config.named import ChosenByName, NamedTable
from feddkd.config.table import ImportPath
from feddkd.registry import ALGORITHMS, OBJECTIVES


class CustomObjectiveConfig(NamedTable):
    """A local objective of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides `name`, as the TOML file has them."""
        return dict(self.model_extra or {})


def _objective_table(value: Any) -> Any:
    """`local_objective = "fedntd"` is short for `local_objective = { name = "fedntd" }`."""
    return {"name": value} if isinstance(value, str) else value


ObjectiveConfig = Annotated[NamedTable, ChosenByName(OBJECTIVES, CustomObjectiveConfig), BeforeValidator(_objective_table)]
"""What clients minimise in local training: a name, or a table with its settings."""


class AlgorithmTable(NamedTable):
    """The settings of an algorithm that leaves the local loss to `local_objective`.

    The settings of an algorithm with a local loss of its own are a `NamedTable`.
    """

    local_objective: ObjectiveConfig = Field(
        {"name": "cross_entropy"},
        validate_default=True,
        description='what clients minimise in local training: "fedntd", or { name = "fedntd", beta = 0.3 }',
    )


class CustomAlgorithmConfig(AlgorithmTable):
    """An algorithm of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides `name` and `local_objective`, as the TOML file has them."""
        return dict(self.model_extra or {})


AlgorithmConfig = Annotated[NamedTable, ChosenByName(ALGORITHMS, CustomAlgorithmConfig, default="feddkd")]
"""The settings of one algorithm; a table without a name is FedDKD's."""
