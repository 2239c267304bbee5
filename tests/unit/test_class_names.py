"""Sites number the same classes: their names are told and compared when they join."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from fake_streams import NotJoinedError, Server
from hypothesis import given
from hypothesis import strategies as st

from feddkd.data.class_names import MOST_BYTES, names_differ, names_of_dataset, shown_names, told_names
from feddkd.transport.pb import federation_pb2 as pb

NAMES = ("effusion", "normal", "pneumonia")

names = st.lists(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=9), min_size=1, max_size=6, unique=True
)


def join(client_id: str, told: Any) -> bytes:
    return pb.JoinRequest(protocol_version=1, client_id=client_id, num_examples=1, class_names=told).SerializeToString()


@given(names, st.sampled_from(["clear", "hash"]), st.sampled_from(["clear", "hash"]), st.randoms())
def test_names_are_compared_however_each_site_tells_them(these: list[str], mine: Any, other: Any, shuffling: Any) -> None:
    assert not names_differ(told_names(these, mine), told_names(these, other))
    shuffled = list(these)
    shuffling.shuffle(shuffled)
    assert names_differ(told_names(these, mine), told_names(shuffled, other)) == (these != shuffled)
    assert names_differ(told_names(these, mine), told_names([*these, "one more"], other))


def test_what_is_told() -> None:
    assert told_names(NAMES, "clear") == NAMES
    assert told_names(NAMES, "none") == ()
    assert all(name.startswith("sha256:") and len(name) == 71 for name in told_names(NAMES, "hash"))
    assert told_names(["x" * 257], "clear") == told_names(["a\n"], "clear") == told_names(["abcd"] * MOST_BYTES, "clear") == ()


def test_names_are_those_of_the_data_set_unless_labels_are_transformed() -> None:
    class Set:
        classes: Any = ["a", "b"]

    class Renumbered(Set):
        target_transform = abs

    class Odd(Set):
        classes = 2

    assert names_of_dataset(Set()) == ("a", "b")
    assert names_of_dataset(Renumbered()) == names_of_dataset(Odd()) == names_of_dataset(object()) == ()


@pytest.mark.parametrize("how", ["clear", "hash"])
@pytest.mark.parametrize("theirs", [("normal", "pneumonia", "zz_effusion"), NAMES[:2], (*NAMES, "other")])
def test_other_classes_are_refused_with_both_lists(how: Any, theirs: tuple[str, ...]) -> None:
    async def scene() -> None:
        server = Server()
        await server.join_with(join("north", told_names(NAMES, how)))
        await server.join_with(join("silent", ()))
        await server.join_with(join("south", NAMES))
        with pytest.raises(NotJoinedError) as refused:
            await server.join_with(join("east", theirs))
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        text = str(refused.value)
        assert f"the classes of east are {shown_names(theirs)}, and those of north {shown_names(told_names(NAMES, how))}" in text
        assert "\n" not in text
        await server.close()

    asyncio.run(scene())


@pytest.mark.parametrize("told", [[""], ["x" * 300]])
def test_names_that_no_client_tells_are_refused(told: list[str]) -> None:
    async def scene() -> None:
        server = Server()
        with pytest.raises(NotJoinedError, match="names of classes have 1 to 256 characters"):
            await server.join_with(join("east", told))
        await server.close()

    asyncio.run(scene())
