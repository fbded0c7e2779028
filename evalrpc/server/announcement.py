"""What a server says in its log when it has started."""

import logging
from collections.abc import Mapping
from pathlib import Path

import evalrpc
from evalrpc.harnesses.base import Harness

_log = logging.getLogger(__name__)


def announce(
    address: str, config_file: Path | None, data_dir: Path, isolation: Mapping[str, str], harnesses: Mapping[str, Harness]
) -> None:
    """Log what runs here, and what each harness lacks. `isolation` says by what runs are kept apart, or why not. Blocks: reads
    the harnesses' environments."""
    _log.info("evalrpc %s listens on %s", evalrpc.__version__, address)
    _log.info("config file: %s", config_file.absolute() if config_file else "none")
    _log.info("data folder: %s", data_dir.absolute())
    for means, detail in isolation.items():
        _log.info("%s: %s", means, detail)
    for name, harness in sorted(harnesses.items()):
        _announce_harness(name, harness)


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
