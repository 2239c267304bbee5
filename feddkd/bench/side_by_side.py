"""Several configurations side by side: the rows of the comparison, and what each reaches at equal budgets.

FedDKD moves J + 1 times the bytes of FedAvg a round. So in every comparison stand FedDKD, FedAvg, the control
`fedavg_sgd`, which spends FedDKD's bytes on true labels, and FedAvg with J + 1 times the rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feddkd import algorithms
from feddkd.algorithms.fedavg import FedAvgConfig
from feddkd.algorithms.feddkd import DKD_STEP, FedDKD
from feddkd.bench.runs import Job, delivery_bytes, differences, read_curve
from feddkd.bench.verdict import verdicts
from feddkd.config import Config, MainMetric
from feddkd.config.main_metric import metric_difference
from feddkd.engines.simulation import EngineName
from feddkd.errors import ConfigError, StateError
from feddkd.observability.budgets import Cost, Curve, Reading, Spread, common_budget, cost_to_target, reading_within, spread
from feddkd.observability.run_folder import RunFolder

SHARED_TABLES = ("data.", "partition.", "model.")
MAY_DIFFER = ("data.root", "data.workers")
HEADER_TOLERANCE = 1e-3
"""Relative; message headers differ by some bytes between algorithms that move the same tensors, and nobody should lose a round for them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the comparison.

    Attributes:
        config: what the row compares; the seed is each run's own.
        source: the row whose runs it is read from: itself, or FedAvg with more rounds.
    """

    label: str
    config: Config
    source: Row | None = None

    @property
    def rounds(self) -> int:
        return self.config.rounds

    @property
    def reads_another_run(self) -> bool:
        return self.source is not None

    def job(self, seed: int, out: Path, engine: EngineName) -> Job:
        """The run that this row is read from."""
        row = self.source or self
        folder = out / f"{_folder_name(row.label)}-seed{seed}"
        return Job(row.config.model_copy(update={"seed": seed}), folder, engine)


def _folder_name(label: str) -> str:
    return label.replace(" ", "-").replace(":", ".")


@dataclass(frozen=True, slots=True)
class Run:
    """What one row did with one seed; model_sha256 is None if its final model was not kept."""

    seed: int
    curve: Curve
    model_sha256: str | None


def make_rows(configs: Sequence[tuple[str, Config]], *, baselines: bool = True) -> list[Row]:
    """The given configurations by label, the controls that are not among them, and which rows share their runs.

    Args:
        baselines: whether FedDKD, FedAvg and the controls are added where nobody gave them.

    Raises:
        ConfigError: configurations cannot be compared; the message names the key.
    """
    _check_comparable(configs)
    added = _controls([config for _, config in configs]) if baselines else []
    entries = [*configs, *added]
    rows: list[Row] = []
    for label, config in entries:
        taken = {_folder_name(row.label) for row in rows}
        names = itertools.chain([label], (f"{label}-{number}" for number in itertools.count(2)))
        rows.append(Row(next(name for name in names if _folder_name(name) not in taken), config))
    return [replace(row, source=_longer(row, rows)) for row in rows]


def _check_comparable(configs: Sequence[tuple[str, Config]]) -> None:
    (first_label, first), *others = configs
    for label, config in others:
        if (found := metric_difference(config, first)) is not None:
            raise ConfigError(f"{label} and {first_label} cannot be compared: {found}")
        for key, here, there in differences(config, first):
            if key.startswith(SHARED_TABLES) and key not in MAY_DIFFER:
                raise ConfigError(f"{label} and {first_label} cannot be compared: {key} = {here!r} in one, {there!r} in the other")


def _controls(configs: Sequence[Config]) -> list[tuple[str, Config]]:
    """FedDKD, FedAvg, `fedavg_sgd` and FedAvg at FedDKD's bytes, as far as nobody gave them; all train with the plain cross-entropy."""
    given = next((config for config in configs if _is_feddkd(config)), None)
    dkd = given or _with_algorithm(configs[0], "feddkd")
    # With other codecs than FedDKD's, as many exchanges would not be as many bytes.
    plain = [config for config in configs if config.algorithm == FedAvgConfig() and config.communication == dkd.communication]
    fedavg = plain[0] if plain else _with_algorithm(dkd, "fedavg")
    exchanges = dkd.dkd.steps + (dkd.dkd.start != "previous")
    rounds = dkd.rounds * exchanges
    wanted = {
        "feddkd": (dkd, given is None),
        "fedavg": (fedavg, not plain),
        "fedavg_sgd": (_with_algorithm(dkd, "fedavg_sgd"), all(config.algorithm.name != "fedavg_sgd" for config in configs)),
        f"fedavg x{exchanges}": (
            fedavg.model_copy(update={"rounds": rounds}),
            all(config.rounds != rounds for config in [*plain, fedavg]),
        ),
    }
    return [(label, config) for label, (config, is_missing) in wanted.items() if is_missing]


