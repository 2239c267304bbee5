"""Every error feddkd raises on purpose.

FedDKDError
 +-- ConfigError                a configuration key, value or file is wrong            (exit code 2)
 |    +-- PartitionError        the data cannot be split among the clients as asked
 |    +-- DataError             a data set is missing, unreadable or malformed
 |         +-- BadExamplesError more examples cannot be used than `data.max_bad_share` accepts
 +-- TransportError             something went wrong between two machines
 |    +-- AddressInUseError     the server's port is taken
 |    +-- UnreachableError      the server did not answer within the time allowed
 |    |    +-- IdTakenError     another process takes part under this client's id
 |    +-- RefusedError          the server permanently refused this client
 |    +-- ProtocolError         the peer broke the wire contract
 |         +-- DivergedError    a client's loss is not that of a useful model
 |         +-- SchemaError      tensor names, dtypes, shapes or sizes are not the expected ones
 |         +-- CorruptionError  a checksum, an offset or a length does not match
 +-- RunError                   a run could not go on                                  (exit code 1)
 |    +-- RoundError            an attempt at a round failed; another may succeed
 |    |    +-- QuorumError      too few clients replied to an exchange
 |    |    +-- NotFiniteError   a reduced contribution, a model or its loss is not finite
 |    +-- PausedError           the run waited for clients until its timeout
 |    +-- StateError            a state directory or a record is locked, foreign, or cannot be read or written
 +-- ClientError                a client could not carry out its part of an exchange
      +-- CancelledError        the server closed the exchange before the client was done
"""

from __future__ import annotations


class FedDKDError(Exception):
    """Base class of all errors raised by feddkd."""


class ConfigError(FedDKDError):
    """A configuration key, value or file is wrong; the message names the key and the value."""


class PartitionError(ConfigError):
    """The data cannot be split among the clients as asked."""


class DataError(ConfigError):
    """A data set is missing, unreadable or malformed."""


class BadExamplesError(DataError):
    """More examples of a data set cannot be used than `data.max_bad_share` accepts; its site stops."""


class TransportError(FedDKDError):
    """Something went wrong between two machines."""


class AddressInUseError(TransportError):
    """The address the server should listen on is taken or not available."""


class UnreachableError(TransportError):
    """The server did not answer within the time allowed."""


class IdTakenError(UnreachableError):
    """Another process takes part under this client's id, or did until its connection died a moment ago."""


class RefusedError(TransportError):
    """The server refused this client, and a retry will not help."""


class HandshakeError(RefusedError):
    """No connection comes about, and a retry helps only once a certificate, a clock or the server is another one."""


class ProtocolError(TransportError):
    """The peer broke the wire contract."""


class DivergedError(ProtocolError):
    """A client's loss, or the norm of its update, is not that of a useful model."""


class SchemaError(ProtocolError):
    """Tensor names, dtypes, shapes or sizes are not the expected ones."""


class CorruptionError(ProtocolError):
    """A checksum, an offset or a length does not match."""


class RunError(FedDKDError):
    """A run could not go on."""


class RoundError(RunError):
    """An attempt at a round failed; the scheduler tries the round again.

    Attributes:
        connection_lost: a client did not reply because it was not connected, so another attempt may do better.
        silent: clients that are connected kept silent until the deadline, so another attempt may take as long again.
    """

    def __init__(self, message: str, *, connection_lost: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.connection_lost = connection_lost
        self.silent = silent


class QuorumError(RoundError):
    """Fewer clients replied to an exchange than ``scheduler.min_clients`` asks for."""


class NotFiniteError(RoundError):
    """A reduced contribution, a model or its loss is not finite."""


class PausedError(RunError):
    """The run paused because clients were missing, and its timeout ran out."""


class StoppedError(RunError):
    """The process was told to stop, and the run with it.

    Attributes:
        record: folder of the record of the run.
        go_on: the command that goes on with the run.
    """

    def __init__(self, message: str, record: str, go_on: str) -> None:
        super().__init__(message)
        self.record = record
        self.go_on = go_on


class CommandInterruptedError(FedDKDError):
    """A signal ended a command; the message says what is there.

    Attributes:
        go_on: the command that does the rest; empty for none.
    """

    def __init__(self, message: str, go_on: str = "") -> None:
        super().__init__(f"interrupted: {message}")
        self.go_on = go_on


class StateError(RunError):
    """A state directory or a record is locked, belongs to another run, or cannot be read or written."""


class StateHeldError(StateError):
    """Another process holds a state directory."""


class ClientError(FedDKDError):
    """A client could not carry out its part of an exchange."""


class CancelledError(ClientError):
    """The server closed the exchange before the client was done with it."""
