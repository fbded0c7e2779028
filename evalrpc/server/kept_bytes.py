"""How much of the disk the jobs of each owner take, for the quotas on it."""

from evalrpc.jobs.share_policy import Entitlements
from evalrpc.server.job_files import JobFiles


class KeptBytes:
    """Passes on what the jobs of each owner take, live ones included. Blocks: runs on a thread."""

    def __init__(self, files: JobFiles, entitlements: Entitlements) -> None:
        self._files = files
        self._entitlements = entitlements

    def measure(self) -> None:
        """Measure what may have changed, and pass it on, if there is any quota on it. Raises StoreUnavailableError, and OSError
        for what can't be measured."""
        if all(quota.max_bytes is None for quota in self._entitlements.policy.quotas.values()):
            return
        if (kept_bytes := self._files.by_owner()) is not None:
            self._entitlements.kept_bytes = kept_bytes
