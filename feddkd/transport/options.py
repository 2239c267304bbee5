"""Defines the gRPC channel options of server and client."""

from __future__ import annotations

import resource

from feddkd.errors import ConfigError
from feddkd.transport.proxy import is_this_machine

MAX_MESSAGE_BYTES = 4 << 20
KEEPALIVE_TIME_MS = 10_000
"""Milliseconds without a byte from the other end after which gRPC sends a ping."""

SERVER_PING_TIMEOUT_MS = 30_000
"""Milliseconds the server waits for the answer to a ping: it closes a dead connection within 40 s."""

TCP_TIMEOUT_MS = 10_000
"""Milliseconds that sent bytes may stay unacknowledged by the other machine's kernel."""

UPLOAD_WINDOW_BYTES = 2 << 20
"""What a client may send before the server has read it, and what the server holds of it at most."""

MAX_CONNECTIONS = 16_384
RESERVED_FILES = 128
"""Open files that connections leave for the record, the models and the state."""

IDLE_CONNECTION_MS = 60_000
"""A connection without a call is closed after this time. A client's next call opens another."""

MAX_STREAMS_PER_CONNECTION = 100

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", 1 << 20),
    # Identity only: tensors hardly compress, and a message must never exceed its claimed size.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", TCP_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
]


def client_options(host: str) -> list[tuple[str, int]]:
    """Return the options of a client's channel to `host`: one on this machine is never reached through a proxy."""
    return [
        *_COMMON,
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0 if is_this_machine(host) else 1),
    ]


def server_options() -> list[tuple[str, int]]:
    """Return the options of a server in this process."""
    return [
        *_COMMON,
        # On by default: a second server would share the port and take half of the clients.
        ("grpc.so_reuseport", 0),
        # Tolerate the clients' keepalive; gRPC's default would disconnect them for it.
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.max_ping_strikes", 4),
        ("grpc.http2.ping_timeout_ms", SERVER_PING_TIMEOUT_MS),
        # gRPC would measure the line with pings to choose the window. Their answers wait behind the
        # megabytes that a client is uploading: on a slow line they would run into the timeout.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UPLOAD_WINDOW_BYTES),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", max_connections()),
    ]


def max_connections() -> int:
    """Return how many connections a server takes: fewer than the files this process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(1, files - RESERVED_FILES))


def allow_connections() -> None:
    """Let this process open as many files as a server needs, where the system permits it: every connection is one.

    A process that hosts clients needs as many. Systems often give a process 1,024 and permit it more.
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if files != resource.RLIM_INFINITY and files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def check_connections(clients: int, key: str) -> str:
    """Check that this process may hold a connection for each of `clients`; say how many it may hold.

    Args:
        key: that says how many clients there are.

    Raises:
        ConfigError: it may not.
    """
    allow_connections()
    possible = max_connections()
    if clients > possible:
        raise ConfigError(
            f"{key}: {clients} clients are waited for, but this process may hold {possible} connections; each is an open file (ulimit -n)"
        )
    return f"{possible} connections"
