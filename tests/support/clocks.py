"""A clock that a test sets."""

from google.protobuf.timestamp_pb2 import Timestamp


class ManualClock:
    """Shows `seconds`, as the time of day and as monotonic time, until a test changes them."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.jump_seconds = 0.0
        """By how much the time of day has jumped."""

    def now(self) -> Timestamp:
        timestamp = Timestamp()
        timestamp.FromNanoseconds(int((self.seconds + self.jump_seconds) * 1e9))
        return timestamp

    def monotonic(self) -> float:
        return self.seconds
