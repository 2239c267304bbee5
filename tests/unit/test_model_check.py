"""What a network cannot do in training is said before a run; what it can do leaves it untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError
from feddkd.models.check import check_model
from feddkd.models.device import find_device
from feddkd.models.registry import build, build_model

INFO = DataInfo((1, 8, 8), 10)


def config(name: str, *, local_buffers: bool = False) -> ModelConfig:
    return ModelConfig.model_validate({"name": f"own_models:{name}", "local_buffers": local_buffers})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tuple_in_training", r"in train mode maps 2 inputs of shape \(1, 8, 8\) to tuple, not to \(2, 10\) logits"),
        ("fails_in_training", r"does not take inputs of shape \(1, 8, 8\) in train mode: RuntimeError"),
        ("frozen", "has no trainable parameter"),
        ("detached", "in eval mode: its logits depend on no trainable parameter"),
        ("in_place", "in eval mode: no gradient can be computed: RuntimeError"),
        ("integers", r"to \(2, 10\) torch.int64, not to \(2, 10\) logits"),
        ("extra_state", "the entry '_extra_state' of its state_dict is of type dict"),
        ("complex_buffer", "tensor 'freqs' has dtype torch.complex64, which cannot be sent; torch.view_as_real"),
        ("unsigned_buffer", "tensor 'table' has dtype torch.uint16, which cannot be sent; use one of float64"),
        ("sparse_buffer", "tensor 'graph' is of layout torch.sparse_coo"),
        ("meta_buffer", "tensor 'late' is on the meta device"),
        ("appearing", "tensor 'mean' appears in training"),
        ("growing", r"tensor 'mean' changes from float32\[0\] to float32\[64\] in training"),
    ],
)
def test_a_network_that_cannot_take_a_training_step_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(config(name), INFO, 0)
    assert str(caught.value).startswith(f"model.name = 'own_models:{name}'")
    assert "\n" not in str(caught.value)


def test_a_batch_of_the_users_own_is_checked_for_its_labels() -> None:
    network, (inputs, labels) = build_model(config("plain"), INFO, 0), batch()
    assert check_model(network, inputs, labels, "here") == frozenset()
    with pytest.raises(
        ConfigError, match=r"^here in eval mode maps 4 inputs of shape \(1, 8, 8\) to \(4, 10\), not to \(4, classes\) logits"
    ):
        check_model(network, inputs, labels + 10, "here")


@pytest.mark.parametrize(
    "name", ["plain", "batch_norm", "frozen_batch_norm", "masked", "spectral", "recurrent", "half", "lazy", "adapters"]
)
def test_the_check_leaves_network_and_random_state_as_they_were(name: str) -> None:
    network, (inputs, labels) = build_model(config(name), INFO, 0), batch()
    network[0].eval() if isinstance(network, nn.Sequential) else None
    flags = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    check_model(network, inputs, labels, "here")
    assert [module.training for module in network.modules()] == flags
    assert torch.random.get_rng_state().equal(state)
    assert before.keys() == network.state_dict().keys()
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("plain", set()),
        ("adapters", set()),
        ("masked", set()),
        ("batch_norm", {"2.running_mean", "2.running_var", "2.num_batches_tracked"}),
        ("frozen_batch_norm", {"0.2.running_mean", "0.2.running_var", "0.2.num_batches_tracked"}),
        ("spectral", {"1.parametrizations.weight.0._u", "1.parametrizations.weight.0._v"}),
    ],
)
def test_the_check_finds_the_tensors_that_a_training_pass_changes(name: str, changed: set[str]) -> None:
    assert check_model(build_model(config(name), INFO, 0), *batch(), "here") == changed


def test_a_device_that_is_not_there_is_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_driver(*_: object, **__: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch, "zeros", old_driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"^runtime\.device = 'cuda': this machine has no CUDA device"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"^runtime\.device = 'cuda:7': this machine has 2 CUDA devices, of which the last is cuda:1$"):
        find_device("cuda:7")
    with pytest.raises(ConfigError, match=r"^runtime\.device = 'cuda': this device cannot be used here: RuntimeError: The NVIDIA driver"):
        find_device("cuda")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    assert find_device("cuda") == torch.device("cuda", 1)  # tensors that are made there say the number, too
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["compiled", "parallel", "partly_compiled"])
def test_wrapped_networks_have_the_plain_names_and_compute_the_same(name: str) -> None:
    plain, wrapped = (build_model(config(each), INFO, 3) for each in ("plain", name))
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    inputs, _ = batch()
    assert wrapped(inputs).equal(plain(inputs))


def test_a_compiled_network_still_runs_its_compiled_code() -> None:
    network = build_model(config("compiled"), INFO, 0)
    assert network._compiled_call_impl is not None


@pytest.mark.parametrize("local_buffers", [False, True])
@pytest.mark.parametrize(
    ("name", "constant", "buffers"),
    [
        ("plain", set(), set()),
        ("lazy", set(), set()),
        ("half", set(), set()),
        ("adapters", {"1.base.weight", "1.base.bias"}, set()),
        ("masked", {"mask"}, set()),
        ("batch_norm", set(), {"2.running_mean", "2.running_var", "2.num_batches_tracked"}),
        (
            "frozen_batch_norm",
            {"0.1.weight", "0.1.bias", "0.2.weight", "0.2.bias"},
            {"0.2.running_mean", "0.2.running_var", "0.2.num_batches_tracked"},
        ),
    ],
)
def test_what_cannot_change_travels_once_and_local_buffers_stay(
    name: str, constant: set[str], buffers: set[str], *, local_buffers: bool
) -> None:
    network, parts = build(config(name, local_buffers=local_buffers), INFO, 0)
    once, local = (constant | buffers, buffers) if local_buffers else (constant, set())
    assert parts.constants.by_name.keys() == once
    assert parts.local == local
    whole = parts.whole(parts.model_of(network), parts.constants_of(network))
    assert whole.keys() == network.state_dict().keys()
    assert all(whole[key].equal(value) for key, value in network.state_dict().items())


class Halves(nn.Module):
    """Two parameters of one storage, of which only the second is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)
        self.first.weight.requires_grad_(False)
        self.first.weight.data = self.second.weight.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(x.flatten(1)) + self.second(x.flatten(1))
        return out