def _is_feddkd(config: Config) -> bool:
    """Whether the teachers are distilled: by the built-in algorithm or by one that extends it, but not by those without a teacher."""
    algorithm = algorithms.find(config.algorithm.name)
    return issubclass(algorithm, FedDKD) and algorithm.step_exchange == DKD_STEP


def _with_algorithm(config: Config, name: str) -> Config:
    """The same run with another algorithm at its defaults."""
    return Config.parse({**config.model_dump(mode="json", exclude_none=True), "algorithm": {"name": name}})


def _longer(row: Row, rows: Sequence[Row]) -> Row | None:
    """FedAvg with the same settings and the most rounds: its first rounds are this row, to the bit."""
    if row.config.algorithm.name != "fedavg":
        return None
    same = [other for other in rows if {key for key, _, _ in differences(other.config, row.config)} <= {"rounds"}]
    longest = max(same, key=lambda other: other.rounds)
    return longest if longest.rounds > row.rounds else None


def read_run(row: Row, seed: int, out: Path, engine: EngineName) -> Run:
    """Read what a row did from the record of its run. Raises StateError if there is none, or only a part of one."""
    folder = RunFolder.load(row.job(seed, out, engine).folder)
    if folder.summary is None or len(folder.rounds) != folder.config.rounds:
        raise StateError(f"{folder.path} holds {len(folder.rounds)} of {folder.config.rounds} rounds; delete it to run it again")
    curve = read_curve(folder).first(row.rounds, delivery_bytes(folder))
    return Run(seed, curve, None if row.reads_another_run else folder.summary.model_sha256)


Runs = Mapping[str, Sequence[Run]]
"""The runs of every row by its label, one for each seed."""


def results(rows: Sequence[Row], runs: Runs, target: float | None) -> dict[str, Any]:
    """Everything the comparison says, ready for JSON: numbers that do not exist are None.

    Args:
        target: the level of the metric whose cost is stated; None for none.
    """
    metric = MainMetric.of(rows[0].config)
    longest = [row for row in rows if not row.reads_another_run]
    longer = {row.source.label for row in rows if row.source is not None}
    seeds = [run.seed for run in runs[rows[0].label]]
    shorter = [row for row in rows if row.label not in longer]
    at_rounds = _at_budget(shorter, runs, lambda curve: curve.rounds)
    at_bytes = _at_budget(longest, runs, lambda curve: curve.wire_bytes, HEADER_TOLERANCE)
    return {
        "seeds": seeds,
        "metric": metric.name,
        "minimised": metric.minimised,
        f"target_{metric.code}": target,
        "summary": {row.label: _summary(row, runs[row.label]) for row in rows},
        "verdicts": {
            "of": at_bytes["anchor"],
            "equal_rounds": verdicts(at_rounds, at_rounds["anchor"], len(seeds), metric),
            "equal_wire_bytes": verdicts(at_bytes, at_bytes["anchor"], len(seeds), metric),
        },
        "equal_rounds": at_rounds,
        "equal_wire_bytes": at_bytes,
        "equal_gradient_evaluations": _at_budget(longest, runs, lambda curve: curve.gradient_evaluations),
        "to_target": {row.label: _to_target(runs[row.label], target) for row in longest} if target is not None else {},
        "runs": [_run(row, run) for row in rows for run in runs[row.label]],
    }


