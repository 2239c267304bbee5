"""The table `[communication]`: how tensors are encoded, by exchange and direction, and presets of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from feddkd.config.problems import did_you_mean
from feddkd.config.table import Table
from feddkd.errors import ConfigError
from feddkd.registry import ALGORITHMS, CODECS, LARGEST_SHARE, codec_key

PLAIN: Literal["fp32"] = "fp32"
"""The name of no codec: elements travel as they are, whatever their dtype."""

_SHARE = r"0?\.[0-9]{1,6}"

STAND_INS = {"self_step": "dkd_step", "sgd_step": "dkd_step"}
"""Steps that are taken in place of others, by name."""


class _CodecName:
    """Annotates a string that is the name of a codec, or `PLAIN`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = "|".join(name.replace("SHARE", _SHARE) for name in (PLAIN, *CODECS))
        return {"pattern": f"^({names})$", "type": "string"}

    def _validate(self, name: str) -> str:
        # Nothing is imported for PLAIN, which is every default.
        if name != PLAIN and not (codec_key(name) in CODECS and re.fullmatch(rf"[^:]*(:{_SHARE})?", name)):
            *others, last = (PLAIN, *CODECS)
            known = [codec.replace("SHARE", name.partition(":")[2] or "SHARE") for codec in (PLAIN, *CODECS)]
            meant = did_you_mean(name, [codec for codec in known if codec != name])
            raise ValueError(f"{', '.join(others)} or {last} (topk:0.01 sends 1 %){meant}")
        return name


CodecName = Annotated[str, _CodecName()]
"""`topk:0.01` sends one element in a hundred."""


class ExchangeCodecs(Table):
    """`[communication.NAME]`: the codecs of one exchange, if they differ from those of `[communication]`."""

    up: CodecName | None = Field(None, description="codec of what clients send in this exchange")
    down: CodecName | None = Field(None, description="codec of what the server broadcasts in this exchange")


