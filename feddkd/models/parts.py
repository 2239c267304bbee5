"""Divide the tensors of a network by when they travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from feddkd.tensors import Schema, Tensors, TensorSpec, same_storage


@dataclass(frozen=True, slots=True)
class Parts:
    """Which tensors of a network travel in every round, and which once.

    Attributes:
        travelling: trainable parameters and the buffers that training changes: the global model.
        constants: everything else: frozen parameters, constant buffers, and the first values of `local` buffers.
        local: names of the buffers in `constants` that each client keeps for itself (`model.local_buffers`).
        tied: further names of a tensor, each with the name under which it travels.
    """

    travelling: Schema
    constants: Schema = field(default_factory=lambda: Schema([]))
    local: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, changed: frozenset[str], *, local_buffers: bool) -> Parts:
        """Divide a network.

        Args:
            changed: what training changes besides trainable parameters, as `check_model` returns it.
            local_buffers: buffers that change stay at each client.
        """
        whole, tied = Schema.of_module(module), tied_names(module)
        moving = changed | {tied[name] for name in changed if name in tied}
        local = frozenset(spec.name for spec in whole.specs if local_buffers and spec.name in moving and not spec.trainable)
        travels = {spec.name for spec in whole.specs if spec.trainable or (spec.name in moving and spec.name not in local)}
        return cls(
            Schema(spec for spec in whole.specs if spec.name in travels),
            Schema(spec for spec in whole.specs if spec.name not in travels),
            local,
            tied,
        )

    def model_of(self, module: nn.Module) -> Tensors:
        """Copy the tensors that travel in every round."""
        return Tensors.copy_of(self.travelling, module.state_dict())

    def constants_of(self, module: nn.Module) -> Tensors:
        """Copy the tensors that travel once."""
        return Tensors.copy_of(self.constants, module.state_dict())

    def whole(self, model: Tensors, constants: Tensors) -> Tensors:
        """Join a global model and what travels once to all entries of the network's `state_dict`, tied names included.

        `load_state_dict` takes the result. A network whose tensors all travel, without ties, is its model.
        """
        if not len(self.constants) and not self.tied:
            return model
        found: dict[str, Tensor] = {**model, **constants}
        found |= {name: found[twin] for name, twin in self.tied.items()}
        specs = {**self.constants.by_name, **self.travelling.by_name}
        twins = [TensorSpec(name, specs[twin].dtype, specs[twin].shape, specs[twin].trainable) for name, twin in self.tied.items()]
        return Tensors.copy_of(Schema([*specs.values(), *twins]), found)


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return the names in `state_dict` that `Schema.of_module` leaves out, each with the name that stands for it."""
    chosen = Schema.of_module(module).by_name
    entries = module.state_dict()
    kept = {same_storage(entries[name]): name for name in chosen if entries[name].numel()}
    return {name: kept[same_storage(tensor)] for name, tensor in entries.items() if name not in chosen}
