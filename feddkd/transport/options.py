"""gRPC channel options, the same ideas on both ends."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4 << 20
KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", 1 << 20),
    # Identity only: tensors hardly compress, and an inflated message must never exceed its claimed size.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    # On by default: a second server would share the port in silence and steal half of the clients.
    ("grpc.so_reuseport", 0),
    # Tolerate the clients' keepalive; gRPC's default would disconnect them for it.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 3),
    ("grpc.http2.max_ping_strikes", 4),
    ("grpc.server_handshake_timeout_ms", 10_000),
]

CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
]
