"""The options of the server's gRPC channels. The yardstick of `benchmarks` uses the same ones."""

from typing import Any


def channel_options(max_request_bytes: int) -> list[tuple[str, Any]]:
    """Return the options of a server that accepts messages of at most `max_request_bytes`."""
    return [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
        # With port reuse, two servers on one port would share the calls between them, and clients would lose every second job.
        ("grpc.so_reuseport", 0),
        # Ten thousand watchers that reconnect at once after a restart are not an attack.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # A watcher of a quiet job may ping to keep its connection alive.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
