"""What a flag, a variable and a key of the config file say reaches the server alike, and which config file is read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from evalrpc.cli import main
from evalrpc.config import SETTINGS, Settings

# For each setting, a value as the config file may say it, which is not the default.
VALUES: dict[str, Any] = {
    "listen": "127.0.0.1:1,unix:/s/socket",
    "tls_cert": "/c",
    "tls_key": "/k",
    "tls_client_ca": "/ca",
    "http_listen": "127.0.0.1:3",
    "lmms_eval_paths": True,
    "http_hosts": "evals.example.org,evals",
    "http_origins": "https://dashboard.example",
    "auth": "required",
    "proxy_terminates_tls": True,
    "insecure_no_auth": True,
    "visibility": "own",
    "data_dir": "/d",
    "store": "postgresql://db.example/jobs",
    "host_name": "alpha",
    "lease_seconds": 2.5,
    "gpus": "0,2",
    "default_harness": "lmms-eval",
    "default_num_gpus": 3,
    "max_running": 3,
    "max_running_served": 3,
    "max_queued": 3,
    "max_request_bytes": 3,
    "max_streams": 3,
    "max_streams_per_owner": 3,
    "max_streams_per_connection": 3,
    "max_connections": 3,
    "max_connection_idle_seconds": 2.5,
    "max_connection_age_seconds": 2.5,
    "max_calls_per_second": 3,
    "max_unread_bytes": 3,
    "output_root": "/o",
    "output_mode": "0600",
    "output_group": "staff",
    "media_roots": "/m,/n",
    "inherit_env": "PATH,HF_*",
    "reservation_seconds": 2.5,
    "share_half_life_seconds": 2.5,
    "preemption_interval_seconds": 2.5,
    "grace_seconds": 2.5,
    "stop_seconds": 2.5,
    "drain": True,
    "drain_seconds": 2.5,
    "journal_max_events": 3,
    "journal_max_bytes": 3,
    "journal_max_age_seconds": 2.5,
    "retention_max_age_seconds": 2.5,
    "retention_max_jobs": 3,
    "retention_max_bytes": 3,
    "preparation_max_age_seconds": 2.5,
    "preparation_max_bytes": 3,
    "max_log_bytes": 3,
    "max_output_bytes": 3,
    "max_run_memory_bytes": 3,
    "max_run_processes": 3,
    "cgroups": "off",
    "warm_idle_seconds": 3.0,
    "warm_max_bytes": 3,
    "run_as_uids": "7-9",
    "run_as_groups": "render",
    "audit_file": "/a/audit",
    "audit_max_bytes": 3,
    "audit_max_files": 3,
    "unknown_tasks": "refuse",
    "log_format": "json",
    "page": False,
    "traces": "otlp",
    "metrics_listen": "127.0.0.1:9464",
}


class Serve:
    """Runs `evalrpc serve` with a server that only keeps what it is given."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.config_file: Path | None = None

    def __call__(self, settings: Settings, config_file: Path | None, load: Callable[[], Settings]) -> None:
        self.settings, self.config_file = settings, config_file
        assert load() == settings, "which SIGHUP asks for"

    def run(self, *flags: str, **environment: str) -> Settings:
        result = CliRunner().invoke(main, ["serve", *flags], env=environment)
        assert result.exit_code == 0, result.stderr
        assert self.settings is not None
        return self.settings


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serve:
    serve = Serve()
    monkeypatch.setattr("evalrpc.server.process.serve", serve)
    monkeypatch.chdir(tmp_path)
    return serve


def write(path: Path, **settings: Any) -> Path:
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    return path


def test_every_setting_is_tested_here() -> None:
    tables = {field.name for field in dataclasses.fields(Settings)} - set(SETTINGS)
    takes_a_table = {"default_executor"}  # apart from the default
    assert {field.name for field in dataclasses.fields(Settings)} == {*VALUES, *tables, *takes_a_table}


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_reaches_the_server_from_a_flag_a_variable_and_the_file_alike(
    serve: Serve, name: str, tmp_path: Path
) -> None:
    value = VALUES[name]
    text = json.dumps(value).strip('"')
    flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"

    from_flag = serve.run(flag) if isinstance(value, bool) else serve.run(flag, text)
    from_variable = serve.run(**{f"EVALRPC_{name.upper()}": text})
    from_file = serve.run("--config", str(write(tmp_path / "settings.toml", **{name: value})))

    assert from_flag == from_variable == from_file
    assert getattr(from_flag, name) != getattr(Settings(), name)


def test_a_flag_can_take_back_what_a_variable_switches_on(serve: Serve) -> None:
    assert serve.run(EVALRPC_DRAIN="1").drain
    assert not serve.run("--no-drain", EVALRPC_DRAIN="1").drain


def test_the_help_has_every_setting_with_its_default() -> None:
    text = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    for name in VALUES:
        assert f"--{name.replace('_', '-')}" in text
    assert "Default: 100000 jobs." in text


def test_a_config_file_is_found_by_flag_then_by_variable_then_in_the_working_directory(serve: Serve, tmp_path: Path) -> None:
    here, by_variable, by_flag = (
        write(tmp_path / name, max_queued=number)
        for number, name in enumerate(("evalrpc.toml", "by-variable.toml", "by-flag.toml"), start=1)
    )

    assert serve.run("--config", str(by_flag), EVALRPC_CONFIG=str(by_variable)).max_queued == 3
    assert serve.run(EVALRPC_CONFIG=str(by_variable)).max_queued == 2
    assert serve.run(EVALRPC_CONFIG="").max_queued == 1
    assert serve.config_file == Path("evalrpc.toml")
    here.unlink()
    assert serve.run() == Settings()
    assert serve.config_file is None


def test_doctor_checks_the_file_that_serve_would_read(serve: Serve, tmp_path: Path) -> None:
    write(tmp_path / "evalrpc.toml", max_queued=0)

    for command in ("serve", "doctor"):
        result = CliRunner().invoke(main, [command])
        assert (result.exit_code, result.stderr) == (
            2,
            "evalrpc: setting max_queued: must be at least 1 (from evalrpc.toml)\n",
        )


def test_what_is_wrong_with_a_setting_names_its_flag_or_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text('gpus = "x,"')

    def error(*args: str) -> str:
        result = CliRunner().invoke(main, ["serve", *args])
        assert result.exit_code == 2
        return result.stderr

    tls = ("--listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "none"))
    assert error(*tls).startswith("evalrpc: setting tls_key (--tls-key): is missing")
    assert error(*tls, "--tls-key", "key").startswith("evalrpc: setting tls_cert (--tls-cert): can't read ")
    from_flag = "evalrpc: setting gpus: must be `auto`, a number (0 for none), or a list such as `0,2,3` (from --gpus)\n"
    assert error("--gpus", "x,") == from_flag
    assert error("--config", str(tmp_path / "file.toml")) == from_flag.replace("--gpus", str(tmp_path / "file.toml"))
