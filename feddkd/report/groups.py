"""Which runs belong together: the same configuration but for the seed, under a label that tells it from the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.config import Config, MainMetric
from feddkd.config.communication import PLAIN, proposals
from feddkd.config.table import flatten
from feddkd.observability.run_folder import RunFolder
from feddkd.report.looks import Look, looks_of
from feddkd.report.names import rounds_phrase, spoken_name
from feddkd.report.units import shortened

ALGORITHM = "algorithm.name"
SEED = "seed"
ROUNDS = "rounds"
PRESET = "communication.preset"

_DEFAULTS = flatten(Config().model_dump(mode="json"))

LABEL_LETTERS = 300
"""A longer label is cut: a setting of the user's own may be a text of any length."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a configuration is called.

    Attributes:
        label: for a reader, `FedAvg, 21 × the rounds`.
        code: for a program, `fedavg rounds=210`.
    """

    label: str
    code: str


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that repeat each other with different seeds; pictures show their mean and their range.

    Attributes:
        label: what a reader calls it; `code` is the same in code names.
        look: its colour, dashes and marker, the same in every picture and table.
    """

    label: str
    code: str
    look: Look
    runs: tuple[RunFolder, ...]

    @property
    def metric(self) -> MainMetric:
        """What its models are judged by."""
        return self.runs[0].metric

    @property
    def seeds(self) -> str:
        """The seeds of the runs, for a reader."""
        return ", ".join(str(run.config.seed) for run in self.runs)


def group_runs(runs: Sequence[RunFolder]) -> list[Group]:
    """Return groups in the order of their first runs."""
    members: dict[str, list[RunFolder]] = {}
    for run in runs:
        own = {key: value for key, value in settings_of(run.config).items() if key != SEED}
        members.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    configs = [found[0].config for found in members.values()]
    looks = looks_of([config.algorithm.name for config in configs])
    return [
        Group(name.label, name.code, look, tuple(found))
        for name, look, found in zip(names_of(configs), looks, members.values(), strict=True)
    ]


def names_of(configs: Sequence[Config]) -> list[Name]:
    """Return a name for each configuration that tells it from the others.

    It is the algorithm's name, and, where several configurations share that algorithm, the settings
    in which they differ. More rounds than the fewest and codecs are always said: such a run is not
    what its algorithm's name alone makes one expect.
    """
    settings = [_but_seed(settings_of(config)) for config in configs]
    fewest = min((own[ROUNDS] for own in settings), default=0)
    return [_name(own, settings, fewest) for own in settings]


def _but_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != SEED}


def _name(own: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], fewest: int) -> Name:
    algorithm = str(own.get(ALGORITHM))
    rivals = [other for other in settings if other.get(ALGORITHM) == own.get(ALGORITHM)]
    keys = [key for key in differing(rivals) if not _follows_preset(own, key, rivals)]
    if own[ROUNDS] > fewest and ROUNDS not in keys:
        keys.append(ROUNDS)
    keys += [key for key in _codec_keys(own) if key not in keys]
    code = " ".join([algorithm, *_named(own, keys)])
    said = _named(own, [key for key in keys if key != ROUNDS])
    if own[ROUNDS] > fewest:
        said.append(rounds_phrase(own[ROUNDS], fewest))
    label = ", ".join([spoken_name(algorithm), *said])
    return Name(shortened(label, LABEL_LETTERS), shortened(code, LABEL_LETTERS))


def settings_of(config: Config) -> dict[str, Any]:
    """Return every setting of a run by its dotted key; a simulation's number of clients has one key of its two."""
    found = flatten(config.model_dump(mode="json"))
    if found.get("scheduler.clients") == found["partition.clients"]:
        del found["scheduler.clients"]
    return found


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same everywhere."""
    settings = list(settings)
    keys = dict.fromkeys(key for own in settings for key in own)
    return [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]


def _codec_keys(own: Mapping[str, Any]) -> list[str]:
    """What says that a run had codecs: a picture must not credit an algorithm with what they save."""
    if own.get(PRESET, "none") != "none":
        return [PRESET]
    return [key for key in ("communication.up", "communication.down") if own.get(key, PLAIN) != PLAIN]


def _follows_preset(own: Mapping[str, Any], key: str, rivals: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a setting is what its preset says, or the default where only the preset of another says otherwise."""
    if not any(key in _proposed(rival) for rival in rivals):
        return False
    return bool(own.get(key) == {**_DEFAULTS, **_proposed(own)}.get(key))


def _proposed(own: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset of a configuration proposes to it, by dotted key; nothing for one without a preset."""
    return flatten(proposals(str(own.get(PRESET, "none")), str(own.get(ALGORITHM))))


def _named(own: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """`steps=5`, or `dkd.lr=0.01` where another key that differs is called `lr` as well; `name` is said by its table.

    A setting that a configuration does not have is left out of its label.
    """
    last = [_short(key) for key in keys]
    names = [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]
    return [f"{name}={as_text(own[key])}" for key, name in zip(keys, names, strict=True) if own.get(key) is not None]


def _short(key: str) -> str:
    """The last part of a dotted key; of a codec of one exchange, the exchange as well."""
    table, *rest = key.removesuffix(".name").split(".")
    return ".".join(rest) if table == "communication" and len(rest) > 1 else (rest or [table])[-1]


def as_text(value: Any) -> str:
    """A setting's value as TOML would write it, strings without their quotes."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
