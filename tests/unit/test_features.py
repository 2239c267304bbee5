"""What comes before the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from by_hand import NETWORK, THREE, Federation, forward, vector
from torch import nn

from feddkd.algorithms.features import Features
from feddkd.data.examples import MemoryExamples
from feddkd.errors import ConfigError
from feddkd.tensors import Tensors

CPU = torch.device("cpu")


def test_features_are_the_inputs_of_the_last_linear_layer_and_carry_gradients(tmp_path: Path) -> None:
    module = Federation(tmp_path, {"name": "fedavg"}, model=NETWORK).workers["client-0"].site.module
    x = torch.from_numpy(THREE[0].x)
    logits, features = Features(module).forward(x)
    expected_features, expected_logits = forward(torch.from_numpy(vector(Tensors.of_module(module))), x)
    torch.testing.assert_close(features, expected_features)
    torch.testing.assert_close(logits, expected_logits)
    (gradient,) = torch.autograd.grad(features.sum(), dict(module.named_parameters())["1.weight"])
    assert gradient.abs().sum() > 0
    assert not any(layer._forward_pre_hooks for layer in module.modules())  # nobody watches when nobody asks


def test_all_features_are_in_the_order_of_the_examples_without_dropout_and_leave_the_mode_as_it_was() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    module[1].eval()
    examples = MemoryExamples(torch.randn(11, 3), torch.zeros(11, dtype=torch.int64))
    found = Features(module).of_all(examples, CPU, batch_size=4)
    torch.testing.assert_close(found, module[0](examples.inputs).detach())
    assert not found.requires_grad
    assert (module.training, module[0].training, module[1].training) == (True, True, False)


def test_feature_maps_are_flattened() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(x).mean(1)
            return logits

    assert Features(Head()).forward(torch.randn(5, 3, 4))[1].shape == (5, 12)


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    with pytest.raises(ConfigError, match=r"^model Sequential has no linear layer, so there are no features before its classifier$"):
        Features(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))


def all_convolutional(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, num_classes, 3), nn.Flatten())


@pytest.mark.parametrize("name", ["moon", "fedmax"])
def test_an_algorithm_that_needs_features_says_so_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="has no linear layer"):
        Federation(tmp_path, {"name": name}, model="test_features:all_convolutional")
