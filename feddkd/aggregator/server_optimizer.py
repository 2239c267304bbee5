"""Turn the mean gradient of a DKD step into the next student.

Server-side optimizers in federated learning: Hsu, Qi, Brown 2019, arXiv 1909.06335 (momentum); Reddi et al.,
Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295 (Adagrad, Adam, Yogi). FedDKD's own server
takes plain SGD steps (arXiv 2205.00706).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from feddkd.aggregator.growth_limit import LONGEST, GrowthLimit
from feddkd.optimizers import eager
from feddkd.registry import OPTIMIZERS
from feddkd.tensors import DTYPE_NAMES, Schema, Tensors

_SGD = eager(torch.optim.SGD)

OPTIMIZERS.register("sgd")(_SGD)
OPTIMIZERS.register("momentum")(partial(_SGD, momentum=0.9))
OPTIMIZERS.register("nesterov")(partial(_SGD, momentum=0.9, nesterov=True))
OPTIMIZERS.register("adam")(partial(eager(torch.optim.Adam), fused=True))  # fused: one pass over memory, five times as fast
OPTIMIZERS.register("adagrad")(partial(eager(torch.optim.Adagrad), fused=True))

_BETA1 = 0.9


class ServerOptimizer:
    """Steps a student against the mean gradient of its cohort.

    The configuration's default is Adam, with the usual beta1 of 0.9 and eps of 1e-8: a step changes
    no weight by much more than lr, however large the gradient. docs/ablation.md compares the others.

    Args:
        name: one of `OPTIMIZERS`: sgd, momentum (0.9), nesterov (0.9), adam, yogi or adagrad.
        lr: learning rate, positive.
        keep_state: carry moments over from round to round; otherwise each round starts without.
        beta2: decay of adam's and yogi's second moment, in [0, 1); the others have none, and ignore it.
        growth_limit: length of the longest gradient that adam and yogi step with, in multiples of the
            longest one that their moments hold; longer ones are shortened (`GrowthLimit`). At least 1;
            0 sets no limit.

    Raises:
        ValueError: the name is unknown or a number out of its range.
    """

    def __init__(self, name: str, lr: float, keep_state: bool, beta2: float = 0.999, growth_limit: float = 0.0) -> None:
        if name not in OPTIMIZERS:
            raise ValueError(f"server optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}")
        if not lr > 0:
            raise ValueError(f"learning rate {lr} is not positive")
        if not 0 <= beta2 < 1:
            raise ValueError(f"beta2 {beta2} is not in [0, 1)")
        has_moments = "betas" in inspect.signature(OPTIMIZERS[name]).parameters
        betas = {"betas": (_BETA1, beta2)} if has_moments else {}
        self._build: Callable[..., torch.optim.Optimizer] = partial(OPTIMIZERS[name], lr=lr, **betas)
        self._keep_state = keep_state
        self._growth = GrowthLimit(growth_limit if has_moments else 0.0)
        self._state: dict[str, dict[str, Tensor]] = {}  # moments of each segment, by the name of its dtype
        self._state_is_shared = False  # the caller may hold the moments: copy them before a step
        self._schema: Schema | None = None  # what the moments belong to

    def start_round(self) -> None:
        """Forget the moments of the last round, unless they are kept."""
        if not self._keep_state:
            self.load_state_dict({})

    def step(self, student: Tensors, gradient: Tensors) -> Tensors:
        """Take one step against the gradient.

        All tensors of one dtype are one long vector here, so the cost does not depend on their
        number. float16 and bfloat16 are stepped in float32, moments included: the square of 1e-4 is
        zero in float16.

        Args:
            student: the model that the gradient was taken at; not modified.
            gradient: of the tensors to change; not modified.

        Returns:
            A new model; tensors that `gradient` does not have are the student's.

        Raises:
            SchemaError: the student lacks a tensor of the gradient or has it with another dtype or shape, or
                the gradient's schema is not that of the steps before, whose moments are in use.
        """
        if self._schema is not None:
            self._schema.check_same(gradient.schema)
        self._take_over_state()
        gradient = self._growth.limited(gradient)
        weights = student.select(gradient.schema)
        for segment in gradient.schema.segments:
            elements = weights.elements(segment)
            elements.copy_(self._step_vector(DTYPE_NAMES[segment.dtype], elements, gradient.elements(segment)))
        self._schema = gradient.schema
        return weights if weights.schema == student.schema else student.replace(weights)

    def _step_vector(self, name: str, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return `weights` after one step with the moments `name`; may change `weights`."""
        dtype = torch.promote_types(weights.dtype, torch.float32)
        parameter = nn.Parameter(weights.to(dtype))
        parameter.grad = gradient.to(dtype)
        # The optimizer object lives for one step only: all that lasts is in self._state, as plain tensors.
        optimizer = self._build([parameter])
        if name in self._state:
            optimizer.state[parameter] = self._state[name]
        optimizer.step()
        self._state[name] = {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        return parameter.detach()

    def _take_over_state(self) -> None:
        """Copy the moments if the caller has them, too: steps change them in place."""
        if self._state_is_shared:
            for state in self._state.values():
                for key, value in state.items():
                    state[key] = value.clone()
            self._state_is_shared = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments to continue from, as flat tensors named "dtype.moment", and the longest gradient.

        They are not copied, and later steps do not change them. There are none where each round
        starts without. Loaded again, they let a round that failed run again with exactly the same
        result.
        """
        if not self._keep_state:
            return {}
        self._state_is_shared = True
        moments = self._growth.state_dict()
        for name, state in self._state.items():
            moments |= {f"{name}.{key}": value for key, value in state.items()}
        return moments

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; the tensors are not changed."""
        self._state = {}
        self._state_is_shared = True
        self._schema = None
        self._growth.load_state_dict(state)
        for path, value in state.items():
            name, key = path.split(".")
            if path != LONGEST:
                self._state.setdefault(name, {})[key] = value
