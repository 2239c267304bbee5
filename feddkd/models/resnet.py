"""ResNet-18 with group normalisation, which unlike batch normalisation has no statistics to average."""

from __future__ import annotations

from torch import nn

from feddkd.registry import MODELS
from feddkd.torchvision_compat import import_torchvision

GROUPS = 2
"""Groups of each normalisation layer, as in Reddi et al., Adaptive Federated Optimization (2021)."""

SMALL_SIDE = 64
"""Images up to this many pixels a side get a 3x3 stem without pooling: the usual one halves them twice before the first block."""


@MODELS.register("resnet18_gn")
def resnet18_gn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build torchvision's ResNet-18, untrained, with GroupNorm(2) instead of every batch normalisation.

    Raises:
        ValueError: `input_shape` is not (channels, height, width).
        DataError: torchvision is not installed.
    """
    if len(input_shape) != 3:
        raise ValueError("inputs of shape (channels, height, width) are needed")
    channels, height, width = input_shape
    model: nn.Module = import_torchvision().models.resnet18(weights=None, num_classes=num_classes, norm_layer=_group_norm)
    if max(height, width) <= SMALL_SIDE:
        model.conv1 = _stem(channels, kernel=3, stride=1)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = _stem(channels, kernel=7, stride=2)
    return model


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


def _stem(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    stem = nn.Conv2d(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises the stem it replaces
    return stem
