"""One step of local training, and whether a device can record its operations and repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from feddkd.algorithms.local_optimizer import LocalOptimizer
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.devices import Step, device_for
from feddkd.models.known_code import is_stateless
from feddkd.structures import Structure


def local_step(
    site: Site,
    objective: LocalObjective,
    parameters: Mapping[str, nn.Parameter],
    optimizer: LocalOptimizer,
    steps: int,
) -> Step:
    """Return what takes one step on a batch and returns its loss, as the site's device does it.

    Args:
        parameters: by name, those that take gradients.
        optimizer: of these parameters.
        steps: how many are planned.
    """

    def step(index: Tensor, inputs: Structure, targets: Structure) -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(index, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        # A parameter that the loss does not depend on has no gradient.
        # The optimizer leaves it as it is.
        objective.add_to_gradients({name: parameter for name, parameter in parameters.items() if parameter.grad is not None})
        optimizer.step()
        return loss.detach()

    why_eager = partial(why_not_repeated, site, objective, optimizer)
    return device_for(site.device).repeated(step, steps, why_eager, optimizer.capturable)


def why_not_repeated(site: Site, objective: LocalObjective, optimizer: LocalOptimizer) -> str | None:
    """Say why a recorded step would not do what the step does; None where it would.

    What code of the user's own does in Python happens once, while it is recorded.
    So such a step is not repeated.
    """
    if not all(is_stateless(module) for module in site.module.modules()):
        return f"model {site.config.model.name!r} has layers or hooks that are not PyTorch's own"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None for module in site.module.modules()):
        return "a BatchNorm without momentum reads its count of batches on the CPU"
    if not type(site.learning_task).__module__.startswith("feddkd."):
        return f"task.name = {site.learning_task.settings.name!r} is code of your own"
    if not vars(type(objective)).get("is_repeatable", False):
        return f"the local objective {type(objective).__name__} looks numbers up or draws them on the CPU in each step"
    return optimizer.why_not_repeated
