"""The options of the server's gRPC channels. The yardstick of `benchmarks` uses the same ones."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from evalrpc.server.listening import most_connections

if TYPE_CHECKING:
    from evalrpc.config import Settings

MAX_PENDING_CALLS: Final = 15_000
"""How many calls may wait until the server takes them. Ten thousand watchers that reconnect at once after a restart are not an
attack. Each that waits takes 14 KiB, also one that its client has reset already."""

_MAX: Final = 2**31 - 1
_MARGIN_BYTES: Final = 4 * 1024 * 1024
_GRACE_SECONDS: Final = 60.0


def channel_options(max_request_bytes: int) -> list[tuple[str, Any]]:
    """Return the options of a server that accepts messages of at most `max_request_bytes`."""
    return [
        # gRPC's own refusal has no details. So what is somewhat too large comes as far as the handlers, which refuse it.
        ("grpc.max_receive_message_length", min(max_request_bytes + _MARGIN_BYTES, _MAX)),
        ("grpc.max_send_message_length", -1),
        # With port reuse, two servers on one port would share the calls between them, and clients would lose every second job.
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # The streams of a client whose machine has vanished, or which is frozen, end after this time.
        ("grpc.keepalive_time_ms", 120_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A watcher of a quiet job may ping to keep its connection alive.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def connection_options(settings: "Settings") -> Iterator[tuple[str, Any]]:
    """Yield the options that bound connections."""
    yield "grpc.max_allowed_incoming_connections", settings.max_connections or most_connections() or _MAX
    if settings.max_streams_per_connection:
        yield "grpc.max_concurrent_streams", settings.max_streams_per_connection
    if settings.max_connection_idle_seconds:
        yield "grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_seconds)
    if settings.max_connection_age_seconds:
        yield "grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds)
        yield "grpc.max_connection_age_grace_ms", _milliseconds(_GRACE_SECONDS)


def _milliseconds(seconds: float) -> int:
    return max(1, min(int(seconds * 1000), _MAX))