def _summary(row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    code = MainMetric.of(row.config).code
    return {
        "algorithm": row.config.algorithm.name,
        "rounds": row.rounds,
        f"final_{code}": _numbers(spread(run.curve.final_score for run in runs)),
        f"best_{code}": _numbers(spread(run.curve.best_score for run in runs)),
        "wire_bytes": _numbers(spread(run.curve.wire_bytes[-1] for run in runs)),
        "gradient_evaluations": _numbers(spread(run.curve.gradient_evaluations[-1] for run in runs)),
        "seconds": _numbers(spread(run.curve.seconds[-1] for run in runs)),
        "config": row.config.model_dump(mode="json", exclude_none=True, exclude={"seed"}),
    }


def _at_budget(rows: Sequence[Row], runs: Runs, cost: Callable[[Curve], Sequence[Cost]], tolerance: float = 0.0) -> dict[str, Any]:
    """Every row's metric at what the first FedDKD row spends, or the first row where there is none of FedDKD.

    Also the share of it that a row spends before it ends.

    A row that ends before the budget is spent could have gone on, so it is compared only by its share.
    A run whose cost is 0 at its end was not counted (an algorithm of the user's own may leave gradient
    evaluations out), and has no value here.

    Args:
        tolerance: relative; by so much a row may be over the budget.
    """
    anchor = next((row for row in rows if _is_feddkd(row.config)), rows[0])
    budget = common_budget(cost(run.curve) for run in runs[anchor.label])
    table = {}
    for row in rows:
        readings: list[Reading | None] = [
            reading_within(run.curve.scores, cost(run.curve), budget * (1 + tolerance)) if cost(run.curve)[-1] else None
            for run in runs[row.label]
        ]
        table[row.label] = {
            MainMetric.of(row.config).code: _numbers(spread(reading.score if reading else None for reading in readings)),
            "rounds": [reading.round if reading else None for reading in readings],
            "share_spent": round(min(1.0, *(cost(run.curve)[-1] / budget if budget else 1.0 for run in runs[row.label])), 4),
        }
    return {"anchor": anchor.label, "budget": int(budget), "rows": table}


def _to_target(runs: Sequence[Run], target: float) -> dict[str, Any]:
    """Costs of the first round at the target; a mean only if every seed got there."""
    costs = {
        name: [cost_to_target(run.curve.scores, getattr(run.curve, name), target, run.curve.metric) for run in runs]
        for name in ("rounds", "wire_bytes", "seconds")
    }
    reached = sum(number is not None for number in costs["rounds"])
    return {"reached": reached, "of": len(runs), **{name: _numbers(spread(values)) for name, values in costs.items()}}


def _run(row: Row, run: Run) -> dict[str, Any]:
    seconds, code = [0.0, *run.curve.seconds], run.curve.metric.code
    return {
        "algorithm": row.label,
        "seed": run.seed,
        f"final_{code}": run.curve.final_score,
        f"best_{code}": run.curve.best_score,
        "seconds": run.curve.seconds[-1],
        "model_sha256": run.model_sha256,
        code: list(run.curve.scores),
        "cumulative_wire_bytes": list(run.curve.wire_bytes),
        "cumulative_gradient_evaluations": list(run.curve.gradient_evaluations),
        "round_seconds": [round(end - start, 3) for start, end in itertools.pairwise(seconds)],
    }


def _numbers(found: Spread | None) -> dict[str, float | None] | None:
    """A spread for JSON, in the digits that mean something."""
    if found is None:
        return None
    numbers = {"mean": found.mean, "deviation": found.deviation, "min": found.lowest, "max": found.highest}
    return {name: None if value is None else round(value, 6) for name, value in numbers.items()}
