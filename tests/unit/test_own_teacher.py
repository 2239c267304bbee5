"""Sites with networks of their own: what they train, what they keep, what they teach, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import own_models
import pytest
import torch
from harness import Recorder, run_in_process, small_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.algorithms import OBJECTIVES, feddkd
from feddkd.algorithms.local_training import LocalTraining
from feddkd.algorithms.own_teacher import OWN_TEACHER, build_teacher, check_outputs
from feddkd.cli.serving import refuse_teachers
from feddkd.client.constants import HeldConstants
from feddkd.client.own_site import site_config, site_tables
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config, MainMetric
from feddkd.config.teacher import TeacherConfig
from feddkd.config.training import TrainingConfig
from feddkd.data.datasets import DataInfo, describe
from feddkd.data.seeding import reads_for
from feddkd.engines.simulation import prepare
from feddkd.errors import ClientError, ConfigError
from feddkd.evaluation import evaluate
from feddkd.exchange import ExampleCounts, ExchangeId, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.tasks.classification import CLASSIFICATION
from feddkd.tensors import Schema, Tensors

UNLIKE = ("dkd.start=previous", 'teacher.model=["own_models:plain", "own_models:batch_norm", "student", "own_models:adapters"]')
KINDS = ("plain", "adapters", "frozen_batch_norm", "batch_norm", "masked", "compiled", "parallel", "lazy", "spectral")
INFO = DataInfo((1, 8, 8), 10, torch.float32)
NOISE_SEED = 3


def noisy(root: Path | None, train: bool) -> torch.utils.data.Dataset[tuple[Tensor, int]]:
    return Noisy()


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that get other noise at every read."""

    def __init__(self) -> None:
        self.x = torch.randn(160, 1, 8, 8, generator=torch.Generator().manual_seed(NOISE_SEED))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + 0.5 * torch.randn(1, 8, 8), index % 10


