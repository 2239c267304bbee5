"""One client lies about a number that the server decides by; nothing but that number is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import THREE, Federation, gradient, length, mean, sgd

from feddkd.algorithms import ALGORITHMS, find
from feddkd.algorithms.base import within
from feddkd.algorithms.fednova import MOST_EXAMPLES
from feddkd.config import Config
from feddkd.exchange import Reply, Task
from feddkd.tensors import Schema

DKD = {"steps": 3, "optimizer": "sgd", "lr": 0.5, "batch_size": 0, "tail": 0, "patience": 1}
LIES = [1e17, -1e17, -1.0, 0.0, 5e-324]
"""Beyond 1e18 a contribution is refused when it arrives."""

PLAIN_MEAN: dict[str, Any] = {"aggregation": {"rule": {"name": "mean", "longest": 0.0}, "outlier_ratio": 0.0, "weight_cap": 0.0}}
"""What the algorithms bring into its range, the default rule would leave out."""


def numbers_of(algorithm: str) -> list[str]:
    """The numbers that travel beside tensors in any of its exchanges."""
    kinds = find(algorithm).exchanges(Config.parse({"algorithm": {"name": algorithm}, "dkd": DKD})).values()
    names = {name for kind in kinds if kind.reply is not None for name in kind.reply(Schema([])).by_name}
    return sorted(names)


def lying(federation: Federation, number: str, lie: float, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Let the first client say `lie` wherever `number` is asked for."""
    worker = federation.workers["client-0"]
    honest = worker.carry_out
    lies = 0

    def carry_out(task: Task) -> Reply:
        nonlocal lies
        reply = honest(task)
        if reply.contribution is not None and number in reply.contribution:
            reply.contribution[number].fill_(lie)
            lies += 1
        return reply

    monkeypatch.setattr(worker, "carry_out", carry_out)
    federation.run()
    assert lies > 0
    return federation


@pytest.mark.parametrize(("algorithm", "number"), [(name, number) for name in ALGORITHMS for number in numbers_of(name)])
@pytest.mark.parametrize("lie", LIES)
def test_models_stay_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, number: str, lie: float) -> None:
    federation = lying(Federation(tmp_path, {"name": algorithm}, dkd=DKD), number, lie, monkeypatch)
    assert np.isfinite(federation.models).all()


@pytest.mark.parametrize(
    ("algorithm", "mode", "number"),
    [
        ("feddkd", {"start": "previous"}, "first_step_loss/value"),
        ("fedavg", {"steps": 0, "piggyback": True}, "received_loss/value"),
    ],
)
@pytest.mark.parametrize("lie", LIES)
def test_models_stay_finite_in_modes_that_report_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, mode: dict[str, Any], number: str, lie: float
) -> None:
    federation = lying(Federation(tmp_path, {"name": algorithm}, dkd={**DKD, **mode}), number, lie, monkeypatch)
    assert np.isfinite(federation.models).all()


def test_the_numbers_of_all_algorithms_are_tried() -> None:
    assert {name: numbers_of(name) for name in ALGORITHMS if numbers_of(name)} == {
        "feddkd": ["previous_loss/value"],
        "fedavg_sgd": ["previous_loss/value"],
        "self_training": ["previous_loss/value"],
        "fednova": ["effective_steps/value"],
        "fedexp": ["update_norm_squared/value"],
    }


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("lie", LIES)
def test_no_client_decides_how_far_fednova_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, weights: str, lie: float
) -> None:
    tables: dict[str, Any] = {"scheduler": {"weights": weights}, "training": {"momentum": 0.9, "batch_size": 2}, "rounds": 1, **PLAIN_MEAN}
    honest = Federation(tmp_path / "honest", {"name": "fednova"}, **tables)
    honest.run()
    assert "is used" not in caplog.text
    federation = lying(Federation(tmp_path / "lying", {"name": "fednova"}, **tables), "effective_steps/value", lie, monkeypatch)
    assert ("is used" in caplog.text) == (abs(lie) > 1)
    # Both went the same way, as far as their lengths say.
    steps, honest_steps = federation.models[0] - federation.initial, honest.models[0] - honest.initial
    factor = float(steps @ honest_steps / (honest_steps @ honest_steps))
    np.testing.assert_allclose(steps, factor * honest_steps, rtol=1e-6)
    sizes = np.array([len(own) for own in THREE]) if weights == "examples" else np.ones(3)
    lengths = np.array([length(3 * -(-len(own) // 2), 0.9) for own in THREE])
    most = max(lengths) if weights == "examples" else length(3 * MOST_EXAMPLES // 2, 0.9)
    honest_length = sizes @ lengths / sizes.sum()
    assert 1 / honest_length <= factor * (1 + 1e-6)
    assert factor <= most / honest_length * (1 + 1e-6)


@pytest.mark.parametrize("lie", LIES)
def test_no_client_decides_how_far_fedexp_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: float) -> None:
    federation = lying(Federation(tmp_path, {"name": "fedexp"}, rounds=1, **PLAIN_MEAN), "update_norm_squared/value", lie, monkeypatch)
    local = [sgd(federation.initial, lambda v, own=own: gradient(v, own), 3, 0.25) for own in THREE]  # type: ignore[misc]
    step = mean(local, THREE) - federation.initial
    rate = 2 * float((federation.models[0] - federation.initial) @ step / (step @ step))  # the model is half way
    assert rate * (1 + 1e-9) >= 1
    assert rate <= 30 * (1 + 1e-9)
    assert (rate == pytest.approx(30)) == (lie == 1e17)


@pytest.mark.parametrize("name", ["feddkd", "fedavg_sgd", "self_training"])
@pytest.mark.parametrize("lie", [-1e17, -1e3])
def test_no_client_makes_the_steps_start_over_with_a_loss_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lie: float
) -> None:
    honest = Federation(tmp_path / "honest", {"name": name}, dkd=DKD, rounds=1)
    federation = lying(Federation(tmp_path / "lying", {"name": name}, dkd=DKD, rounds=1), "previous_loss/value", lie, monkeypatch)
    honest.run()
    np.testing.assert_array_equal(federation.models, honest.models)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(2.5, 2.5), (1.0, 1.0), (4.0, 4.0), (0.9, 1.0), (4.1, 4.0), (float("nan"), 1.0), (float("inf"), 4.0), (-float("inf"), 1.0)],
)
def test_a_number_is_brought_into_its_range(number: float, expected: float) -> None:
    assert within("it", number, 1.0, 4.0) == expected
