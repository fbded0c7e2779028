"""The secrets of a server: who may use them, their values, and the masks of those."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from evalrpc.clock import Clock, SystemClock
from evalrpc.config import SecretSettings
from evalrpc.config.secrets import may_use
from evalrpc.errors import RunFailedError
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.secrets.sources import UnreadableError, read_value

PAUSE_SECONDS: Final = 30.0
"""How long a command that has failed is not run again for a mask."""


class Secrets:
    """Reads secrets by name, and remembers every value that it has read, so that one which was exchanged since is masked, too.

    `environment` is the server's own. May be used from several threads.
    """

    def __init__(
        self,
        declared: Mapping[str, SecretSettings] | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._declared = declared or {}  # exchanged as a whole, so read it once for what belongs together
        self._environment = environment or {}
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()  # guards what follows
        self._known: defaultdict[str, set[str]] = defaultdict(set)
        self._mask_of_all = NO_MASK
        self._failed_at: dict[str, float] = {}

    def exchange(self, declared: Mapping[str, SecretSettings]) -> None:
        """Replace what is declared. Values that were read stay known, so they are masked as before."""
        self._declared = declared

    def read(self, names: Iterable[str], owner: str) -> dict[str, str]:
        """Return the values as they are now, for a run of this owner. Blocks.

        Raises RunFailedError with reason START_FAILED that names the secret which can't be read, or is not for the owner any
        more.
        """
        declared = self._declared
        return {name: self._read_for(name, owner, declared) for name in names}

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Return the values as they are now, for a program of the operator's. Blocks.

        Raises RunFailedError with reason START_FAILED that names the secret which can't be read.
        """
        declared = self._declared
        return {name: self._read_or_fail(name, declared) for name in names}

    def require_may_use(self, names: Iterable[str], owner: str) -> None:
        """Raise RunFailedError with reason START_FAILED unless jobs of this owner may use all of these."""
        for name in names:
            self._require_may_use(name, owner, self._declared)

    def problem(self, name: str) -> str:
        """Say why a secret can't be read; empty if it can. Blocks."""
        try:
            self._read(name, self._declared)
        except UnreadableError as error:
            return str(error)
        return ""

    def mask(self, names: Iterable[str]) -> Mask:
        """Return the mask of these secrets: of all values that they are known to have had. Blocks if one has not been read yet,
        as after a restart."""
        unreadable = [name for name in names if name not in self._known and not self._can_be_read(name)]
        with self._lock:
            values = [value for name in names for value in self._known.get(name, ())]
        return Mask(values, unreadable) if values or unreadable else NO_MASK

    def mask_text(self, text: str) -> str:
        """Return the text with all known values masked, of whichever secret. Never blocks."""
        return self._mask_of_all.text(text)

    def _can_be_read(self, name: str) -> bool:
        """Read a secret. A command that has failed is not run again at once: every reader of a log would wait for it."""
        now = self._clock.monotonic()
        if now - self._failed_at.get(name, float("-inf")) < PAUSE_SECONDS:
            return False
        if not self.problem(name):
            return True
        secret = self._declared.get(name)
        if secret is not None and secret.command is not None:
            self._failed_at[name] = now
        return False

    def _read_for(self, name: str, owner: str, declared: Mapping[str, SecretSettings]) -> str:
        self._require_may_use(name, owner, declared)
        return self._read_or_fail(name, declared)

    @staticmethod
    def _require_may_use(name: str, owner: str, declared: Mapping[str, SecretSettings]) -> None:
        if name in declared and not may_use(declared[name], owner):
            raise RunFailedError("START_FAILED", f"secret {name}: it is not for the owner of the job any more")

    def _read_or_fail(self, name: str, declared: Mapping[str, SecretSettings]) -> str:
        try:
            return self._read(name, declared)
        except UnreadableError as error:
            raise RunFailedError("START_FAILED", f"secret {name}: {error}") from None

    def _read(self, name: str, declared: Mapping[str, SecretSettings]) -> str:
        if name not in declared:
            raise UnreadableError("this server does not have it any more")
        value = read_value(declared[name], self._environment)
        with self._lock:
            if value not in self._known[name]:
                self._known[name].add(value)
                self._mask_of_all = Mask(known for values in self._known.values() for known in values)
        return value