def seven(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


NOISY = (f"data.name={__name__}:noisy", "data.input_shape=[1, 8, 8]", "data.num_classes=10")


class Restarted(Worker):
    """A client whose process ends after every exchange: another worker on the same state directory does the next one."""

    def __init__(self, config: Config, folder: Path, client: str) -> None:
        self._config, self._folder, self._client = config, folder, client

    def _new(self) -> Worker:
        index = int(self._client.removeprefix("client-"))
        return simulated_workers(self._config, self._folder / "clients", [index])[self._client]

    @property
    def counts(self) -> ExampleCounts:
        return self._new().counts

    @property
    def model_schema(self) -> Schema:
        return self._new().model_schema

    @property
    def constants(self) -> HeldConstants:
        return self._new().constants

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._new().broadcast_schema(exchange)

    def carry_out(self, task: Task) -> Reply:
        return self._new().carry_out(task)


def taken_home(folder: Path, client: int) -> Mapping[str, Tensor]:
    return load_file(folder / "clients" / f"client-{client}" / f"{OWN_TEACHER}.safetensors")


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("data", [(), NOISY], ids=["fixed", "augmented"])
def test_a_site_that_restarts_between_exchanges_reaches_the_same_bits(data: tuple[str, ...], tmp_path: Path) -> None:
    config = small_config(*UNLIKE, *data, "rounds=3", "data.test_set=false")
    straight = run_in_process(config, tmp_path / "straight")
    restarted = {f"client-{number}": Restarted(config, tmp_path / "restarted", f"client-{number}") for number in range(4)}
    again = run_in_process(config, tmp_path / "restarted", workers=restarted)
    assert straight.model.sha256() == again.model.sha256()
    assert same(taken_home(tmp_path / "straight", 1), taken_home(tmp_path / "restarted", 1))


def test_a_sites_own_network_learns_from_its_own_data_alone(tmp_path: Path) -> None:
    for name, overrides in {"one": ["dkd.lr=0.01"], "other": ["dkd.lr=0.5", "dkd.steps=3", "dkd.hard_label_weight=0"]}.items():
        run_in_process(small_config(*UNLIKE, *overrides), tmp_path / name)
    for client in (0, 1, 3):
        assert same(taken_home(tmp_path / "one", client), taken_home(tmp_path / "other", client))


def test_a_site_without_a_network_of_its_own_has_none_to_take_home(tmp_path: Path) -> None:
    run_in_process(small_config(*UNLIKE), tmp_path)
    assert not (tmp_path / "clients" / "client-2" / f"{OWN_TEACHER}.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_that_a_site_takes_home_is_its_whole_network(kind: str, tmp_path: Path) -> None:
    config = small_config("dkd.start=previous", f"teacher.model=own_models:{kind}", "partition.clients=2", "partition.labels=5", "rounds=2")
    run_in_process(config, tmp_path)
    built = build_teacher(config, f"own_models:{kind}", "client-1", INFO)
    found = taken_home(tmp_path, 1)
    assert not same(found, built.module.state_dict())
    network = own_models.__dict__[kind]((1, 8, 8), 10) if kind not in ("compiled", "parallel", "lazy") else built.module
    network.load_state_dict(found)
    constants = built.parts.constants_of(built.module)
    assert all(torch.equal(found[name], value) for name, value in constants.items())


def test_the_record_has_the_accuracy_of_the_sites_own_network(tmp_path: Path) -> None:
    recorder = Recorder()
    config = small_config(
        "dkd.start=previous", "teacher.model=own_models:batch_norm", "partition.clients=2", "partition.labels=5", "data.holdout=0.3"
    )
    workers = simulated_workers(config, tmp_path / "clients")
    run_in_process(config, tmp_path, [recorder], workers=workers)
    last = [record for record in recorder.exchanges if record.id.name == "local_train"][-1]
    for client, (name, worker) in enumerate(workers.items()):
        network = own_models.batch_norm((1, 8, 8), 10).eval()
        network.load_state_dict(taken_home(tmp_path, client))
        inputs, labels = worker.site.held_out.gather(torch.arange(len(worker.site.held_out)))
        right = int((network(inputs).argmax(1) == labels).sum()) / len(labels)
        assert last.by_client["teacher_accuracy"][name] == pytest.approx(right, abs=1e-6)


TASKS = {
    "regression": ["task.name=regression", "data.name=own_tasks:table", "model.name=own_tasks:numbers"],
    "multilabel": ["task.name=multilabel", "data.name=own_tasks:labels", "model.name=own_tasks:numbers"],
    "segmentation": [
        *("data.name=own_tasks:images", "data.input_key=image", "data.label_key=mask", "data.target_shape=[8, 8]"),
        *("data.num_classes=2", "task.ignore_index=255", "task.metric=iou", "model.name=own_tasks:pixels"),
    ],
    "flips": [
        *("data.name=own_tasks:augmented", "data.input_key=image", "data.label_key=mask", "data.target_shape=[8, 8]"),
        *("data.num_classes=2", "task.ignore_index=255", "model.name=own_tasks:pixels"),
    ],
    "f1 of digits": ["task.metric=f1"],
}


@pytest.mark.parametrize("task", TASKS)
def test_the_record_has_the_tasks_metric_of_the_sites_own_network(task: str, tmp_path: Path) -> None:
    network = next((key.partition("=")[2] for key in TASKS[task] if key.startswith("model.name")), "mlp")
    recorder, config = (
        Recorder(),
        small_config(
            *TASKS[task],
            *("dkd.start=previous", f"teacher.model={network}", "data.holdout=0.3", "partition.clients=2", "rounds=2"),
            *("partition.name=iid", "data.test_set=false"),
        ),
    )
    workers = simulated_workers(config, tmp_path / "clients")
    run_in_process(config, tmp_path, [recorder], workers=workers)
    last = [record for record in recorder.exchanges if record.id.name == "local_train"][-1]
    metric = MainMetric.of(config).name
    assert f"client_{metric}" in last.by_client
    for client, (name, worker) in enumerate(workers.items()):
        site = worker.site
        site.teacher.module.load_state_dict(taken_home(tmp_path, client))
        with reads_for(f"{config.seed}/{config.rounds}/local_train/0/{name}/evaluate"):
            expected = evaluate(site.teacher.module, site.held_out, site.device, metrics=site.metrics).score(metric)
        assert last.by_client["teacher_score"][name] == pytest.approx(expected, abs=1e-9)


def test_of_accuracy_the_record_has_no_second_number(tmp_path: Path) -> None:
    recorder = Recorder()
    run_in_process(small_config(*UNLIKE, "data.holdout=0.3"), tmp_path, [recorder])
    found = [record.by_client for record in recorder.exchanges if record.id.name == "local_train"]
    assert all("teacher_accuracy" in each and "teacher_score" not in each for each in found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("data", [(), NOISY], ids=["fixed", "augmented"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_teacher_whose_outputs_are_not_finite_is_said_to_be_one(
    value: float, data: tuple[str, ...], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("dkd.start=previous", "teacher.model=own_models:plain", *data, f"dkd.steps={steps}", "data.test_set=false")
    worker = simulated_workers(config, tmp_path, [0])["client-0"]
    with torch.no_grad():
        list(worker.site.teacher.module.parameters())[-1][0] = value
    monkeypatch.setattr(feddkd, "train_locally", lambda *_: LocalTraining(1.0, 1, 1))
    with pytest.raises(ClientError, match=r"^the teacher's outputs are not finite, .* its training diverged; lower training\.lr"):
        first_exchange(worker, config, 1)


def first_exchange(worker: Worker, config: Config, number: int, attempt: int = 0, seed: int = 0) -> Reply:
    model = build_initial(config.model_copy(update={"seed": seed})).model
    return worker.carry_out(Task(ExchangeId("run", number, attempt, "local_train", 0), model))


def test_a_round_that_is_repeated_begins_with_the_same_weights(tmp_path: Path) -> None:
    config = small_config(*UNLIKE)
    worker = simulated_workers(config, tmp_path, [0])["client-0"]
    first_exchange(worker, config, 1)
    replies = [first_exchange(worker, config, 2, attempt) for attempt in range(3)]
    sent = [reply.contribution.sha256() for reply in replies if reply.contribution is not None]
    assert sent == [sent[0]] * 3
    again = first_exchange(worker, config, 3).contribution
    assert again is not None
    assert again.sha256() != sent[0]


def test_another_run_begins_with_the_first_weights(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        run_in_process(small_config(*UNLIKE), tmp_path, run_id=f"run{number}")
        found.append(taken_home(tmp_path, 0))
    assert same(*found)


def test_a_site_starts_from_weights_that_it_has(tmp_path: Path) -> None:
    first = small_config("dkd.start=previous", "teacher.model=own_models:plain", "partition.clients=1", "partition.labels=10")
    run_in_process(first, tmp_path / "first")
    save_file(dict(taken_home(tmp_path / "first", 0)), tmp_path / "mine.safetensors")
    config = Config.parse(
        first.model_dump(exclude_none=True) | {"teacher": {"model": "own_models:plain", "init": tmp_path / "mine.safetensors"}}
    )
    worker = simulated_workers(config, tmp_path / "second")["client-0"]
    assert same(worker.site.teacher.module.state_dict(), taken_home(tmp_path / "first", 0))
    assert first_exchange(worker, config, 1).metrics["teacher_accuracy"] > 0.5


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    config = small_config("dkd.start=previous", "teacher.model=mlp", f"teacher.init={tmp_path}/other.safetensors")
    with pytest.raises(ConfigError, match=r"^teacher\.init = '.*other.safetensors' does not fit the network"):
        prepare(config)


def test_its_own_settings_train_it_and_the_others_are_those_of_the_run() -> None:
    training = TrainingConfig(epochs=2, steps=7, lr=0.1, momentum=0.5)
    cases: dict[tuple[tuple[str, Any], ...], Mapping[str, Any]] = {
        (): {},
        (("lr", 0.3),): {"lr": 0.3},
        (("epochs", 4),): {"epochs": 4, "steps": None},
        (("steps", 3),): {"steps": 3},
        (("epochs", 4), ("steps", 3)): {"epochs": 4, "steps": 3},
    }
    for given_keys, changed in cases.items():
        assert TeacherConfig.model_validate({"model": "mlp", **dict(given_keys)}).training(training) == training.model_copy(
            update=dict(changed)
        )


@given(names=st.lists(st.sampled_from(["mlp", "niid_cnn", "student"]), min_size=1, max_size=7), index=st.integers(0, 40))
def test_a_list_is_dealt_to_the_clients_in_turn(names: list[str], index: int) -> None:
    dealt = TeacherConfig.model_validate({"model": names}).of_client(index)
    assert dealt.names == (names[index % len(names)],)
    assert set(dealt.own) <= set(TeacherConfig.model_validate({"model": names}).own) == set(names) - {"student"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dkd.start=better"], r'the run needs dkd\.start = "previous"; it has .better.'),
        (["dkd.start=average"], r'the run needs dkd\.start = "previous"; it has .average.'),
        (["dkd.start=previous", "dkd.hard_label_weight=1"], r"dkd\.hard_label_weight = 1 uses none"),
        *(
            (["dkd.start=previous", f"algorithm.local_objective={name}"], rf"local_objective = .{name}.")
            for name in ("fedprox", "fedntd", "moon")
        ),
        (["algorithm.name=fedavg"], r"takes part in feddkd only; algorithm\.name is .fedavg."),
        (["algorithm.name=fedavg_sgd", "dkd.start=previous"], r"feddkd only; algorithm\.name is .fedavg_sgd."),
        (["algorithm.name=self_training", "dkd.start=previous"], r"feddkd only; algorithm\.name is .self_training."),
        (["algorithm.name=fedavg", "dkd.piggyback=true"], r"feddkd only"),
    ],
)
def test_a_run_that_needs_local_models_is_refused_before_it_begins(overrides: list[str], message: str, tmp_path: Path) -> None:
    run = Config.load(overrides=overrides)
    algorithms.build(run)
    with pytest.raises(ConfigError, match=f"^teacher.model = 'mlp': a site with a network of its own .*{message}"):
        prepare(Config.load(overrides=[*overrides, 'teacher.model=["student", "mlp"]']))
    with pytest.raises(ConfigError, match=message):
        site_config(run, site_tables(None, ["teacher.model=mlp"]))


def test_a_site_decides_its_network_and_the_server_never_does(tmp_path: Path) -> None:
    server = Config.load(overrides=["dkd.start=previous", "teacher.model=niid_cnn", "teacher.lr=0.5"])
    assert "teacher]" not in server.shared_toml()
    assert site_config(server, site_tables(None)).teacher == TeacherConfig()
    assert site_config(server, site_tables(None, ["teacher.model=mlp"])).teacher == TeacherConfig(model="mlp")


def test_a_server_refuses_a_network_that_only_a_site_can_have() -> None:
    refuse_teachers(Config())
    with pytest.raises(ConfigError, match=r"^teacher\.model = 'mlp': .* each site names its own in \[teacher\] of its file$"):
        refuse_teachers(Config.load(overrides=['teacher.model=["student", "mlp"]']))


def test_a_list_is_refused_in_a_sites_file(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[teacher]\nmodel = ["mlp", "niid_cnn"]\n')
    with pytest.raises(ConfigError, match=r"site\.toml: teacher\.model is a list, which is for simulations"):
        site_tables(tmp_path / "site.toml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mpl", r"teacher\.model = 'mpl': input should be 'student', .*did you mean 'mlp'"),
        (["mlp", "studnt"], r"teacher\.model = 'studnt': .*did you mean 'student'"),
        ([], r"teacher\.model = \[\]"),
        (3, r"teacher\.model = 3"),
    ],
)
def test_a_name_that_nothing_has_is_refused_by_key_and_entry(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse({"teacher": {"model": value}})


@pytest.mark.parametrize(("key", "value"), [("init", "x"), ("epochs", 2), ("steps", 2), ("lr", 0.1)])
def test_a_key_without_a_network_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"teacher\.{key} = {value}: it has no effect without a network in teacher\.model"):
        Config.parse({"teacher": {key: value}})


def test_weights_are_of_one_network() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.init = 'x': it needs one network in teacher\.model, not a list"):
        Config.parse({"teacher": {"model": ["mlp", "niid_cnn"], "init": "x"}})


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if not OBJECTIVES[name].compares_with_broadcast])
def test_a_sites_own_network_minimises_objectives_that_do_not_need_the_broadcast_model(objective: str, tmp_path: Path) -> None:
    recorder = Recorder()
    run_in_process(small_config(*UNLIKE, f"algorithm.local_objective={objective}", "rounds=3", "training.epochs=4"), tmp_path, [recorder])
    first, *_, last = (record.loss for record in recorder.exchanges if record.id.name == "local_train")
    assert first is not None
    assert last is not None
    assert last < first


def test_a_network_for_other_classes_is_refused_by_its_key() -> None:
    config = small_config("dkd.start=previous", f"teacher.model={__name__}:seven")
    with pytest.raises(ConfigError, match=rf"^teacher\.model = '{__name__}:seven' .*7"):
        prepare(config)


def test_outputs_of_another_shape_are_refused_with_both_names() -> None:
    student, teacher = nn.Linear(8, 10), nn.Sequential(nn.Linear(8, 10), nn.Unflatten(1, (5, 2)))
    check_outputs(Config(), "a:b", student, nn.Linear(8, 10), torch.zeros(2, 8), CLASSIFICATION)
    with pytest.raises(
        ConfigError, match=r"teacher\.model = 'a:b' returns \[2, 5, 2\] where the student model\.name = 'mlp' returns \[2, 10\]"
    ):
        check_outputs(Config(), "a:b", student, teacher, torch.zeros(2, 8), CLASSIFICATION)


def test_equal_networks_of_two_sites_start_from_unlike_weights_and_the_same_ones_at_every_engine() -> None:
    config = small_config(*UNLIKE)
    first, again, other = (
        Tensors.of_module(build_teacher(config, "mlp", client, describe(config.data)).module) for client in ("a", "a", "b")
    )
    assert first.sha256() == again.sha256() != other.sha256()


def test_a_batch_norm_student_keeps_its_statistics_where_every_site_has_its_own_network(tmp_path: Path) -> None:
    config = small_config("dkd.start=previous", "teacher.model=own_models:plain", "model.name=own_models:batch_norm")
    model = run_in_process(config, tmp_path).model
    before = build_initial(config).model
    statistics = [name for name in model if "running" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(model[name], before[name]) for name in statistics)
