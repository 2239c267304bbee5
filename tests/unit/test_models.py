import pytest
import torch
from torch import Tensor, nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError, DataError
from feddkd.models.registry import build_model
from feddkd.torchvision_compat import import_torchvision

MNIST, CIFAR10, DIGITS = DataInfo((1, 28, 28), 10), DataInfo((3, 32, 32), 10), DataInfo((1, 8, 8), 10)


def config(name: str) -> ModelConfig:
    return ModelConfig.model_validate({"name": name})


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def torchvision() -> None:
    try:
        import_torchvision()
    except DataError:
        pytest.skip("torchvision is not installed")


@pytest.mark.parametrize(
    ("name", "info", "parameters"),
    [
        ("mlp", DIGITS, 8_970),
        ("niid_cnn", MNIST, 44_426),
        ("niid_cnn", CIFAR10, 62_006),
        ("mcmahan_cnn", MNIST, 1_663_370),
        ("mcmahan_cnn", CIFAR10, 2_156_490),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, info: DataInfo, parameters: int) -> None:
    assert parameter_count(build_model(config(name), info, 0)) == parameters


@pytest.mark.parametrize("name", ["mlp", "niid_cnn", "mcmahan_cnn"])
def test_models_take_batches_and_train(name: str) -> None:
    model = build_model(config(name), DataInfo((2, 20, 17), 7), 0)
    assert model.training
    model(torch.rand(3, 2, 20, 17)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.usefixtures("torchvision")
def test_resnet_has_group_norm_only_and_fits_its_stem_to_the_input() -> None:
    small = build_model(config("resnet18_gn"), DataInfo((1, 32, 32), 5), 0)
    assert not [module for module in small.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {module.num_groups for module in small.modules() if isinstance(module, nn.GroupNorm)} == {2}
    assert small.get_parameter("conv1.weight").shape == (64, 1, 3, 3)
    assert small.get_submodule("layer1")(small.get_submodule("conv1")(torch.rand(1, 1, 32, 32))).shape == (1, 64, 32, 32)
    large = build_model(config("resnet18_gn"), DataInfo((4, 80, 65), 5), 0)
    assert large.get_parameter("conv1.weight").shape == (64, 4, 7, 7)
    assert isinstance(large.get_submodule("maxpool"), nn.MaxPool2d)
    # torchvision's ResNet-18 has 11,689,512 parameters with 3 channels and 1,000 classes; GroupNorm has as many as BatchNorm.
    assert parameter_count(build_model(config("resnet18_gn"), DataInfo((3, 65, 65), 1000), 0)) == 11_689_512


@pytest.mark.parametrize("name", ["mlp", "niid_cnn", "mcmahan_cnn", "resnet18_gn"])
@pytest.mark.usefixtures("torchvision")
def test_a_seed_fixes_every_bit_and_the_global_state_stays(name: str) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (build_model(config(name), CIFAR10, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("niid_cnn", (1, 8, 8), "8x8 pixels are too small, at least 16x16 is needed"),
        ("niid_cnn", (1, 28, 15), "28x15 pixels are too small"),
        ("mcmahan_cnn", (1, 3, 8), "3x8 pixels are too small, at least 4x4 is needed"),
        ("niid_cnn", (12,), r"\(channels, height, width\)"),
        ("mcmahan_cnn", (12, 4), r"\(channels, height, width\)"),
        ("resnet18_gn", (12,), r"\(channels, height, width\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_model_and_shape(name: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(config(name), DataInfo(shape, 10), 0)
    assert f"model.name = {name!r} cannot be built for inputs of shape {shape}" in str(caught.value)
    with pytest.raises(ConfigError, match=reason):
        build_model(config(name), DataInfo(shape, 10), 0)


@pytest.mark.parametrize(("name", "side"), [("niid_cnn", 16), ("mcmahan_cnn", 4)])
def test_the_least_size_named_in_the_error_works(name: str, side: int) -> None:
    assert build_model(config(name), DataInfo((1, side, side), 3), 0)(torch.zeros(2, 1, side, side)).shape == (2, 3)


def own_model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(input_shape[-1] ** 2, num_classes))


def own_function(input_shape: tuple[int, ...], num_classes: int) -> object:
    return torch.relu


def own_failure(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    raise KeyError("width")


def own_wrong_classes(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes + 1))


def own_wrong_input(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(5, num_classes)


class OwnTwoHeads(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_model_of_ones_own_is_called_with_shape_and_classes_and_left_untouched() -> None:
    model = build_model(config(f"{__name__}:own_model"), DIGITS, 0)
    assert model.training
    assert model.state_dict()["1.num_batches_tracked"] == 0
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_function", "it returned builtin_function_or_method, not a torch.nn.Module"),
        ("own_failure", r"of shape \(1, 8, 8\): calling it as function\(\(1, 8, 8\), 10\) failed with KeyError: 'width'"),
        ("own_wrong_classes", r"in eval mode maps 2 inputs of shape \(1, 8, 8\) to \(2, 11\), not to \(2, 10\) logits"),
        ("own_wrong_input", r"does not take inputs of shape \(1, 8, 8\) in eval mode: RuntimeError"),
        ("OwnTwoHeads", r"to tuple, not to \(2, 10\) logits"),
        ("no_such_model", "has no 'no_such_model'"),
    ],
)
def test_a_model_of_ones_own_that_does_not_fit_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(config(f"{__name__}:{name}"), DIGITS, 0)
    assert str(caught.value).startswith(f"model.name = '{__name__}:{name}'")
    assert "\n" not in str(caught.value)
