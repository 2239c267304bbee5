from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.examples import MemoryExamples
from feddkd.data.labels import NoiseKind, add_label_noise, hide_labels, prepare_labels
from feddkd.tasks.base import UNLABELLED

CLASSES = 6
KINDS: tuple[NoiseKind, ...] = ("symmetric", "pairwise", "own_classes")
seeds = st.integers(0, 2**63 - 1)
shares = st.floats(0, 1, exclude_min=True)
any_labels = st.lists(st.integers(UNLABELLED, CLASSES - 1), max_size=120).map(lambda values: torch.tensor(values, dtype=torch.int64))


def counts(labels: Tensor) -> Tensor:
    """Labels of each class: int64 [CLASSES]."""
    return torch.bincount(labels[labels != UNLABELLED], minlength=CLASSES)


def assert_only_hides(before: Tensor, after: Tensor) -> None:
    assert after.dtype == torch.int64
    assert ((after == before) | (after == UNLABELLED)).all()


@given(labels=any_labels, share=shares, seed=seeds)
@settings(deadline=None)
def test_a_share_of_the_labels_is_kept_in_proportion_to_the_classes(labels: Tensor, share: float, seed: int) -> None:
    before = labels.clone()
    hidden = hide_labels(labels, share, seed=seed)
    assert torch.equal(labels, before)
    assert_only_hides(labels, hidden)
    assert torch.equal(hidden, hide_labels(labels, share, seed=seed))
    sizes, kept = counts(labels), counts(hidden)
    total = int(sizes.sum())
    expected = min(max(round(share * total), 1), total)
    assert kept.sum() == expected
    exact = expected * sizes / max(total, 1)
    present = sizes > 0
    if expected >= present.sum():
        assert (kept[present] >= 1).all()
        assert (kept <= exact.ceil().clamp(min=1)).all()
    if expected < present.sum() or (exact[present] >= 1).all():
        assert (kept >= exact.floor()).all()
        assert (kept <= exact.ceil()).all()


@given(labels=any_labels, per_class=st.integers(1, 30), seed=seeds)
@settings(deadline=None)
def test_so_many_labels_of_each_class_are_kept(labels: Tensor, per_class: int, seed: int) -> None:
    hidden = hide_labels(labels, per_class=per_class, seed=seed)
    assert_only_hides(labels, hidden)
    assert torch.equal(hidden, hide_labels(labels, per_class=per_class, seed=seed))
    assert counts(hidden).tolist() == counts(labels).clamp(max=per_class).tolist()


@given(labels=any_labels, fewer=st.integers(1, 10), more=st.integers(0, 10), seed=seeds)
@settings(deadline=None)
def test_more_labels_of_each_class_include_the_fewer(labels: Tensor, fewer: int, more: int, seed: int) -> None:
    few, many = (hide_labels(labels, per_class=number, seed=seed) for number in (fewer, fewer + more))
    assert_only_hides(many, few)


def test_which_labels_are_kept_depends_on_the_seed_and_ties_are_broken_by_it() -> None:
    labels = torch.arange(60) % CLASSES
    first, second = (hide_labels(labels, 0.5, seed=seed) for seed in (0, 1))
    assert first.tolist() != second.tolist()
    # Three labels for six classes of equal size: not always the first three.
    lucky = {tuple(counts(hide_labels(labels, 0.05, seed=seed)).tolist()) for seed in range(20)}
    assert len(lucky) > 1
    assert all(sum(kept) == 3 and max(kept) == 1 for kept in lucky)


def test_no_label_and_all_labels_stay_as_they_are() -> None:
    nothing = torch.full((4,), UNLABELLED)
    assert torch.equal(hide_labels(nothing, 0.5, seed=0), nothing)
    assert torch.equal(hide_labels(nothing, per_class=2, seed=0), nothing)
    labels = torch.arange(30) % CLASSES
    assert torch.equal(hide_labels(labels, 1.0, seed=0), labels)


