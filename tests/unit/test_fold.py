"""The reduction of contributions as they arrive: the same bits in any order, with any memory, whoever is lost."""

import random
import re
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from collecting import CONTRIBUTIONS, LARGE, WEIGHTS, Scene, Sender, expected
from harness import OnePass, OrderSensitiveMean, filled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.aggregator.rule import Reduction, Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.engines.collection import Judgement
from feddkd.exchange import Closing
from feddkd.tensors import Segment, Tensors


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0, 20_000, 1 << 20]))
def test_in_whatever_order_the_chunks_of_all_clients_arrive_the_mean_has_the_same_bits(seed: int, budget_bytes: int) -> None:
    chooser = random.Random(seed)
    scene = Scene(budget_bytes=budget_bytes)
    queues = {client: Sender(scene, client, CONTRIBUTIONS[client]).steps() for client in WEIGHTS}
    while queues:
        client = chooser.choice(list(queues))
        assert queues[client].pop(0)() is None
        if not queues[client]:
            del queues[client]
        if chooser.random() < 0.3:
            scene.reduce()
    result = scene.result()
    assert result is not None
    assert result.sha256() == expected("a", "b", "c", "d")


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0, 20_000, 1 << 20]))
def test_clients_that_are_lost_and_come_back_anywhere_leave_the_mean_of_those_who_replied(seed: int, budget_bytes: int) -> None:
    chooser = random.Random(seed)
    scene = Scene(budget_bytes=budget_bytes, closing=Closing(1000.0, reconnect_grace_s=10.0))
    senders = {client: Sender(scene, client, CONTRIBUTIONS[client]) for client in WEIGHTS}
    queues = {client: sender.steps() for client, sender in senders.items()}

    def send(client: str) -> None:
        assert queues[client].pop(0)() is None
        if not queues[client]:
            del queues[client]

    def break_and_resume(client: str) -> None:
        scene.collection.disconnect(client, 0.0)
        scene.collection.connect(client, 0.0, holds_broadcast=True)
        begun = scene.collection.contributions[client].has_begun
        queues[client] = senders[client].steps(scene.collection.contributions[client].received_bytes if begun else 0)

    def restart(client: str) -> None:
        scene.collection.disconnect(client, 0.0)
        scene.collection.connect(client, 0.0, holds_broadcast=False)
        queues[client] = senders[client].steps()

    def fail(client: str) -> None:
        scene.collection.fail(client, "lost")
        del queues[client]

    actions: list[tuple[Callable[[str], None], float]] = [(send, 100), (break_and_resume, 1), (restart, 0.3), (fail, 0.3)]
    while queues:
        action = chooser.choices([action for action, _ in actions], [weight for _, weight in actions])[0]
        action(chooser.choice(list(queues)))
        if chooser.random() < 0.3:
            scene.reduce()
    result = scene.result()
    replied = scene.collection.replies()
    assert (result.sha256() if result is not None else None) == (expected(*replied) if replied else None)
    scene.collection.close()
    assert scene.spool.used_bytes == 0


def test_a_block_is_reduced_as_soon_as_every_client_has_delivered_it() -> None:
    reduced: list[Segment] = []

    class Watched(WeightedMean):
        def start(self, clients: Sequence[str] = ()) -> Reduction:
            return _Spy(WeightedMean().start(clients), reduced)

    scene = Scene({"a": 1.0, "b": 1.0}, rule=Watched())
    first, second = (Sender(scene, client, CONTRIBUTIONS[client]).steps() for client in "ab")
    for step in first:
        step()
    scene.reduce()
    assert reduced == []
    for step in second[:4]:
        step()
    scene.reduce()
    assert reduced == list(LARGE.chunks(1024))[:3]
    scene.collection.fail("b", "lost")
    assert scene.result() is not None
    assert reduced == [*LARGE.chunks(1024)[:3], *LARGE.chunks(1024)]  # over again, without b


class _Spy(OnePass):
    def __init__(self, reduction: Reduction, reduced: list[Segment]) -> None:
        self._reduction = reduction
        self._reduced = reduced

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        self._reduced.append(block)
        self._reduction.reduce(block, rows, out)


def test_rows_come_in_client_order_whoever_was_first() -> None:
    results = set()
    for order in ("abcd", "dcba", "bdac"):
        scene = Scene(rule=OrderSensitiveMean())
        for client in order:
            Sender(scene, client, CONTRIBUTIONS[client]).send()
        result = scene.result()
        assert result is not None
        results.add(result.sha256())
    assert len(results) == 1


class NearestToMean:
    """A rule of two passes: the contribution nearest to the mean. Looks at all of them before it chooses."""

    passes = 2

    def start(self, clients: Sequence[str]) -> Reduction:
        return _NearestReduction()


