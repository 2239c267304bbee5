"""Examples without a label: the loss of a step, what a client is weighed by, and who labels them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import RUN_ID, EngineProxy, Recorder, run_in_process, small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.algorithms.distiller import distiller_of, labels_distiller
from feddkd.algorithms.feddkd import FedDKD
from feddkd.algorithms.local_training import local_steps, train_locally
from feddkd.algorithms.self_trainer import SelfTrainer, SelfTrainingConfig
from feddkd.algorithms.site import CrossEntropyConfig, LocalObjective, Site
from feddkd.algorithms.teacher_choice import HELD_OUT, TeacherChoice, count_held_out
from feddkd.client.simulated import simulated_workers
from feddkd.client.state_dir import StateDir
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples
from feddkd.dkd import Distillation, OwnPredictions, distillation_gradient, teacher_logits
from feddkd.errors import ConfigError, DataError
from feddkd.evaluation import evaluate
from feddkd.exchange import ExampleCounts, Exchange, ExchangeId, ExchangeKind, Outcome, Task
from feddkd.registry import DIVERGENCES
from feddkd.scheduler.engine import Keep
from feddkd.tasks.base import UNLABELLED
from feddkd.tensors import Tensors

CPU = torch.device("cpu")
FEATURES, CLASSES, N = 5, 4, 24


def network(seed: int) -> nn.Sequential:
    """A float64 network, so that sums in another order agree to many digits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


class Doubles(MemoryExamples):
    """Inputs in float64."""

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = super().gather(index)
        return inputs.double(), labels

    def subset(self, index: Tensor) -> MemoryExamples:
        return Doubles(self.inputs[index], self.labels[index])


