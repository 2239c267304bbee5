"""One new file in a package of feddkd is all that it takes to add an algorithm, a local objective, a codec and more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd
from doc_pages import blocks_of
from harness import Recorder, run_in_process, small_config
from one_file import file_in

from feddkd.algorithms import ALGORITHMS, OBJECTIVES
from feddkd.config import Config
from feddkd.errors import ConfigError

ROOT = Path(__file__).parents[2]

ALGORITHM = '''
"""FedFoo: FedAvg that follows the mean update part of the way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from feddkd.algorithms.base import Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import AlgorithmTable, Config, NamedTable
from feddkd.registry import ALGORITHMS, OBJECTIVES
from feddkd.tensors import Tensors


class FedFooConfig(AlgorithmTable):
    """Follows the mean update part of the way."""

    name: Literal["fedfoo"] = "fedfoo"
    courage: float = Field(0.5, gt=0, le=1, description="share of the mean update that the server takes")


@ALGORITHMS.register("fedfoo")
class FedFoo(FedAvg):
    """w_{t+1} = w_t + courage sum_k p_k (w_k - w_t). Buffers follow the mean update."""

    table = FedFooConfig

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update, trainable = cohort.exchange("local_train", model), model.schema.trainable
        step = update.select(trainable).scaled(own_settings(self.config, FedFooConfig).courage)
        received = cohort.sent
        return (received + update).replace(received.select(trainable) + step)


class LouderConfig(NamedTable):
    """The cross-entropy, times a factor."""

    name: Literal["louder"] = "louder"
    factor: float = Field(1.0, gt=0, description="what the loss is multiplied by")


@OBJECTIVES.register("louder")
class Louder(LocalObjective):
    table = LouderConfig

    def __init__(self, site: Site, settings: LouderConfig) -> None:
        super().__init__(site, settings)
        self._factor = settings.factor

    def loss(self, index, inputs, labels):
        return self._factor * super().loss(index, inputs, labels)
'''


@pytest.fixture
def fedfoo(tmp_path: Path) -> Iterator[Path]:
    with file_in("feddkd.algorithms", tmp_path, "fedfoo", ALGORITHM) as folder:
        yield folder


@pytest.mark.usefixtures("fedfoo")
def test_an_algorithm_of_one_file_runs_with_its_settings(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "fedfoo", "courage": 0.25})

    def one_round(w: Vector, _: list[int]) -> Vector:
        average = mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]
        return 0.75 * w + 0.25 * average

    assert_follows(federation, one_round)


@pytest.mark.usefixtures("fedfoo")
def test_its_whole_step_is_fedavg_on_digits(tmp_path: Path) -> None:
    mine = run_in_process(small_config("algorithm.name=fedfoo", "algorithm.courage=1"), tmp_path / "mine")
    fedavg = run_in_process(small_config("algorithm.name=fedavg"), tmp_path / "fedavg")
    assert mine.model.sha256() == fedavg.model.sha256()


@pytest.mark.usefixtures("fedfoo")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.courrage=1", "unknown key 'algorithm.courrage' (did you mean 'courage'?)"),
        ("algorithm.courage=2", "algorithm.courage = 2: input should be less than or equal to 1"),
        ("algorithm.mu=2", "unknown key 'algorithm.mu'; known keys of fedfoo: name, local_objective, courage; another name has others"),
        ("algorithm.name=fedfo", "(did you mean 'fedfoo'?)"),
        ("algorithm.local_objective=loud", "(did you mean 'louder'?)"),
        ("algorithm.local_objective={name = 'louder', factor = 0}", "algorithm.local_objective.factor = 0: input should be greater than 0"),
    ],
)
def test_its_settings_are_checked_like_those_of_any_other(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config.load(overrides=["algorithm.name=fedfoo", override])
    assert str(refused.value).endswith(message)


@pytest.mark.usefixtures("fedfoo")
def test_its_configuration_survives_toml_and_is_in_the_schema() -> None:
    config = Config.load(overrides=["algorithm.name=fedfoo", "algorithm.local_objective=louder"])
    assert '[algorithm]\nname = "fedfoo"\ncourage = 0.5\n\n[algorithm.local_objective]\nname = "louder"\nfactor = 1.0\n' in config.to_toml()
    assert Config.loads(config.to_toml()) == config
    tables = Config.model_json_schema()["$defs"]
    assert tables["FedFooConfig"]["properties"]["courage"]["maximum"] == 1
    assert tables["LouderConfig"]["properties"]["factor"]["exclusiveMinimum"] == 0
    assert "fedfoo" in ALGORITHMS  # so every test that runs over all algorithms runs over it
    assert "louder" in OBJECTIVES


@pytest.mark.usefixtures("fedfoo")
def test_an_objective_of_one_file_is_trained_with(tmp_path: Path) -> None:
    settings = {"name": "fedavg", "local_objective": {"name": "louder", "factor": 3}}

    def one_round(w: Vector, _: list[int]) -> Vector:
        return mean([sgd(w, lambda v, own=own: 3 * gradient(v, own), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]

    assert_follows(Federation(tmp_path, settings), one_round)


def test_the_algorithm_that_contributing_shows_goes_half_of_the_way(tmp_path: Path) -> None:
    title = "feddkd/algorithms/half_step.py"
    (shown,) = [block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if block.title == title]

    def one_round(w: Vector, _: list[int]) -> Vector:
        average = mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]
        return 0.5 * w + 0.5 * average

    with file_in("feddkd.algorithms", tmp_path, "half_step", shown):
        assert_follows(Federation(tmp_path, {"name": "half_step"}), one_round)


MODEL = """
from torch import nn

from feddkd.registry import MODELS


@MODELS.register("softmax_regression")
def softmax_regression(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_a_network_of_one_file_is_trained(tmp_path: Path) -> None:
    with file_in("feddkd.models", tmp_path, "regression", MODEL):
        assert "softmax_regression" in str(Config.model_json_schema()["$defs"]["ModelConfig"])
        with pytest.raises(ConfigError, match=r"'niid_cnn', 'resnet18_gn' or 'softmax_regression'; or package\.module:function"):
            Config.load(overrides=["model.name=softmax"])
        run = run_in_process(small_config("model.name=softmax_regression", "algorithm.name=fedavg"), tmp_path)
    assert [tensor.shape for tensor in run.model.values()] == [(10, 64), (10,)]


CODEC = '''
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from feddkd.compression.checks import check_size
from feddkd.registry import CODECS


