"""The cable of the fault tests does what they rely on."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from cable import Cable, Direction

from feddkd.engines.simulation import LOOPBACK


class Ends:
    """A client's socket and the server's, with the cable between them."""

    def __init__(self, cable: Cable, listener: socket.socket) -> None:
        self.cable = cable
        self._listener = listener
        self.client, self.server = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        host, _, port = self.cable.address.rpartition(":")
        client = socket.create_connection((host, int(port)))
        server, _ = self._listener.accept()
        return client, server

    def of(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        """The end that sends in this direction, and the one that receives."""
        return (self.client, self.server) if direction == "up" else (self.server, self.client)


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with socket.create_server((LOOPBACK, 0)) as listener:
        address = f"{LOOPBACK}:{listener.getsockname()[1]}"
        with Cable(address, resets=getattr(request, "param", False)) as cable:
            ends = Ends(cable, listener)
            with ends.client, ends.server:
                yield ends


DIRECTIONS: tuple[Direction, ...] = ("up", "down")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bytes_cross_and_are_counted(ends: Ends, direction: Direction) -> None:
    sender, receiver = ends.of(direction)
    sender.sendall(b"abc")
    assert receiver.recv(10) == b"abc"
    sender.shutdown(socket.SHUT_WR)
    assert receiver.recv(10) == b""
    assert ends.cable.crossed == {direction: 3}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_direction_that_is_blocked_keeps_its_bytes_while_the_other_goes_on(ends: Ends, direction: Direction) -> None:
    sender, receiver = ends.of(direction)
    ends.cable.block(direction)
    sender.sendall(b"later")
    receiver.sendall(b"now")
    assert sender.recv(10) == b"now"
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(10)
    receiver.setblocking(True)
    ends.cable.unblock()
    assert receiver.recv(10) == b"later"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_cut_lets_the_bytes_before_it_arrive(ends: Ends, direction: Direction) -> None:
    sender, receiver = ends.of(direction)
    ends.cable.cut_at(direction, 2)
    sender.sendall(b"abc")
    assert receiver.recv(10) == b"ab"
    assert receiver.recv(10) == b""
    assert sender.recv(10) == b""


@pytest.mark.parametrize("ends", [True], indirect=True)
def test_a_reset_is_an_error_at_both_ends(ends: Ends) -> None:
    ends.cable.cut()
    for end in (ends.client, ends.server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    again = ends.connect()
    again[0].sendall(b"x")
    assert again[1].recv(1) == b"x"
    for end in again:
        end.close()
