import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.config import PartitionConfig
from feddkd.data.partitions import class_counts, client_ids, hold_out, partition, unlabelled_counts
from feddkd.errors import PartitionError
from feddkd.tasks.base import UNLABELLED

RULES = ("iid", "labels_per_client", "dirichlet", "quantity_dirichlet", "shards")
seeds = st.integers(0, 2**32 - 1)


def config(name: str, **keys: object) -> PartitionConfig:
    return PartitionConfig.model_validate({"name": name, **keys})


def balanced(n: int, num_classes: int) -> Tensor:
    """Labels 0, 1, .. in turn."""
    return torch.arange(n) % num_classes


def assert_deals_everything_once(parts: list[Tensor], n: int) -> None:
    assert torch.cat(parts).sort().values.tolist() == list(range(n))
    for part in parts:
        assert part.dtype == torch.int64
        assert len(part) > 0
        assert torch.equal(part, part.sort().values)


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_rule_deals_every_example_once(name: str, data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 8), label="classes")
    clients = data.draw(st.integers(1, 12), label="clients")
    least = -(-num_classes // clients) if name == "labels_per_client" else 1
    labels_each = data.draw(st.integers(least, num_classes), label="labels")
    per_class = data.draw(st.integers(12, 40), label="examples of each class")
    alpha = data.draw(st.floats(0.3, 100), label="alpha")
    seed = data.draw(seeds, label="seed")
    labels = balanced(num_classes * per_class, num_classes)
    rule = config(name, clients=clients, labels=labels_each, alpha=alpha, min_size=1)
    if name == "shards" and clients * labels_each > len(labels):
        return
    parts = partition(rule, labels, num_classes, seed)
    assert len(parts) == clients
    assert_deals_everything_once(parts, len(labels))
    again = partition(rule, labels, num_classes, seed)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", RULES)
@given(unlabelled=st.sets(st.integers(0, 399), max_size=90), seed=seeds)
@settings(deadline=None, max_examples=25)
def test_examples_without_a_label_are_dealt_evenly_and_leave_the_others_alone(name: str, unlabelled: set[int], seed: int) -> None:
    mixed = balanced(400, 4)
    mixed[sorted(unlabelled)] = UNLABELLED
    known = (mixed != UNLABELLED).nonzero().squeeze(1)
    rule = config(name, clients=4, labels=2, min_size=1)
    alone = partition(rule, mixed[known], 4, seed)
    parts = partition(rule, mixed, 4, seed)
    assert_deals_everything_once(parts, 400)
    without = unlabelled_counts(parts, mixed)
    assert without.sum() == len(unlabelled)
    assert (class_counts(parts, mixed, 4).sum(1) + without).tolist() == [len(part) for part in parts]
    if name in ("iid", "quantity_dirichlet"):
        # These do not look at labels.
        assert all(torch.equal(one, other) for one, other in zip(parts, partition(rule, balanced(400, 4), 4, seed), strict=True))
        return
    assert without.max() - without.min() <= 1
    for part, labelled in zip(parts, alone, strict=True):
        assert torch.equal(part[mixed[part] != UNLABELLED], known[labelled])


def test_a_rule_says_how_many_examples_with_a_label_it_had() -> None:
    labels = torch.tensor([0, 1, UNLABELLED, UNLABELLED])
    with pytest.raises(PartitionError, match=r"partition\.min_size = 2: 2 clients .* only 2 \(among the 2 examples that have a label\)"):
        partition(config("dirichlet", clients=2, min_size=2), labels, 2, 0)


@pytest.mark.parametrize("name", RULES)
def test_another_seed_deals_otherwise(name: str) -> None:
    labels = balanced(600, 6)
    rule = config(name, clients=7, labels=2)
    one, other = (torch.cat(partition(rule, labels, 6, seed)) for seed in (0, 1))
    assert one.tolist() != other.tolist()


@given(n=st.integers(1, 200), clients=st.integers(1, 50), seed=seeds)
@settings(deadline=None)
def test_iid_sizes_differ_by_at_most_one(n: int, clients: int, seed: int) -> None:
    if clients > n:
        with pytest.raises(PartitionError, match=rf"partition\.clients = {clients}: there are only {n} examples"):
            partition(config("iid", clients=clients), balanced(n, 3), 3, seed)
        return
    sizes = [len(part) for part in partition(config("iid", clients=clients), balanced(n, 3), 3, seed)]
    assert max(sizes) - min(sizes) <= 1


@given(clients=st.integers(1, 30), labels_each=st.integers(1, 10), seed=seeds)
@settings(deadline=None)
def test_labels_per_client_gives_exactly_so_many_classes_and_equal_shares(clients: int, labels_each: int, seed: int) -> None:
    labels = balanced(10 * 61, 10)
    rule = config("labels_per_client", clients=clients, labels=labels_each)
    if clients * labels_each < 10:
        with pytest.raises(PartitionError, match=rf"partition\.labels = {labels_each}: {clients} clients .* do not cover all 10 classes"):
            partition(rule, labels, 10, seed)
        return
    counts = class_counts(partition(rule, labels, 10, seed), labels, 10)
    assert counts.gt(0).sum(1).tolist() == [labels_each] * clients
    assert all(counts[client, client % 10] > 0 for client in range(clients))
    for shares in counts.T:
        held = shares[shares > 0]
        assert held.max() - held.min() <= 1


def test_one_label_for_each_of_ten_clients_is_the_label_of_its_number() -> None:
    labels = balanced(100, 10)
    parts = partition(config("labels_per_client", clients=10, labels=1), labels, 10, seed=5)
    assert class_counts(parts, labels, 10).tolist() == (10 * torch.eye(10, dtype=torch.int64)).tolist()


@given(alpha=st.floats(0.05, 10), clients=st.integers(2, 12), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_dirichlet_rules_keep_the_least_size(alpha: float, clients: int, seed: int) -> None:
    labels = balanced(3000, 10)
    parts = partition(config("dirichlet", clients=clients, alpha=alpha, min_size=10), labels, 10, seed)
    assert_deals_everything_once(parts, 3000)
    assert min(len(part) for part in parts) >= 10


def test_a_small_alpha_is_more_skewed_than_a_large_one() -> None:
    labels = balanced(5000, 10)

    def mean_share_of_the_largest_class(alpha: float) -> float:
        counts = class_counts(partition(config("dirichlet", clients=10, alpha=alpha), labels, 10, 3), labels, 10)
        return float((counts.max(1).values / counts.sum(1)).mean())

    assert mean_share_of_the_largest_class(0.1) > 0.5
    assert mean_share_of_the_largest_class(1000.0) < 0.13


def test_a_client_with_its_fair_share_gets_no_more_of_the_label_dirichlet() -> None:
    # Classes are dealt in order, so a client that is at 1/4 of all after some class has nothing of the later ones.
    labels = balanced(4000, 10)
    for seed in range(5):
        counts = class_counts(partition(config("dirichlet", clients=4, alpha=0.3), labels, 10, seed), labels, 10)
        before = counts.cumsum(1) - counts
        assert counts[before >= 1000].sum() == 0


def test_quantity_dirichlet_skews_sizes_and_not_labels() -> None:
    labels = balanced(20_000, 2)
    counts = class_counts(partition(config("quantity_dirichlet", clients=5, alpha=0.5, min_size=300), labels, 2, 1), labels, 2)
    sizes = counts.sum(1)
    assert sizes.min() >= 300
    assert sizes.max() > 2 * sizes.min()
    assert (counts[:, 0] / sizes - 0.5).abs().max() < 0.1


def test_shards_are_equal_and_hold_few_classes() -> None:
    labels = balanced(6000, 10)
    parts = partition(config("shards", clients=100, labels=2), labels, 10, 0)
    assert {len(part) for part in parts} == {60}
    assert class_counts(parts, labels, 10).gt(0).sum(1).max() <= 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (config("iid", clients=101), r"partition\.clients = 101: there are only 100 examples"),
        (config("labels_per_client", labels=6), r"partition\.labels = 6: there are only 5 classes"),
        (config("labels_per_client", clients=2, labels=2), r"partition\.labels = 2: 2 clients \(partition\.clients\)"),
        (
            config("labels_per_client", clients=100, labels=2),
            r"partition\.clients = 100: \d+ clients hold class \d, which has only 20 examples",
        ),
        (config("dirichlet", clients=11), r"partition\.min_size = 10: 11 clients .* need 110, and there are only 100"),
        (config("quantity_dirichlet", min_size=11), r"partition\.min_size = 11: 10 clients .* need 110, and there are only 100"),
        (config("shards", clients=51, labels=2), r"partition\.labels = 2: 51 clients .* need 102 shards"),
    ],
)
def test_what_cannot_be_dealt_is_refused_by_key_and_value(rule: PartitionConfig, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition(rule, balanced(100, 5), 5, 0)


@pytest.mark.parametrize("name", ["dirichlet", "quantity_dirichlet"])
def test_a_hopeless_dirichlet_gives_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.data.partitions.DRAWS", {name: 200})
    with pytest.raises(PartitionError, match=r"partition\.alpha = 0\.01: in 200 draws .* partition\.min_size = 10"):
        partition(config(name, alpha=0.01, clients=10, min_size=10), balanced(100, 5), 5, 0)


def test_a_vanishing_alpha_still_deals_everything() -> None:
    labels = balanced(1000, 10)
    parts = partition(config("dirichlet", alpha=1e-6, clients=5, min_size=1), labels, 10, 0)
    assert_deals_everything_once(parts, 1000)


def test_class_counts_count_classes_that_nobody_has() -> None:
    counts = class_counts([torch.tensor([0, 1]), torch.tensor([2])], torch.tensor([3, 3, 0]), 5)
    assert counts.tolist() == [[0, 0, 0, 2, 0], [1, 0, 0, 0, 0]]


@given(n=st.integers(1, 120), share=st.floats(0, 0.99), seed=seeds)
@settings(deadline=None)
def test_hold_out_splits_in_two(n: int, share: float, seed: int) -> None:
    labels = balanced(3 * n, 4)
    index = torch.arange(0, 3 * n, 3)
    train, held = hold_out(index, labels, share, seed)
    assert torch.cat([train, held]).sort().values.tolist() == index.tolist()
    assert torch.equal(train, train.sort().values)
    assert torch.equal(held, held.sort().values)
    assert len(train) >= 1
    if share == 0 or n == 1:
        assert len(held) == 0
    else:
        assert len(held) == min(max(round(share * n), 1), n - 1)
    assert all(torch.equal(one, other) for one, other in zip((train, held), hold_out(index, labels, share, seed), strict=True))


def test_hold_out_takes_classes_in_proportion_and_depends_on_the_seed() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50)
    index = torch.arange(150)
    held = hold_out(index, labels, 0.2, 0)[1]
    assert torch.bincount(labels[held]).tolist() == [20, 10]
    assert hold_out(index, labels, 0.2, 1)[1].tolist() != held.tolist()