@CODECS.register("sign8", "sign9")
@dataclass(frozen=True)
class Sign:
    """One byte for the sign of each element, decoded to +-1e-3. What it leaves out is sent later."""

    name: str
    error_feedback: bool = True

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls(name)

    def size_bytes(self, num_elements: int) -> int:
        return num_elements

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        return (elements >= 0).to(torch.uint8)

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        return (2.0 * code - 1) * 1e-3

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, num_elements)
'''


def test_a_codec_of_one_file_encodes_what_clients_send(tmp_path: Path) -> None:
    with file_in("feddkd.compression", tmp_path, "sign", CODEC):
        assert "sign8" in Config.model_json_schema()["$defs"]["CommunicationConfig"]["properties"]["up"]["pattern"]
        with pytest.raises(ConfigError, match=r"communication.up = 'sign7': .*, randk:SHARE, sign8, sign9 or topk:SHARE"):
            Config.load(overrides=["communication.up=sign7"])
        with pytest.raises(ConfigError, match=r"down = 'sign8': .* would be lost"):
            Config.load(overrides=["communication.down=sign8"])
        seen = Recorder()
        config = small_config("communication.up=sign8", "algorithm.name=fedavg", "rounds=1")
        run_in_process(config, tmp_path, [seen])
    sent = seen.of("local_train").traffic
    assert sent.payload_bytes_up * 4 == sent.dense_bytes_up > 0


OPTIMIZER = """
import torch

from feddkd.registry import OPTIMIZERS


@OPTIMIZERS.register("plain")
class Plain(torch.optim.SGD):
    pass
"""

DIVERGENCE = """
from torch import Tensor

from feddkd.dkd.divergences import kl
from feddkd.registry import DIVERGENCES


@DIVERGENCES.register("same_kl")
def same_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    return kl(teacher_logits, student_logits, temperature)
"""


def test_an_optimizer_and_a_divergence_of_one_file_take_the_steps(tmp_path: Path) -> None:
    known = run_in_process(small_config("dkd.optimizer=sgd", "dkd.divergence=kl"), tmp_path / "known")
    with file_in("feddkd.aggregator", tmp_path, "plain", OPTIMIZER), file_in("feddkd.dkd", tmp_path, "same", DIVERGENCE):
        with pytest.raises(
            ConfigError,
            match=r"dkd.divergence = 'same': .* 'reverse_kl' or 'same_kl'; or package.module:function \(did you mean 'same_kl'\?\)$",
        ):
            Config.load(overrides=["dkd.divergence=same"])
        run = run_in_process(small_config("dkd.optimizer=plain", "dkd.divergence=same_kl"), tmp_path / "run")
    assert run.model.sha256() == known.model.sha256()


PYTHON = """#!{python}
import sys
import feddkd.algorithms
feddkd.algorithms.__path__.append({folder!r})
sys.argv.pop(0)
exec(compile(sys.stdin.read(), "config_docs", "exec"))
"""


def test_its_settings_are_in_the_documentation_that_is_written(fedfoo: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, folder=str(fedfoo)), encoding="utf-8")
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/config_docs", "--check"], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    added = [line[1:] for line in done.stderr.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert '### name = "fedfoo"' in added
    assert "| `courage` | `0.5` | number > 0, ≤ 1 | share of the mean update that the server takes |" in added
    assert '### local_objective.name = "louder"' in added
