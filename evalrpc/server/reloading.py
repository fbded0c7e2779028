"""Takes up what an operator has changed in the config file, without a restart: on SIGHUP.

Exchanged are the policies of the harnesses, the limits of runs, shares, quotas, suites, secrets and client certificates, all in
one step of the event loop, so that no call sees half of it. Whatever else has changed takes a restart, and is named in the log.
If the file is wrong, nothing is exchanged.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from typing import Final

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.share_policy import Entitlements, policy_of
from evalrpc.scheduling.run_limits import RunLimitsPolicy
from evalrpc.secrets.registry import Secrets
from evalrpc.server.audit import Audit
from evalrpc.server.audit_file import AuditEntry
from evalrpc.server.auth.authenticator import Authenticator
from evalrpc.server.service import EvaluationService
from evalrpc.server.suite_definitions import build_suites
from evalrpc.v1.suites_pb2 import Suite

_LIMITS: Final = ("max_run_memory_bytes", "max_run_processes")
_WHOLE: Final = ("shares", "quotas", "suites", "secrets", "client_certificates", *_LIMITS)
_OF_HARNESSES: Final = ("policy", *_LIMITS)

_log = logging.getLogger(__name__)


@dataclass
class Reloading:
    """What a server exchanges. Used on the event loop; files are read in `reader`."""

    settings: Settings
    """Those that hold now."""
    service: EvaluationService
    entitlements: Entitlements
    run_limits: RunLimitsPolicy
    secrets: Secrets
    authenticator: Authenticator
    audit: Audit
    choose_anew: Callable[[], None]
    """Has the scheduler look whether jobs may start now."""
    reader: Executor

    async def reload(self, load: Callable[[], Settings]) -> None:
        """Load the settings, and take up what can be exchanged. Logs what was, or why nothing was. One at a time."""
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self.reader, load)
            suites = build_suites(loaded.suites)
        except ConfigurationError as error:
            _log.error("the settings stay as they were, since the new ones are wrong: %s", error)
            self._record("INVALID_ARGUMENT", error.reason)
            return
        changed = exchanged(self.settings, loaded)
        names = ", ".join(_differences(self.settings, changed)) or "nothing"
        self._exchange(changed, suites)
        _log.info("the settings were read again; changed: %s", names)
        if rest := ", ".join(_differences(changed, loaded)):
            _log.warning("these settings have changed too, which takes a restart: %s", rest)
        self._record("OK")

    def _exchange(self, settings: Settings, suites: Mapping[str, Suite]) -> None:
        self.settings = settings
        submissions = self.service.submissions
        submissions.suites = suites
        submissions.admission = replace(submissions.admission, settings=settings)
        self.entitlements.policy = policy_of(settings)
        self.run_limits.settings = settings
        self.secrets.exchange(settings.secrets)
        self.authenticator.exchange_certificates(settings.client_certificates)
        self.choose_anew()

    def _record(self, code: str, reason: str = "") -> None:
        time, peer = self.audit.clock.now().ToJsonString(), f"uid:{os.getuid()}"
        self.audit.record(AuditEntry(time, "reload", code, reason, role="operator", sign_in_method="local", peer=peer))


def exchanged(settings: Settings, loaded: Settings) -> Settings:
    """Return the settings with what can be exchanged as it was loaded."""
    harnesses = {
        name: _with(harness, loaded.harnesses[name]) if name in loaded.harnesses else harness
        for name, harness in settings.harnesses.items()
    }
    return replace(settings, harnesses=harnesses, **{name: getattr(loaded, name) for name in _WHOLE})


def _with(harness: HarnessSettings, loaded: HarnessSettings) -> HarnessSettings:
    """Return the settings of a harness with what can be exchanged as it was loaded."""
    return replace(harness, **{name: getattr(loaded, name) for name in _OF_HARNESSES})


def _differences(before: Settings, after: Settings) -> Iterator[str]:
    """Yield the names of the settings that differ, by harness for those."""
    for field in fields(Settings):
        if field.name != "harnesses" and getattr(before, field.name) != getattr(after, field.name):
            yield field.name
    for name in sorted({*before.harnesses, *after.harnesses}):
        yield from _harness_differences(name, before.harnesses.get(name), after.harnesses.get(name))


def _harness_differences(name: str, before: HarnessSettings | None, after: HarnessSettings | None) -> Iterator[str]:
    if before is None or after is None:
        yield f"harnesses.{name}"
        return
    for exchanged_name in _OF_HARNESSES:
        if getattr(before, exchanged_name) != getattr(after, exchanged_name):
            yield f"harnesses.{name}.{exchanged_name}"
    if _with(before, after) != after:
        yield f"harnesses.{name}"
