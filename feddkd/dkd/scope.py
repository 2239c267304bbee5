"""Choose the parameters that a DKD step moves and sends: all of them, or those that patterns name."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

from feddkd.errors import ConfigError
from feddkd.tensors import Schema, TensorSpec

Scope = Literal["full"] | Sequence[str]
"""`dkd.scope`."""


def in_scope(model: Schema, scope: Scope) -> Schema:
    """Select the trainable parameters of a model that a step moves.

    Args:
        model: schema of the whole model.
        scope: "full", or names and shell patterns (`fc2.*`); letter case counts.

    Raises:
        ConfigError: a pattern matches no trainable parameter.
    """
    trainable = model.trainable
    if scope == "full":
        return trainable
    for pattern in scope:
        if not any(fnmatch.fnmatchcase(spec.name, pattern) for spec in trainable.specs):
            raise ConfigError(f"dkd.scope: {pattern!r} matches none of the parameters, which are {', '.join(trainable.by_name)}")
    return Schema(spec for spec in trainable.specs if _matches(spec, scope))


def in_scope_and_untrained(model: Schema, scope: Scope) -> Schema:
    """Return the same and all buffers, which take no gradient. Raises ConfigError."""
    moved, trainable = in_scope(model, scope), model.trainable
    return Schema(spec for spec in model.specs if spec.name in moved.by_name or spec.name not in trainable.by_name)


def _matches(spec: TensorSpec, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(spec.name, pattern) for pattern in patterns)
