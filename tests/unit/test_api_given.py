"""Functions and classes that are given to a run, and what its record says of them."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import feddkd
from feddkd.algorithms import ALGORITHMS
from feddkd.api.given import Given, check_importable, import_path
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.imports import load_object


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], num_classes)


class Builder:
    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return build(input_shape, num_classes)


class Mine(feddkd.FedAvg):
    pass


def closure() -> Callable[..., nn.Module]:
    def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Linear(input_shape[0], num_classes)

    return build


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """A function as a cell of a notebook defines it."""
    function = closure()
    function.__module__, function.__qualname__, function.__name__ = "__main__", "network", "network"
    monkeypatch.setattr(sys.modules["__main__"], "network", function, raising=False)
    return function


@pytest.mark.parametrize("found", [build, Mine, pathlib.Path])
def test_the_import_path_of_an_object_leads_to_it(found: Any) -> None:
    path = import_path(found)
    assert path == f"{found.__module__}:{found.__name__}"
    assert load_object(path, "model.name") is found


@pytest.mark.parametrize("found", [lambda: 0, closure(), functools.partial(build), Builder(), nn.Linear.forward, torch.zeros(1)])
def test_what_cannot_be_imported_has_no_import_path(found: Any) -> None:
    assert import_path(found) is None


def test_a_replaced_function_has_no_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build
    monkeypatch.setattr(sys.modules[__name__], "build", closure())
    assert import_path(before) is None


def test_an_importable_object_is_recorded_under_its_path() -> None:
    assert Given.of(model=build, algorithm=Mine).names == {"model.name": f"{__name__}:build", "algorithm.name": f"{__name__}:Mine"}


def test_a_function_of_a_notebook_is_recorded_as_one(cell: Callable[..., nn.Module]) -> None:
    assert Given.of(model=cell).names == {"model.name": "__main__:network"}


def test_a_function_that_a_cell_has_replaced_is_not_taken_for_the_new_one(
    cell: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "network", build)
    assert Given.of(model=cell).names == {"model.name": "__given__:network"}


@pytest.mark.parametrize(
    ("found", "name"),
    [(lambda: 0, "lambda"), (closure(), "build"), (functools.partial(build), "partial"), (Builder(), "Builder")],
    ids=["lambda", "closure", "partial", "callable"],
)
def test_an_object_without_a_path_has_a_name_that_a_configuration_can_hold(found: Any, name: str) -> None:
    given = Given.of(data=found)
    assert given.names == {"data.name": f"__given__:{name}"}
    tables: dict[str, Any] = {}
    given.write_into(tables)
    assert Config.parse(tables).data.name == f"__given__:{name}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_built_in_algorithm_is_recorded_under_its_name(name: str) -> None:
    assert Given.of(algorithm=ALGORITHMS[name]) == Given({"algorithm.name": name})


def test_a_text_is_what_a_configuration_would_say() -> None:
    assert Given.of(data="mnist", model="my_nets:build", algorithm="fedprox") == Given(
        {"data.name": "mnist", "model.name": "my_nets:build", "algorithm.name": "fedprox"}
    )


def test_other_keys_of_a_table_stay() -> None:
    tables: dict[str, Any] = {"algorithm": {"name": "fedprox", "mu": 1.0}}
    Given.of(algorithm=Mine).write_into(tables)
    assert tables == {"algorithm": {"name": f"{__name__}:Mine", "mu": 1.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": torch.zeros(3)}, "data: a function of (root, train) is expected, or its import path, not an object of type Tensor"),
        ({"model": nn.Linear(2, 2)}, "not an object of type Linear; for a network that exists already, give lambda"),
        ({"model": 3}, "model: a function of (input_shape, num_classes) is expected"),
        ({"algorithm": Mine(Config())}, "algorithm: a subclass of feddkd.Algorithm is expected, or its name"),
        ({"algorithm": build}, f"or its name, not build of {__name__}"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_is_expected(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Given.of(**arguments)
    assert message in str(caught.value)


def test_a_value_in_place_of_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="model = 'mlp': a table is expected"):
        Given.of(model=build).write_into({"model": "mlp"})


def check_for_grpc(given: Given, **tables: Any) -> None:
    given.write_into(tables)
    check_importable(Config.parse(tables), given.objects)


def test_client_processes_can_import_what_is_importable() -> None:
    check_for_grpc(Given.of(data=build, model="my_nets:build", algorithm=Mine))


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (lambda: 0, f"<lambda> of {__name__}"),
        (closure(), f"closure.<locals>.build of {__name__}"),
        (Builder(), "an object of type Builder"),
    ],
)
def test_what_client_processes_cannot_import_is_refused_with_the_way_out(found: Any, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_for_grpc(Given.of(model=found))
    assert str(caught.value) == (
        f'model.name: with engine="grpc" clients run in processes of their own, which cannot import {what}; '
        'put it at the top level of a module that can be imported, or use engine="in-process"'
    )


def test_a_function_of_a_notebook_is_refused_for_client_processes(cell: Callable[..., nn.Module]) -> None:
    with pytest.raises(ConfigError, match="cannot import network of this script or notebook; put it"):
        check_for_grpc(Given.of(model=cell))


def test_a_configuration_that_names_a_function_of_a_script_is_refused_for_client_processes() -> None:
    with pytest.raises(ConfigError, match="cannot import __main__:more; put it"):
        check_for_grpc(Given(), data={"unlabelled": "__main__:more"})