class CommunicationConfig(Table):
    """How tensors are encoded; a table `[communication.dkd_step]` sets `up` and `down` for one exchange."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ExchangeCodecs] = Field(init=False)
    extra_table: ClassVar[type[BaseModel]] = ExchangeCodecs

    preset: Literal["none", "lossless", "balanced", "frugal"] = Field(
        "none",
        description="sets codecs and, for FedDKD and its control, matching `[dkd]` settings; does not change keys that you set",
    )
    up: CodecName = Field(PLAIN, description="codec of what clients send; fp32 is none")
    down: CodecName = Field(PLAIN, description="codec of the steps that the server broadcasts, not one with a SHARE; fp32 is none")
    snapshot: Literal["fp32", "bf16", "int8"] = Field(
        PLAIN, description="codec of whole models, for clients that do not hold the previous one; needs a codec in `down`"
    )

    zstd: bool = Field(
        False,
        description="also compress every chunk without loss if this saves 3 %; needs the package zstandard at the server and all clients",
    )

    @model_validator(mode="after")
    def _codecs_make_sense(self) -> Self:
        for key, codec in self._codecs("up"):
            if ":" in codec and not 0 < float(codec.partition(":")[2]) <= LARGEST_SHARE:
                raise ValueError(f"{key} = {codec!r}: the share must be above 0 and at most {LARGEST_SHARE}")
        for key, codec in self._codecs("down"):
            if codec != PLAIN and CODECS[codec_key(codec)].error_feedback:
                raise ValueError(f"{key} = {codec!r}: it cannot be broadcast, because the elements that it leaves out would be lost")
        # A preset proposes a snapshot also where `down` is given: then there are none.
        if self.preset == "none" and self.snapshot != PLAIN and all(codec == PLAIN for _, codec in self._codecs("down")):
            raise ValueError(f"snapshot = {self.snapshot!r}: it has no effect without a codec in `down`; set `down`")
        return self

    def _codecs(self, direction: Literal["up", "down"]) -> list[tuple[str, str]]:
        """List all codecs of one direction, each with its key."""
        own = [(f"{name}.{direction}", getattr(codecs, direction)) for name, codecs in self.exchanges.items()]
        return [(direction, getattr(self, direction)), *((key, codec) for key, codec in own if codec is not None)]

    @property
    def exchanges(self) -> Mapping[str, ExchangeCodecs]:
        """The tables of single exchanges, by name."""
        return self.__pydantic_extra__

    def _table_of(self, exchange: str) -> ExchangeCodecs | None:
        """Find the table of an exchange; steps that stand in for `dkd_step` (`dkd.teacher`) have its table unless they have one."""
        return self.exchanges.get(exchange) or self.exchanges.get(STAND_INS.get(exchange, exchange))

    def codec_up(self, exchange: str) -> str:
        """Name the codec of what clients send."""
        own = self._table_of(exchange)
        return own.up if own is not None and own.up is not None else self.up

    def codec_down(self, exchange: str) -> str:
        """Name the codec of what the server broadcasts."""
        own = self._table_of(exchange)
        return own.down if own is not None and own.down is not None else self.down

    def check_exchanges(self, known: Iterable[str]) -> None:
        """Check that every table is named after an exchange of the algorithm.

        Raises:
            ConfigError: naming the first one that is not.
        """
        names = sorted(known)
        for name in self.exchanges:
            if name not in names:
                raise ConfigError(f"communication.{name}: this algorithm has no such exchange; it has {', '.join(names)}")


_FEW_STEPS = {"start": "previous", "steps": 10, "batch_size": 256, "lr": 0.015, "beta2": 0.99}
"""A batch costs nothing on the wire, so few steps with large ones."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    "lossless": {"dkd": {"start": "previous"}},
    "balanced": {"communication": {"up": "eden2", "down": "eden4", "snapshot": "bf16"}, "dkd": _FEW_STEPS},
    "frugal": {"communication": {"up": "eden1", "down": "eden2", "snapshot": "int8"}, "dkd": _FEW_STEPS},
}
"""What each preset proposes, by table. `[dkd]` is proposed to the algorithms that have its steps."""


def with_proposals(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a configuration what its preset proposes.

    Args:
        tree: tables as they are given; a key that is there is left alone.
    """
    filled = dict(tree)
    preset, algorithm = _given(tree.get("communication")).get("preset"), _given(tree.get("algorithm")).get("name", "feddkd")
    if isinstance(preset, str) and preset in PRESETS:  # else validation says what is wrong
        for table, values in proposals(preset, str(algorithm)).items():
            given = _given(tree.get(table))
            if isinstance(tree.get(table), BaseModel | Mapping | None):  # else validation says what is wrong
                filled[table] = {**(_fitting(values, given) if table == "dkd" else values), **given}
    return filled


def _fitting(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what does not go with the settings of `[dkd]` that are given."""
    if given.get("steps") == 0 or given.get("piggyback") is True:
        return {}  # a round that averages takes no steps of its own
    other_optimizer = given.get("optimizer", "adam") != "adam"
    return {key: value for key, value in values.items() if not (other_optimizer and key in ("lr", "beta2"))}


def proposals(preset: str, algorithm: str) -> dict[str, Mapping[str, Any]]:
    """Return what a preset proposes to an algorithm, by table: `[dkd]` only where it has such steps."""
    return {table: values for table, values in PRESETS[preset].items() if table != "dkd" or _takes_steps(algorithm)}


def _takes_steps(algorithm: str) -> bool:
    """Tell whether the rounds of a built-in algorithm take the steps of `[dkd]`."""
    known = ALGORITHMS.get(algorithm)
    return known is not None and known.takes_steps


def _given(table: Any) -> dict[str, Any]:
    """The keys of a table that were given; it may have been validated before."""
    if isinstance(table, BaseModel):
        return {key: getattr(table, key) for key in table.model_fields_set}
    return dict(table) if isinstance(table, Mapping) else {}
