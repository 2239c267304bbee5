"""Who is admitted, and who may take an id over."""

from __future__ import annotations

import grpc
import pytest
from fake_streams import Connection, NotJoinedError, Server, clock, run, settle
from hypothesis import given
from hypothesis import strategies as st
from pki import self_signed

from feddkd.certs.certificate import Certificate
from feddkd.exchange import ExampleCounts
from feddkd.transport.admission import Admission, example_counts
from feddkd.transport.messages import CLIENT_HEARTBEAT, hello_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.sessions import CONNECT_TIMEOUT_S, ID_HOLD_S, Owner

PEM, OTHER_PEM = self_signed("one"), self_signed("two")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
TAKEN = grpc.StatusCode.ALREADY_EXISTS


def request(**changes: str | int) -> bytes:
    """A join that is admitted, but for some fields."""
    fields = {"protocol_version": 1, "client_id": "site", "num_examples": 1} | changes
    return pb.JoinRequest(**fields).SerializeToString()  # type: ignore[arg-type]


# What a client says of itself.


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (request(protocol_version=2), grpc.StatusCode.FAILED_PRECONDITION, "version 2"),
        (request(client_id=""), INVALID, "is not 1 to 64"),
        (request(client_id="../x"), INVALID, "'../x' is not 1 to 64"),
        (request(client_id="x" * 60_000), INVALID, f"'{'x' * 64}' is not"),
        (request(client_id="a\n"), INVALID, r"'a\\n' is not"),
        (request(num_examples=0), INVALID, "0 examples"),
        (request(num_examples=-1), INVALID, "-1 examples"),
        (request(num_examples=5, num_labelled=6), INVALID, "6 labelled examples of 5"),
        (request(num_labelled=-1), INVALID, "-1 labelled examples of 1"),
        (request(num_examples=5, num_labelled=0), INVALID, "0 labelled examples of 5; a client needs at least 1"),
        (request(num_examples=2**53 + 1), INVALID, "scheduler.max_examples"),
        (request(instance_id="i" * 65), INVALID, "64 bytes"),
        (request(instance_id="é" * 33), INVALID, "64 bytes"),
        (request(software_version="v" * 65), INVALID, "software version"),
        (request(software_version="v" * 1_100_000), INVALID, "at most 1048576"),
        (b"\xff\xff", INVALID, "is not a JoinRequest"),
        (request()[:-1], INVALID, "is not a JoinRequest"),
    ],
)
def test_a_join_that_no_honest_client_sends_is_refused(
    message: bytes,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    async def join() -> None:
        server = Server()
        with pytest.raises(NotJoinedError, match=reason) as refused:
            await server.join_with(message)
        assert refused.value.code is code
        assert len(str(refused.value)) < 500
        assert server.server.sessions() == []
        await server.close()

    run(join())


def test_only_the_clients_that_are_named_may_join() -> None:
    async def join() -> None:
        server = Server(Admission(expected=frozenset({"site-a", "site-b"})))
        await server.join("site-a")
        with pytest.raises(NotJoinedError, match=r"'site-c' .*scheduler\.clients") as refused:
            await server.join("site-c")
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert [session.client_id for session in server.server.sessions()] == ["site-a"]
        await server.close()

    run(join())


def test_a_client_may_not_declare_more_examples_than_the_cap() -> None:
    async def join() -> None:
        server = Server(Admission(max_examples=1_000))
        await server.join("honest", examples=1_000)
        with pytest.raises(NotJoinedError, match=r"1001 .*scheduler\.max_examples is 1000"):
            await server.join("greedy", examples=1_001)
        await server.close()

    run(join())


# Who may take an id over.


async def refusal(server: Server, instance: str, certificate: bytes | None = None) -> str:
    """Why another process may not join as "site"."""
    with pytest.raises(NotJoinedError) as refused:
        await server.join("site", instance, certificate=certificate)
    assert refused.value.code is TAKEN
    return str(refused.value)


@pytest.mark.parametrize("state", ["joined", "connected", "away"])
def test_who_knows_the_instance_id_takes_its_id_over_at_once(state: str) -> None:
    async def restart() -> None:
        server = Server()
        await in_state(server, state)
        await server.connect("site", "secret")
        assert server.session().owner == Owner.of("secret", None)
        await server.close()

    run(restart())


@pytest.mark.parametrize("state", ["joined", "connected", "away"])
@pytest.mark.parametrize("instance", ["other", ""])
def test_another_process_does_not_get_an_id_in_use(state: str, instance: str) -> None:
    async def intrude() -> None:
        server = Server()
        await in_state(server, state)
        before = server.session()
        reason = await refusal(server, instance)
        words = {
            "joined": "has just joined; the id is free in 10 s",
            "connected": "takes part as 'site'; the id is free 35 s after its last message",
            "away": "is away; the id is free in 35 s unless it returns",
        }
        assert words[state] in reason
        assert server.session() is before
        await server.close()

    run(intrude())


@pytest.mark.parametrize(
    ("state", "hold_s"),
    [("joined", CONNECT_TIMEOUT_S), ("away", ID_HOLD_S), ("connected", ID_HOLD_S)],
)
def test_a_process_without_the_instance_id_gets_the_id_of_a_client_that_is_gone(
    state: str,
    hold_s: float,
) -> None:
    """For instance a machine that lost power, and its disk."""

    async def come_back() -> None:
        server = Server()
        await in_state(server, state)
        await clock().pass_time(hold_s - 1)
        assert "free in 1 s" in await refusal(server, "new")
        await clock().pass_time(1)
        await server.connect("site", "new")
        reason = await refusal(server, "secret")  # the first owner has lost it
        assert "takes part" in reason
        await server.close()

    run(come_back())


def test_a_client_that_is_heard_keeps_its_id() -> None:
    async def live() -> None:
        server = Server()
        connection = await in_state(server, "connected")
        for _ in range(20):
            await clock().pass_time(10)
            connection.bring(CLIENT_HEARTBEAT)
            await settle()
            assert "takes part" in await refusal(server, "other")
        await server.close()

    run(live())


def test_a_client_that_the_server_holds_back_keeps_its_id() -> None:
    async def hold_back() -> None:
        server = Server()
        connection = await in_state(server, "connected")
        server.inbox.room.clear()
        connection.bring(b"\x12\x00")  # a chunk
        await clock().pass_time(10 * ID_HOLD_S)
        assert "takes part" in await refusal(server, "other")
        await server.close()

    run(hold_back())


def test_two_processes_without_an_instance_id_are_not_the_same_client() -> None:
    async def join() -> None:
        server = Server()
        await server.join("site", "")
        await refusal(server, "")
        await server.close()

    run(join())


@pytest.mark.parametrize("state", ["joined", "connected", "away"])
def test_the_same_certificate_takes_its_id_over_at_once(state: str) -> None:
    async def restart() -> None:
        server = Server()
        await in_state(server, state, PEM)
        await server.join("site", "new", certificate=PEM)
        await server.close()

    run(restart())


@pytest.mark.parametrize("certificate", [OTHER_PEM, None])
def test_an_id_bound_to_a_certificate_is_never_free_for_another(certificate: bytes | None) -> None:
    async def intrude() -> None:
        server = Server()
        await in_state(server, "away", PEM)
        await clock().pass_time(100 * ID_HOLD_S)
        assert "bound to another certificate" in await refusal(server, "new", certificate)
        await server.join("site", "new", certificate=PEM)
        await server.close()

    run(intrude())


def test_a_renewed_certificate_with_the_instance_id_is_the_same_client() -> None:
    async def renew() -> None:
        server = Server()
        await in_state(server, "away", PEM)
        await server.join("site", "secret", certificate=OTHER_PEM)
        assert "bound to another certificate" in await refusal(server, "new", PEM)
        await server.close()

    run(renew())


def test_an_owner_that_restarts_and_dies_before_it_connects_keeps_its_id() -> None:
    async def die_twice() -> None:
        server = Server()
        await in_state(server, "away")
        await server.join("site", "secret")
        await clock().pass_time(2 * CONNECT_TIMEOUT_S)
        await server.join("another-site")  # expires who never connected
        assert "is away" in await refusal(server, "other")
        await server.close()

    run(die_twice())


def test_the_server_keeps_no_secret_of_a_client() -> None:
    async def join() -> None:
        server = Server()
        token = await server.join("site", "a-secret-instance-id")
        session = server.session()
        kept = repr(session.owner) + repr(session.token)
        assert "a-secret-instance-id" not in kept
        assert token not in kept
        await server.close()

    run(join())


async def in_state(server: Server, state: str, certificate: bytes | None = None) -> Connection:
    """Bring the client "site", whose instance id is "secret", into a state."""
    token = await server.join("site", "secret", certificate=certificate)
    connection = Connection()
    if state != "joined":
        connection, _ = server.open(hello_message(token))
        await settle()
        assert server.session().stream is not None
    if state == "away":
        connection.half_close()
        await settle()
        assert server.session().stream is None
    return connection


# Describe.


def test_a_malformed_question_is_refused() -> None:
    async def ask(message: bytes) -> tuple[grpc.StatusCode, str] | None:
        server = Server()
        connection = Connection()
        with pytest.raises(grpc.aio.AbortError):
            await server.server._describe(message, connection)  # type: ignore[arg-type]
        await server.close()
        return connection.status

    wrong = pb.DescribeRequest(protocol_version=7).SerializeToString()
    status = run(ask(wrong))
    assert status is not None
    assert status[0] is grpc.StatusCode.FAILED_PRECONDITION
    for message in (b"\xff", bytes(70_000)):
        status = run(ask(message))
        assert status is not None
        assert status[0] is INVALID


@pytest.mark.parametrize(("labelled", "expected"), [(None, ExampleCounts(5)), (5, ExampleCounts(5)), (3, ExampleCounts(3, 2))])
def test_all_examples_have_a_label_unless_the_client_says_otherwise(labelled: int | None, expected: ExampleCounts) -> None:
    found = request(num_examples=5) if labelled is None else request(num_examples=5, num_labelled=labelled)
    assert example_counts(pb.JoinRequest.FromString(found)) == expected


# A server that was started again.


def restarted(**owners: Owner) -> Server:
    """A server that begins to listen now, after a process that these clients took part in."""
    server = Server()
    server.server._sessions.reserve(owners, clock().time())
    return server


@pytest.mark.parametrize(
    ("instance", "certificate"), [("secret", None), ("secret", OTHER_PEM), ("new", PEM)], ids=["secret", "new certificate", "new disk"]
)
def test_the_owner_of_before_gets_its_id_at_once(instance: str, certificate: bytes | None) -> None:
    async def come_back() -> None:
        server = restarted(site=Owner.of("secret", Certificate.of_pem(PEM).sha256))
        await server.join("site", instance, certificate=certificate)
        assert server.session().has_connected  # so that it keeps the id if it is slow to open its stream
        await server.close()

    run(come_back())


def test_another_process_does_not_get_the_id_of_a_client_that_has_not_come_back_yet() -> None:
    async def intrude() -> None:
        server = restarted(site=Owner.of("secret", None))
        assert "is away; the id is free in 35 s unless it returns" in await refusal(server, "other")
        assert server.server.session("site") is None
        await clock().pass_time(ID_HOLD_S - 1)
        assert "free in 1 s" in await refusal(server, "other")
        await clock().pass_time(1)
        await server.connect("site", "other")  # a client that has lost its disk
        assert "takes part" in await refusal(server, "secret")
        assert server.server.owners() == {"site": Owner.of("other", None)}
        await server.close()

    run(intrude())


def test_an_id_stays_bound_to_its_certificate_across_a_restart() -> None:
    async def intrude() -> None:
        server = restarted(site=Owner(None, Certificate.of_pem(PEM).sha256))
        await clock().pass_time(10 * ID_HOLD_S)
        assert "bound to another certificate" in await refusal(server, "other", OTHER_PEM)
        assert "bound to another certificate" in await refusal(server, "other")
        await server.join("site", "other", certificate=PEM)
        await server.close()

    run(intrude())


def test_the_owners_are_those_that_have_taken_part_and_can_show_it() -> None:
    async def take_part() -> None:
        server = restarted(away=Owner.of("one", None), back=Owner.of("two", None))
        await server.connect("back", "two")
        await server.connect("unknown", "")
        await server.join("never", "four")
        gone = await server.connect("gone", "five")
        gone.half_close()
        await settle()
        expected = {"away": "one", "back": "two", "gone": "five"}
        assert server.server.owners() == {client: Owner.of(instance, None) for client, instance in expected.items()}
        await server.close()

    run(take_part())


HASHES = st.none() | st.binary(min_size=32, max_size=32)


@given(st.builds(Owner, HASHES, HASHES, HASHES))
def test_an_owner_is_read_as_it_was_written(owner: Owner) -> None:
    assert Owner.of_text(owner.text) == owner


def test_an_owners_text_does_not_hold_the_secret() -> None:
    text = Owner.of("secret", None).text
    assert text == "instance:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


@pytest.mark.parametrize(
    "text", ["instance", "instance:", "instance:2bb8", f"instance:{'x' * 64}", f"nobody:{'0' * 64}", f"instance:{'1' * 64} " * 2]
)
def test_what_is_no_owner_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not name the owner|non-hexadecimal"):
        Owner.of_text(text)


@pytest.mark.parametrize(("client", "examples", "problem"), [
    ("north", 10, ""), ("north", 11, "11 examples; scheduler.max_examples_of allows north 10"),
    ("south", 100, ""), ("south", 101, "101 examples; scheduler.max_examples is 100"),
    ("large", 1000, ""), ("large", 1001, "1001 examples; scheduler.max_examples_of allows large 1000"),
])  # fmt: skip
def test_each_client_may_claim_as_many_examples_as_its_own_limit_says(client: str, examples: int, problem: str) -> None:
    admission = Admission(max_examples=100, max_examples_of={"north": 10, "large": 1000})
    request = pb.JoinRequest(protocol_version=1, client_id=client, num_examples=examples)
    if not problem:
        admission.check(request)
        return
    with pytest.raises(NotAdmittedError, match=f"^{problem}$"):
        admission.check(request)