def examples(labelled: int = 9) -> Doubles:
    """Examples of which so many have a label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    labels[torch.randperm(N, generator=generator)[labelled:]] = UNLABELLED
    return Doubles(torch.randn(N, FEATURES, generator=generator), labels)


def gradient_of(loss: Distillation, index: Tensor, data: Doubles) -> tuple[Tensors, float]:
    student = network(1)
    return distillation_gradient(student, data, teacher_logits(network(2), data, CPU), index, loss, CPU)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("extra", [{}, {"correct_teacher": True}, {"not_true": True}], ids=["plain", "correct_teacher", "not_true"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_example_without_a_label_follows_its_teacher_alone(divergence: str, extra: dict[str, Any], weight: float) -> None:
    data = examples()
    has_label = data.labels != UNLABELLED
    labelled, unlabelled = has_label.nonzero().flatten(), (~has_label).nonzero().flatten()
    loss = Distillation(divergence, 2.0, weight, **extra)
    found, mean = gradient_of(loss, torch.arange(N), data)
    by_label, with_label = gradient_of(loss, labelled, data)
    # A label that is there but has no weight: the teacher alone.
    pretended = Doubles(data.inputs, torch.zeros(N, dtype=torch.int64))
    by_teacher, without = gradient_of(Distillation(divergence, 2.0, 0.0), unlabelled, pretended)
    share = len(labelled) / N
    expected = by_label.scaled(share) + by_teacher.scaled(1 - share)
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-6, atol=1e-9)
    assert mean == pytest.approx(share * with_label + (1 - share) * without, rel=1e-6)


def test_a_teacher_that_is_not_sure_says_nothing_but_counts_in_the_mean() -> None:
    data = examples(labelled=0)
    sure = F.softmax(teacher_logits(network(2), data, CPU), dim=1).amax(1)
    threshold = float(sure.sort().values[N // 2 - 1 : N // 2 + 1].mean())  # between two of them
    confident = (sure > threshold).nonzero().flatten()
    found, mean = gradient_of(Distillation(confidence=threshold), torch.arange(N), data)
    of_confident, mean_of_confident = gradient_of(Distillation(), confident, data)
    torch.testing.assert_close(dict(found), dict(of_confident.scaled(len(confident) / N)), rtol=1e-6, atol=1e-9)
    assert mean == pytest.approx(mean_of_confident * len(confident) / N)
    nothing, no_loss = gradient_of(Distillation(confidence=0.999999), torch.arange(N), data)
    assert nothing.norm() == no_loss == 0


def test_bootstrapped_labels_hold_a_share_of_what_the_student_predicts() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, CLASSES), torch.randint(CLASSES, (7,))
    found = Distillation(hard_label_weight=1.0, bootstrap=0.2).loss(logits, None, labels)
    expected = 0.8 * F.cross_entropy(logits, labels) + 0.2 * F.cross_entropy(logits, logits.argmax(1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("settings", [{"confidence": 1.0}, {"confidence": -0.1}, {"bootstrap": 1.1}])
def test_a_loss_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} .* is not in"):
        Distillation(**settings)  # type: ignore[arg-type]


def test_own_predictions_are_among_the_classes_that_can_be() -> None:
    logits = torch.tensor([[9.0, 0.0, 8.0, 0.0], [0.0, 0.0, 5.0, 4.9], [0.0, 7.0, 0.0, 0.0]])
    sure, predicted = OwnPredictions(0.6, classes=[2, 3]).predictions(logits)
    assert predicted.tolist() == [2, 2, 2]
    assert sure.tolist() == [True, False, False]
    loss = OwnPredictions(0.6, classes=[2, 3]).loss(logits, None, torch.full((3,), UNLABELLED))
    torch.testing.assert_close(loss, F.cross_entropy(logits[:1], torch.tensor([2])) / 3)
    with pytest.raises(ValueError, match="no class"):
        OwnPredictions(0.6, classes=[])


def site(tmp_path: Path, data: MemoryExamples, **tables: Any) -> Site:
    config = Config.parse({"training": {"batch_size": 4, "epochs": 3}, "dkd": {"batch_size": 0}, **tables})
    none = data.subset(torch.arange(0))
    return Site("a", config, data, none, network(1), CPU, StateDir(tmp_path, "a"), lambda site: LocalObjective(site, CrossEntropyConfig()))


def task(at: Site, name: str = "self_step") -> Task:
    return Task(ExchangeId(RUN_ID, 1, 0, name, 0), Tensors.of_module(at.module))


def test_self_training_adds_the_gradient_of_labels_and_of_own_predictions(tmp_path: Path) -> None:
    data = examples()
    own = site(tmp_path, data)
    found = SelfTrainer(own, SelfTrainingConfig(confidence=0.3, classes="own")).gradient(task(own))
    by_labels = labels_distiller(own).gradient(task(own))
    predicted = OwnPredictions(0.3, sorted(set(own.labelled.labels.tolist())))
    order = torch.arange(len(own.unlabelled))
    by_itself, loss = distillation_gradient(own.module, own.unlabelled, None, order, predicted, CPU)
    torch.testing.assert_close(dict(found.gradient), dict(by_labels.gradient + by_itself))
    assert found.loss == pytest.approx(by_labels.loss + loss)
    assert found.examples == N


def test_steps_draw_from_all_examples_where_there_is_a_teacher_and_from_the_labelled_ones_else(tmp_path: Path) -> None:
    own = site(tmp_path, examples())
    assert len(distiller_of(own).examples) == N
    assert len(labels_distiller(own).examples) == 9
    alone = site(tmp_path, examples(), dkd={"batch_size": 0, "hard_label_weight": 1.0})
    assert len(distiller_of(alone).examples) == 9


def test_few_labels_do_not_mean_few_steps(tmp_path: Path) -> None:
    own = site(tmp_path, examples(labelled=2))
    training = train_locally(own, task(own, "local_train"), LocalObjective(own, CrossEntropyConfig()))
    assert training.steps == 3 * math.ceil(N / 4)
    assert training.gradient_evaluations == 2 * training.steps
    few = site(tmp_path, examples(labelled=9), training={"batch_size": 4, "steps": 5})
    trained = train_locally(few, task(few, "local_train"), LocalObjective(few, CrossEntropyConfig()))
    assert (trained.steps, trained.gradient_evaluations) == (5, 9 + 8)


@given(st.integers(1, 10_000), st.integers(1, 100), st.integers(1, 10))
def test_an_epoch_is_a_pass_over_all_examples(examples: int, batch_size: int, epochs: int) -> None:
    training = Config.parse({"training": {"batch_size": batch_size, "epochs": epochs}}).training
    assert local_steps(training, examples) == epochs * len(range(0, examples, batch_size))
    assert local_steps(training.model_copy(update={"steps": 7}), examples) == 7


FEW = ("data.labelled_share=0.25", "rounds=1")
UNEQUAL = ("data.labels_per_class=3", "partition.name=quantity_dirichlet")
"""Clients whose shares of labels differ."""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dkd.start=average"], {"local_train": "labelled", "dkd_step": "all"}),
        (["dkd.start=previous"], {"local_train": "all", "dkd_step": "all"}),
        (["dkd.start=previous", "dkd.hard_label_weight=1"], {"local_train": "labelled", "dkd_step": "labelled"}),
        (["algorithm.name=fedavg_sgd", "dkd.start=previous"], {"local_train": "labelled", "sgd_step": "labelled"}),
        (["algorithm.name=self_training"], {"local_train": "labelled", "self_step": "all"}),
        (["algorithm.name=scaffold"], {"local_train": "labelled"}),
        (
            ["dkd.teacher=auto", "dkd.start=average"],
            {"local_train": "labelled", "dkd_step": "all", "self_step": "all", "sgd_step": "labelled"},
        ),
    ],
)
def test_a_client_is_weighed_by_what_an_exchange_computes_on(overrides: list[str], expected: dict[str, str]) -> None:
    config = small_config(*FEW, *overrides)
    kinds = algorithms.build(config).exchanges(config)
    assert {name: kind.computes_on for name, kind in kinds.items()} == expected
    assert ExchangeKind(computes_on="all").examples(ExampleCounts(3, 5)) == 8
    assert ExchangeKind().examples(ExampleCounts(3, 5)) == 3


def test_the_mean_of_a_step_is_over_all_examples_and_that_of_an_update_over_the_labelled_ones(tmp_path: Path) -> None:
    """The losses of an exchange are averaged with the weights that its contributions have."""
    config = small_config(*UNEQUAL, "rounds=1", "dkd.start=average")
    counts = [worker.counts for worker in simulated_workers(config, tmp_path / "look").values()]
    assert len({count.labelled / count.total for count in counts}) == len(counts), "the shares of labels have to differ"
    seen = dict[str, list[float]]()

    class Weighing(EngineProxy):
        def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
            seen[exchange.id.name] = list(exchange.clients.values())
            return super().carry_out(exchange, keep)

    run_in_process(config, tmp_path / "run", around=Weighing)
    assert seen["local_train"] == [float(count.labelled) for count in counts]
    assert seen["dkd_step"] == [float(count.total) for count in counts]


def test_a_site_without_any_label_is_refused_in_one_line(tmp_path: Path) -> None:
    config = small_config("rounds=1")
    worker = next(iter(simulated_workers(config, tmp_path).values()))
    bare = worker.site.examples.with_labels(torch.full((len(worker.site.examples),), UNLABELLED))
    with pytest.raises(DataError, match=r"^site-1: none of its \d+ examples has a label"):
        type(worker)(config, "site-1", bare, StateDir(tmp_path / "site-1", "site-1"))


def counts_of(teacher: int, student: int, sure: int = 0, right: int = 0, *, teacher_right: int = 20) -> Tensor:
    """Counts of 40 examples."""
    return torch.tensor([40, teacher_right, teacher, student, sure, right], dtype=torch.float64)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (counts_of(9, 2), "dkd_step"),  # ahead
        (counts_of(8, 5), "sgd_step"),  # ahead, but by less than chance would explain, and often wrong
        (counts_of(0, 0, teacher_right=36), "dkd_step"),  # level, and right nine times of ten
        (counts_of(0, 0, teacher_right=35), "sgd_step"),
        (counts_of(1, 3, teacher_right=36), "dkd_step"),  # behind by no more than chance would explain
        (counts_of(0, 3, teacher_right=36), "sgd_step"),
        (counts_of(0, 0, sure=30, right=29), "self_step"),
        (counts_of(2, 9, sure=0), "sgd_step"),
        (counts_of(2, 9, sure=30, right=29), "self_step"),
        (counts_of(2, 9, sure=30, right=20), "sgd_step"),
        (counts_of(2, 9, sure=3, right=3), "sgd_step"),  # too few to know
    ],
)
def test_the_teacher_is_chosen_by_what_clients_count(counts: Tensor, expected: str) -> None:
    assert TeacherChoice().choose(counts, 1e3) == expected


def test_a_sum_that_misses_a_whole_number_by_a_bit_decides_as_the_whole_number() -> None:
    whole = torch.tensor([33, 23, 3, 1, 7, 6], dtype=torch.float64)
    for factor in (1 - 1e-15, 1.0, 1 + 1e-15):
        assert TeacherChoice().choose(whole * factor, 1e3) == "sgd_step"


def test_few_held_out_examples_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config("rounds=2", "data.labels_per_class=2", "data.holdout=0.1", "dkd.teacher=auto")
    run_in_process(config, tmp_path)
    assert [text for text in caplog.messages if "held-out examples of all clients" in text] == [
        'dkd.teacher = "auto" goes by 4 held-out examples of all clients; raise data.holdout'
    ]


def test_earlier_rounds_count_half() -> None:
    choice = TeacherChoice()
    assert choice.choose(counts_of(0, 10), 1e3) == "sgd_step"
    again = TeacherChoice(choice.state())
    assert again.choose(counts_of(9, 3), 1e3) == choice.choose(counts_of(9, 3), 1e3) == "sgd_step"
    assert again.state().tolist() == choice.state().tolist() == [60.0, 30.0, 9.0, 8.0, 0.0, 0.0]


def test_where_nothing_is_held_out_the_teachers_are_taken() -> None:
    assert TeacherChoice().choose(torch.zeros(6, dtype=torch.float64), 10.0) == "dkd_step"


@pytest.mark.parametrize("lie", [1e308, -1e308, 1e12])
def test_a_client_that_lies_decides_for_a_few_rounds_at_most(lie: float) -> None:
    choice = TeacherChoice()
    choice.choose(counts_of(9, 2, teacher_right=39) + torch.tensor([0, 0, 0, lie, 0, 0]), 100.0)
    later = [choice.choose(counts_of(9, 2, teacher_right=39), 100.0) for _ in range(4)]
    assert later[-1] == "dkd_step"
    assert bool(choice.state().isfinite().all())


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("start", ["previous", "average", "better"])
def test_the_server_sees_the_sum_of_what_its_clients_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, weights: str
) -> None:
    config = small_config(
        *UNEQUAL, "rounds=1", "data.holdout=0.4", "dkd.teacher=auto", f"dkd.start={start}", f"scheduler.weights={weights}"
    )
    held_out = sum(len(worker.site.held_out) for worker in simulated_workers(config, tmp_path / "look").values())
    seen: list[Tensor] = []

    def choose(_: TeacherChoice, counts: Tensor, most: float) -> str:
        seen.append(counts)
        assert (counts <= most).all()
        return "dkd_step"

    monkeypatch.setattr(TeacherChoice, "choose", choose)
    run_in_process(config, tmp_path / "run")
    (counts,) = seen
    torch.testing.assert_close(counts, counts.round())
    assert counts[0].round() == held_out > 4
    assert 0 <= counts[1] <= counts[0]


FORCED = ("rounds=2", "data.labelled_share=0.3", "data.holdout=0.2", "dkd.batch_size=0", "dkd.tail=0.0")


@pytest.mark.parametrize("chosen", ["self_step", "sgd_step"])
@pytest.mark.parametrize("start", ["previous", "better"])
def test_steps_that_do_not_go_by_teachers_are_those_of_the_other_algorithm_but_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, chosen: str
) -> None:
    """One of the steps is spent on finding out; then they start at the previous model."""
    monkeypatch.setattr(TeacherChoice, "choose", lambda *_: chosen)
    recorder = Recorder()
    auto = small_config(*FORCED, "dkd.teacher=auto", f"dkd.start={start}", "dkd.steps=3")
    found = run_in_process(auto, tmp_path / "auto", [recorder])
    name = {"self_step": "self_training", "sgd_step": "fedavg_sgd"}[chosen]
    other = run_in_process(small_config(*FORCED, f"algorithm.name={name}", "dkd.start=previous", "dkd.steps=2"), tmp_path / "other")
    assert found.model.sha256() == other.model.sha256()
    assert [record.metrics.get("started_over") for record in recorder.rounds] == [1.0 if start == "better" else None] * 2


def test_steps_from_the_average_start_there_whatever_they_go_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TeacherChoice, "choose", lambda *_: "sgd_step")
    found = run_in_process(small_config(*FORCED, "dkd.teacher=auto", "dkd.start=average"), tmp_path / "auto")
    other = run_in_process(small_config(*FORCED, "algorithm.name=fedavg_sgd", "dkd.start=average"), tmp_path / "other")
    assert found.model.sha256() == other.model.sha256()


@pytest.mark.parametrize("start", ["previous", "better", "average"])
def test_steps_by_teachers_are_feddkds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setattr(TeacherChoice, "choose", lambda *_: "dkd_step")
    hashes = {
        run_in_process(small_config(*FORCED, f"dkd.teacher={teacher}", f"dkd.start={start}"), tmp_path / teacher).model.sha256()
        for teacher in ("local", "auto")
    }
    assert len(hashes) == 1


def test_what_was_counted_outlives_a_round_that_failed() -> None:
    algorithm = algorithms.build(small_config("dkd.teacher=auto"))
    algorithm.load_state_dict({HELD_OUT: counts_of(1, 2)})
    assert algorithm.state_dict()[HELD_OUT].tolist() == counts_of(1, 2).tolist()
    algorithm.load_state_dict({})
    assert algorithm.state_dict()[HELD_OUT].tolist() == [0.0] * 6


def test_held_out_examples_are_counted_where_the_two_disagree() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    teacher = F.one_hot(torch.tensor([0, 1, 0, 0]), CLASSES).float()
    student = 9.0 * F.one_hot(torch.tensor([0, 0, 2, 3]), CLASSES)
    found = count_held_out(teacher, student, labels, OwnPredictions(0.9, classes=[0, 1, 2]))
    # The last one is sure of a class that the client does not have, so that class is left out, and nothing is sure.
    assert found.tolist() == [4.0, 2.0, 1.0, 2.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.holdout=0"], "data.holdout"),
        (["dkd.hard_label_weight=1"], "hard_label_weight"),
        (["dkd.steps=1"], "at least 2 are needed, not 1"),
    ],
)
def test_a_teacher_that_cannot_be_judged_is_not_chosen(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config("dkd.teacher=auto", *overrides)


@pytest.mark.parametrize("name", ["fedavg", "fedavg_sgd", "self_training"])
def test_an_algorithm_without_a_teacher_has_none_to_choose(name: str) -> None:
    plain, auto = (algorithms.build(small_config(f"dkd.teacher={teacher}", f"algorithm.name={name}")) for teacher in ("local", "auto"))
    assert type(plain) is type(auto)
    assert {*plain.exchanges(plain.config)} == {*auto.exchanges(auto.config)}


def test_the_record_says_what_the_steps_of_a_round_went_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["dkd_step", "self_step", "sgd_step"]
    left = iter(chosen)
    monkeypatch.setattr(TeacherChoice, "choose", lambda *_: next(left))
    recorder = Recorder()
    run_in_process(small_config(*FORCED[1:], "rounds=3", "dkd.teacher=auto", "dkd.start=previous"), tmp_path, [recorder])
    names = [f"steps_by_{what}" for what in ("teachers", "own_predictions", "labels")]
    assert [[record.metrics[name] for name in names] for record in recorder.rounds] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    asked = [[record.id.name for record in recorder.exchanges if record.id.round == number] for number in (1, 2, 3)]
    assert [names[1] for names in asked] == chosen


def test_the_teachers_accuracy_is_that_of_what_was_just_trained(tmp_path: Path) -> None:
    config = small_config("rounds=1", "data.holdout=0.3", "partition.clients=1", "partition.labels=10", "dkd.start=average", "dkd.steps=0")
    recorder = Recorder()
    trained = run_in_process(config, tmp_path / "run", [recorder]).model
    (worker,) = simulated_workers(config, tmp_path / "look").values()
    trained.load_into(worker.site.module)
    expected = evaluate(worker.site.module, worker.site.held_out, CPU).accuracy
    assert recorder.rounds[0].metrics["teacher_accuracy"] == pytest.approx(expected)


class Extended(FedDKD):
    """An algorithm of a user's own with a teacher."""


def test_an_algorithm_that_extends_feddkd_does_not_ignore_the_key() -> None:
    config = small_config("dkd.teacher=auto", f"algorithm.name={__name__}:Extended")
    with pytest.raises(ConfigError, match="only feddkd itself chooses a teacher"):
        algorithms.build(config)