class _NearestReduction(OnePass):
    def __init__(self) -> None:
        self.distances: list[float] = []

    def survey(self, block: Segment, rows: Rows) -> None:
        listed = [elements.double().clone() for elements, _ in rows]
        mean = torch.stack(listed).mean(0)
        if not self.distances:
            self.distances = [0.0] * len(listed)
        for index, elements in enumerate(listed):
            self.distances[index] += float((elements - mean).square().sum())

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        chosen = self.distances.index(min(self.distances))
        for index, (elements, _) in enumerate(rows):
            if index == chosen:
                out.copy_(elements)


def nearest(clients: Mapping[str, float]) -> str:
    listed = {client: CONTRIBUTIONS[client].block.clone() for client in clients}
    parts = {client: torch.cat([CONTRIBUTIONS[client].elements(segment).double() for segment in LARGE.segments]) for client in listed}
    mean = torch.stack(list(parts.values())).mean(0)
    return min(parts, key=lambda client: float((parts[client] - mean).square().sum()))


@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
def test_a_rule_of_two_passes_reads_all_contributions_twice_from_memory_or_file(budget_bytes: int) -> None:
    scene = Scene(rule=NearestToMean(), budget_bytes=budget_bytes)
    for client in "bdac":
        scene.reduce()
        Sender(scene, client, CONTRIBUTIONS[client]).send()
    result = scene.result()
    assert result is not None
    assert result.sha256() == CONTRIBUTIONS[nearest(WEIGHTS)].sha256()


def test_a_rule_of_two_passes_does_not_look_at_clients_that_are_lost() -> None:
    scene = Scene(rule=NearestToMean())
    chosen = nearest(WEIGHTS)
    for client in WEIGHTS:
        for step in Sender(scene, client, CONTRIBUTIONS[client]).steps()[: -1 if client == chosen else None]:
            step()
    scene.reduce()
    scene.collection.fail(chosen, "lost")
    result = scene.result()
    rest = {client: weight for client, weight in WEIGHTS.items() if client != chosen}
    assert result is not None
    assert result.sha256() == CONTRIBUTIONS[nearest(rest)].sha256()


class Overflowing(OnePass, WeightedMean):
    def start(self, clients: Sequence[str] = ()) -> Reduction:
        return self

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        out.copy_(sum((elements * 10_000 for elements, _ in rows), start=torch.zeros_like(out)))


def test_a_reduction_that_is_not_finite_says_whose_contributions_were_largest() -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, rule=Overflowing())
    large = filled(LARGE, 5)
    large["h"].fill_(60_000)
    Sender(scene, "a", CONTRIBUTIONS["a"]).send()
    Sender(scene, "b", large).send()
    assert scene.result() is None
    assert scene.fold is not None
    assert re.search(r"NaN or infinite; largest: b \(norm 1\.\d+e\+06\), a", scene.fold.fault)


def test_a_fault_is_final_only_when_nobody_can_be_given_up_any_more() -> None:
    scene = Scene({"a": 1.0, "b": 1.0, "c": 1.0}, rule=Overflowing())
    assert scene.fold is not None
    large = filled(LARGE, 5)
    large["h"].fill_(60_000)
    *most, _ = Sender(scene, "b", large).steps()
    for step in [*Sender(scene, "a", Tensors(LARGE)).steps(), *Sender(scene, "c", Tensors(LARGE)).steps(), *most]:
        step()
    scene.reduce()
    assert not scene.fold.finished  # "b" is not here whole
    scene.collection.fail("b", "lost")
    result = scene.result()
    assert result is not None
    assert scene.fold.fault == ""


def test_nobody_replying_gives_nothing_and_says_why() -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, closing=Closing(0.5))
    scene.collection.disconnect("a", 0.0)
    scene.advance_to(0.0)
    scene.advance_to(0.5)
    assert scene.result() is None
    assert scene.missing() == {"a": "not connected", "b": "no reply within 0.5 s"}


def test_an_exchange_without_clients_is_over_at_once() -> None:
    scene = Scene({})
    assert scene.collection.settled
    assert scene.result() is None


def test_a_refused_client_is_not_reduced() -> None:
    scene = Scene({"a": 3.0, "b": 1.0})
    Sender(scene, "a", CONTRIBUTIONS["a"]).send()
    bad = filled(LARGE, 9)
    bad["d"][-1] = float("nan")
    judgements: list[Judgement] = Sender(scene, "b", bad).send()
    assert len(judgements) == 1
    result = scene.result()
    assert result is not None
    assert result.sha256() == expected("a")