def halves(_: tuple[int, ...], __: int) -> nn.Module:
    return Halves()


def test_a_tensor_that_is_trained_under_one_of_its_names_travels() -> None:
    _, parts = build(ModelConfig(name=f"{__name__}:halves"), INFO, 0)
    assert parts.travelling.by_name.keys() == {"second.weight", "first.bias", "second.bias"}
    assert parts.tied == {"first.weight": "second.weight"}


class Scaled(nn.Module):
    """Logits that go through one more function, which has no finite value or no finite gradient."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.scale = kind, nn.Linear(64, 10), nn.Parameter(torch.zeros(10))
        if kind in ("nan", "inf"):
            self.linear.weight.data[3, 5] = float(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        if self.kind == "log":
            return logits + self.scale.log()
        if self.kind == "in training" and self.training:
            return logits / self.scale
        return logits * (1 + self.scale.abs().sqrt()) if self.kind == "sqrt" else logits


def scaled_nan(_: tuple[int, ...], __: int) -> nn.Module:
    return Scaled("nan")


def scaled_inf(_: tuple[int, ...], __: int) -> nn.Module:
    return Scaled("inf")


def scaled_log(_: tuple[int, ...], __: int) -> nn.Module:
    return Scaled("log")


def scaled_sqrt(_: tuple[int, ...], __: int) -> nn.Module:
    return Scaled("sqrt")


def scaled_in_training(_: tuple[int, ...], __: int) -> nn.Module:
    return Scaled("in training")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scaled_nan", "in eval mode: the parameter 'linear.weight' holds a value that is not finite"),
        ("scaled_inf", "in eval mode: the parameter 'linear.weight' holds a value that is not finite"),
        ("scaled_log", "in eval mode: its loss on the examples that were tried is nan"),
        ("scaled_sqrt", "in eval mode: the gradient of 'scale' on the examples that were tried is not finite"),
        ("scaled_in_training", "in train mode: its loss on the examples that were tried is nan"),
    ],
)
def test_a_network_that_computes_what_is_not_finite_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(ModelConfig(name=f"{__name__}:{name}"), INFO, 0)
    assert str(caught.value).startswith(f"model.name = '{__name__}:{name}'")
    assert "\n" not in str(caught.value)


def test_examples_that_make_the_loss_infinite_are_refused_too() -> None:
    network, (inputs, labels) = build_model(config("plain"), INFO, 0), batch()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e3)
    with pytest.raises(ConfigError, match=r"^here in eval mode: its loss on the examples that were tried is (nan|inf)$"):
        check_model(network, inputs * 1e38, labels, "here")


def test_buffers_may_be_infinite() -> None:
    """As a mask of attention is."""
    network = build_model(config("plain"), INFO, 0)
    network.register_buffer("mask", torch.full((2,), -torch.inf))
    assert check_model(network, *batch(), "here") == frozenset()
