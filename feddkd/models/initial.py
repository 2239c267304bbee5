"""Build the network that a server starts from, and say what a file of its model holds."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from feddkd.compression.constants import NO_CONSTANTS, Constants
from feddkd.config import Config, DataConfig
from feddkd.data.datasets import DataInfo, describe
from feddkd.errors import ConfigError
from feddkd.models.check import form_of, not_finite
from feddkd.models.parts import Parts
from feddkd.models.registry import build
from feddkd.tasks.chosen import task_of
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics
from feddkd.tensors import Schema, Tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WholeModel:
    """What a file of the global model holds besides the tensors that travel in every round.

    Attributes:
        parts: how the network is divided.
        constants: the tensors that do not travel in every round.
        about: the file's metadata: the network, the classes and the inputs.
    """

    parts: Parts = field(default_factory=lambda: Parts(Schema([])))
    constants: Constants = NO_CONSTANTS
    about: Mapping[str, str] = field(default_factory=dict)

    def of(self, model: Tensors) -> Tensors:
        """Return all entries of the network's `state_dict` for a global model."""
        return self.parts.whole(model, self.constants.tensors)


@dataclass(frozen=True, slots=True)
class InitialModel:
    """A network as a run starts from it.

    Attributes:
        module: on the CPU.
        model: its tensors that travel in every round.
        whole: the others, and what a file says of itself.
        metrics: of the task that it learns.
    """

    module: nn.Module
    model: Tensors
    whole: WholeModel
    metrics: TaskMetrics = OF_CLASSIFICATION


def build_initial(config: Config) -> InitialModel:
    """Build the global model before round 1; the same for the same seed and file on every machine.

    Raises:
        ConfigError: the network cannot be built, or `model.init` does not fit it.
    """
    task = task_of(config)
    info = describe(config.data, task)
    metrics = TaskMetrics(task, info.num_classes, info.target_shape)
    module, parts = build(config.model, info, config.seed, task)
    if config.model.init is not None:
        load_weights(module, config.model.init)
    constants = Constants.of(parts.constants_of(module))
    return InitialModel(module, parts.model_of(module), WholeModel(parts, constants, about(config, info)), metrics)


def warn_of_batch_norm(initial: InitialModel) -> None:
    """Warn once of statistics that would be averaged over clients."""
    travelling = initial.model.schema.by_name
    for name, module in initial.module.named_modules():
        if isinstance(module, _NormBase) and f"{name}.running_mean".lstrip(".") in travelling:
            logger.warning(
                "the model has %s (%s): its statistics are averaged over clients, and fit none of them where clients hold different "
                "classes; use nn.GroupNorm, or model.local_buffers = true to keep each client's own",
                type(module).__name__,
                name or "the network itself",
            )
            return


def load_weights(module: nn.Module, file: Path, *, key: str = "model.init") -> None:
    """Copy a file of weights into a network; it holds every tensor of the `state_dict` and no other.

    Of tied tensors one name is enough.

    Args:
        key: the configuration key that names the file, for messages.

    Raises:
        ConfigError: it cannot be read or does not fit, and the message names the first tensor that differs; or a trained
            parameter is not finite.
    """
    where = f"{key} = '{file}'"
    try:
        found = load_file(file)
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{where}: it cannot be read as safetensors: {error}") from error
    expected = module.state_dict()
    _check_weights(expected, found, Schema.of_module(module), where)
    Tensors.copy_of(Schema.of_module(module), {**_untied(module, found), **found}).load_into(module)
    if (name := not_finite(module)) is not None:
        raise ConfigError(f"{where}: the parameter {name!r} holds a value that is not finite")


def _untied(module: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that stand there under a tied name alone, by the name that stands for it."""
    tied = Parts.of(module, frozenset(), local_buffers=False).tied
    return {name: found[twin] for twin, name in tied.items() if twin in found}


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], schema: Schema, where: str) -> None:
    """Raises ConfigError, naming what differs."""
    problems = [f"{name!r} is not in the network" for name in found if name not in expected]
    tied = len(expected) > len(schema)
    problems += [f"{name!r} is missing" for name in expected if name not in found and not (tied and _has_twin(name, expected, found))]
    problems += [
        f"{name!r} is {form_of(value)} where the network has {form_of(expected[name])}"
        for name, value in found.items()
        if name in expected and (value.dtype, value.shape) != (expected[name].dtype, expected[name].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"{where} does not fit the network: {'; '.join(problems[:3])}{more}")


def _has_twin(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    pointer = expected[name].data_ptr()
    return any(other != name and other in found and value.data_ptr() == pointer for other, value in expected.items())


def about(config: Config, info: DataInfo) -> dict[str, str]:
    """Say in the metadata of a model file what the model is and what it takes."""
    return {
        "model.name": config.model.name,
        "task.name": config.task.name,
        "num_classes": str(info.num_classes),
        "input_shape": str(list(info.input_shape)),
        "input_scaling": _scaling(config.data),
    }


def _scaling(data: DataConfig) -> str:
    """Say how the inputs were scaled before the network saw them."""
    if ":" in data.name:
        scaled = {"auto": "; images of uint8 divided by 255", "uint8": "; uint8 divided by 255", "none": ""}
        return f"as {data.name} returns them{scaled[data.scale]}"
    return "0 to 16 divided by 16" if data.name == "digits" else "uint8 divided by 255"


def about_classes(names: Sequence[str]) -> dict[str, str]:
    """Name the classes in the metadata, in the order of their numbers, as JSON; nothing where they are not known."""
    return {"class_names": json.dumps(list(names))} if names else {}


def with_run(whole: WholeModel, run_id: str) -> WholeModel:
    """Name the run in the metadata too."""
    return dataclasses.replace(whole, about={"run_id": run_id, **whole.about})
