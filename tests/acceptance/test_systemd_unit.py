"""The unit of systemd in `deploy/` is one that systemd takes, and starts a server as the documents promise."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from evalrpc.cli import main
from evalrpc.config import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "evalrpc.service"
_FORCE_SECONDS = 5
IGNORED_BEFORE_254 = "Unknown key 'DelegateSubgroup' in section [Service], ignoring."
"""What an earlier systemd says; it does without."""
KNOWN = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        *("Type", "User", "Group", "ExecStart", "ExecReload", "WorkingDirectory", "StateDirectory"),
        *("StateDirectoryMode", "UMask", "DelegateSubgroup"),
        *("KillMode", "Delegate", "Restart", "RestartSec", "TimeoutStopSec", "LimitNOFILE", "TasksMax", "OOMPolicy"),
        *("NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectHome", "ProtectKernelTunables"),
        *("ProtectKernelModules", "ProtectKernelLogs", "ProtectHostname", "RestrictSUIDSGID", "RestrictRealtime"),
        *("LockPersonality", "SystemCallArchitectures"),
    },
    "Install": {"WantedBy"},
}


def parsed() -> dict[str, dict[str, str]]:
    """Return the keys of each section. Raises ValueError for a line that is none."""
    sections: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}
    for line in UNIT.read_text().splitlines():
        if section := re.fullmatch(r"\[(\w+)\]", line):
            keys = sections.setdefault(section[1], {})
        elif line and not line.startswith("#"):
            name, found, value = line.partition("=")
            if not found or name in keys:
                raise ValueError(line)
            keys[name] = value
    return sections


def test_every_key_is_one_of_systemds() -> None:
    found = {section: set(keys) for section, keys in parsed().items()}
    assert found == KNOWN


def test_systemd_takes_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ExecStart=/opt/evalrpc/bin/evalrpc", f"ExecStart={sys.executable} -m evalrpc"))
    verified = subprocess.run(("systemd-analyze", "verify", "--man=no", unit), capture_output=True, text=True, check=False)
    said = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert (verified.returncode, [line for line in said if not line.endswith(IGNORED_BEFORE_254)]) == (0, [])


def test_the_command_line_is_one_of_serve_and_its_folders_are_the_units() -> None:
    service = parsed()["Service"]
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("evalrpc", "serve")
    serve = main.get_command(click.Context(main), command)
    assert serve is not None
    given = serve.make_context(command, arguments).params
    assert Path(given["data_dir"]) == Path("/var/lib") / service["StateDirectory"] == Path(service["WorkingDirectory"])


def test_runs_outlive_a_restart_and_the_server_has_the_time_for_its_stop() -> None:
    service = parsed()["Service"]
    assert (service["KillMode"], service["Delegate"], service["Restart"]) == ("process", "yes", "on-failure")
    assert float(service["TimeoutStopSec"]) > Settings(data_dir=Path("data")).stop_seconds + _FORCE_SECONDS
    assert not {"PrivateTmp", "ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"} & set(service)