def test_a_rare_class_keeps_a_label_where_there_are_enough() -> None:
    labels = torch.tensor([0] * 96 + [1, 2, 3, 4])
    assert counts(hide_labels(labels, 0.05, seed=0)).tolist() == [1, 1, 1, 1, 1, 0]
    assert counts(hide_labels(labels, 0.2, seed=0)).tolist() == [16, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
@given(labels=any_labels, share=st.floats(0, 1), seed=seeds)
@settings(deadline=None, max_examples=60)
def test_noise_gives_labels_of_its_kind(kind: NoiseKind, labels: Tensor, share: float, seed: int) -> None:
    before = labels.clone()
    noisy = add_label_noise(labels, share, kind, CLASSES, seed)
    assert torch.equal(labels, before)
    assert noisy.dtype == torch.int64
    assert torch.equal(noisy, add_label_noise(labels, share, kind, CLASSES, seed))
    assert torch.equal(noisy == UNLABELLED, labels == UNLABELLED)
    changed = noisy != labels
    wrong = noisy[changed]
    assert ((wrong >= 0) & (wrong < CLASSES)).all()
    if kind == "pairwise":
        assert torch.equal(wrong, (labels[changed] + 1) % CLASSES)
    if kind == "own_classes":
        assert set(wrong.tolist()) <= set(labels.tolist()) - {UNLABELLED}
    if share == 0:
        assert not changed.any()
    if share == 1 and (kind != "own_classes" or counts(labels).gt(0).sum() > 1):
        assert torch.equal(changed, labels != UNLABELLED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_the_rate_of_noise_is_within_five_standard_deviations(kind: NoiseKind, share: float) -> None:
    n = 20_000
    labels = torch.arange(n) % CLASSES
    changed = int((add_label_noise(labels, share, kind, CLASSES, seed=3) != labels).sum())
    assert abs(changed - share * n) < 5 * (n * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("kind", "classes"), [("symmetric", CLASSES), ("own_classes", 4)])
def test_every_other_class_is_as_likely(kind: NoiseKind, classes: int) -> None:
    n = 20_000
    labels = torch.arange(n) % 2 * 3 if kind == "symmetric" else torch.arange(n) % 4
    wrong = add_label_noise(labels, 1.0, kind, CLASSES, seed=5)[labels == 3]
    others = counts(wrong)[[label for label in range(classes) if label != 3]]
    assert others.sum() == len(wrong)
    share = 1 / (classes - 1)
    assert (others - share * len(wrong)).abs().max() < 5 * (len(wrong) * share * (1 - share)) ** 0.5


def test_one_own_class_cannot_be_confused_with_another() -> None:
    labels = torch.tensor([2, UNLABELLED, 2])
    assert torch.equal(add_label_noise(labels, 1.0, "own_classes", CLASSES, 0), labels)


@given(labels=any_labels, hidden=st.sets(st.integers(0, 119)), share=st.floats(0, 1), seed=seeds)
@settings(deadline=None)
def test_noise_of_an_example_does_not_depend_on_which_others_have_a_label(
    labels: Tensor, hidden: set[int], share: float, seed: int
) -> None:
    fewer = labels.clone()
    fewer[[position for position in hidden if position < len(labels)]] = UNLABELLED
    all_noisy, fewer_noisy = (add_label_noise(some, share, "symmetric", CLASSES, seed) for some in (labels, fewer))
    assert_only_hides(all_noisy, fewer_noisy)


def client(n: int = 200) -> MemoryExamples:
    return MemoryExamples(torch.arange(n).float().view(n, 1), torch.arange(n) % 2)


def prepared(seed: int = 0, client_id: str = "a", **keys: object) -> MemoryExamples:
    examples = prepare_labels(client(), DataConfig.model_validate(keys), CLASSES, seed, client_id)
    assert isinstance(examples, MemoryExamples)
    return examples


def test_nothing_configured_gives_the_same_object() -> None:
    examples = client()
    assert prepare_labels(examples, DataConfig(), CLASSES, 0, "a") is examples


def test_prepared_labels_depend_on_the_run_and_the_client() -> None:
    keys: dict[str, Any] = {"labelled_share": 0.1, "label_noise": 0.5}
    same = prepared(**keys).labels
    assert torch.equal(same, prepared(**keys).labels)
    assert not torch.equal(same, prepared(seed=1, **keys).labels)
    assert not torch.equal(same, prepared(client_id="b", **keys).labels)


def test_labels_are_hidden_first_and_the_noise_leaves_them_hidden() -> None:
    hidden = prepared(labels_per_class=20).labels
    both = prepared(labels_per_class=20, label_noise=1.0, label_noise_kind="own_classes").labels
    assert counts(hidden).tolist() == [20, 20, 0, 0, 0, 0]
    assert torch.equal(both == UNLABELLED, hidden == UNLABELLED)
    assert torch.equal(both[both >= 0], 1 - hidden[hidden >= 0])


def test_prepared_examples_share_the_inputs() -> None:
    examples = client()
    inputs = prepare_labels(examples, DataConfig(label_noise=0.5), CLASSES, 0, "a").gather(torch.tensor([3]))[0]
    examples.inputs[3] = 7.0
    noisy = prepare_labels(examples, DataConfig(label_noise=0.5), CLASSES, 0, "a")
    examples.inputs[3] = 9.0
    assert inputs.item() == 3.0
    assert noisy.gather(torch.tensor([3]))[0].item() == 9.0
