"""Times of messages as numbers. Pure."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def seconds_of(time: Timestamp | Duration) -> float:
    """Return the seconds since the Unix epoch, or of a duration."""
    return time.ToNanoseconds() / 1e9