@given(labelled=st.integers(0, 60), unlabelled=st.sets(st.integers(0, 119), max_size=60), share=st.floats(0, 0.99), seed=seeds)
@settings(deadline=None)
def test_only_examples_that_have_a_label_are_held_out(labelled: int, unlabelled: set[int], share: float, seed: int) -> None:
    labels = torch.full((120,), UNLABELLED)
    known = torch.tensor([place for place in range(120) if place not in unlabelled][:labelled], dtype=torch.int64)
    labels[known] = balanced(len(known), 4)
    train, held = hold_out(torch.arange(120), labels, share, seed)
    assert torch.cat([train, held]).sort().values.tolist() == list(range(120))
    if len(known) == 0:
        assert len(held) == 0
        return
    # The same as if there were no others.
    alone = hold_out(torch.arange(len(known)), labels[known], share, seed)
    assert torch.equal(held, known[alone[1]])
    assert torch.equal(train[labels[train] != UNLABELLED], known[alone[0]])
    assert len(alone[0]) >= 1


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [(1, "client-0", "client-0"), (10, "client-0", "client-9"), (11, "client-00", "client-10"), (1000, "client-000", "client-999")],
)
def test_client_ids_sort_in_client_order(count: int, first: str, last: str) -> None:
    names = client_ids(count)
    assert (names[0], names[-1], len(set(names))) == (first, last, count)
    assert names == sorted(names)
