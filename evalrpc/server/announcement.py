"""What a server says in its log when it has started."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import evalrpc
from evalrpc.config.listeners import Listener
from evalrpc.harnesses.base import Harness
from evalrpc.scheduling.run_limits import Enforcement
from evalrpc.server.certificates import Certificate, expiry_of

_log = logging.getLogger(__name__)


def announce(
    listening: Sequence[tuple[Listener, Certificate | None]],
    now: datetime,
    config_file: Path | None,
    data_dir: Path,
    isolation: Mapping[str, str],
    limits: Sequence[Enforcement],
    harnesses: Mapping[str, Harness],
) -> None:
    """Log what runs here, and what each harness lacks. `isolation` says by what runs are kept apart, or why not; `limits` by
    what they are limited. Blocks: reads the harnesses' environments."""
    for listener, certificate in listening:
        _announce_listener(listener, certificate, now)
    _log.info("config file: %s", config_file.absolute() if config_file else "none")
    _log.info("data folder: %s", data_dir.absolute())
    for means, detail in isolation.items():
        _log.info("%s: %s", means, detail)
    for limit in limits:
        _log.log(logging.INFO if limit.holds else logging.WARNING, "%s: %s", limit.subject, limit.detail)
    for name, harness in sorted(harnesses.items()):
        _announce_harness(name, harness)


def _announce_listener(listener: Listener, certificate: Certificate | None, now: datetime) -> None:
    _log.info("evalrpc %s listens on %s", evalrpc.__version__, listener.address)
    if listener.risk:
        _log.log(logging.INFO if listener.address.is_local else logging.WARNING, listener.risk)
    if certificate is not None:
        expiry = expiry_of(certificate.pem, now)
        _log.log(logging.WARNING if expiry.is_near else logging.INFO, "the certificate in %s %s", certificate.path, expiry.text)


def _announce_harness(name: str, harness: Harness) -> None:
    try:
        info = harness.info()
    except Exception as error:  # noqa: BLE001 - third-party code, which may raise anything
        _log.warning(
            "harness %s (%s) can't say whether it is available: %s: %s", name, harness.kind, type(error).__name__, error
        )
        return
    if info.available:
        _log.info("harness %s: %s", name, f"{info.kind} {info.version}".rstrip())
    else:
        _log.warning("harness %s (%s) is not available: %s", name, info.kind, info.unavailable_reason)
