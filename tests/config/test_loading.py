"""Settings: flags over environment over file over defaults."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import (
    ClientCertificate,
    EngineSettings,
    HarnessSettings,
    HttpListenSettings,
    ListenSettings,
    OidcSettings,
    PolicySettings,
    QuotaSettings,
    SecretSettings,
    Settings,
    load_settings,
)
from evalrpc.config.callers import is_owner
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.share_policy import policy_of

# For each setting: what the file says, what the environment says, what the flag says, and what each comes to.
SOURCES: dict[str, tuple[Any, str, Any, tuple[Any, Any, Any]]] = {
    "listen": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", tuple((ListenSettings(f"127.0.0.1:{n}"),) for n in (1, 2, 3))),
    "http_listen": (
        *("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
        tuple((HttpListenSettings(f"127.0.0.1:{n}"),) for n in (1, 2, 3)),
    ),
    "lmms_eval_paths": ("true", "false", True, (True, False, True)),
    "http_hosts": (["a"], "b,c", "d", (("a",), ("b", "c"), ("d",))),
    "http_origins": (
        ["http://a"],
        "http://b,https://c:1",
        "http://d",
        (("http://a",), ("http://b", "https://c:1"), ("http://d",)),
    ),
    "page": ("false", "true", False, (False, True, False)),
    "tls_cert": ("/c/file", "/c/env", Path("/c/flag"), (Path("/c/file"), Path("/c/env"), Path("/c/flag"))),
    "tls_key": ("/k/file", "/k/env", Path("/k/flag"), (Path("/k/file"), Path("/k/env"), Path("/k/flag"))),
    "tls_client_ca": ("/a/file", "/a/env", Path("/a/flag"), (Path("/a/file"), Path("/a/env"), Path("/a/flag"))),
    "auth": ("off", "required", "off", ("off", "required", "off")),
    "proxy_terminates_tls": ("true", "false", True, (True, False, True)),
    "insecure_no_auth": ("true", "false", True, (True, False, True)),
    "visibility": ("own", "all", "own", ("own", "all", "own")),
    "store": (
        *("postgresql://file/d", "postgresql://env/d", "postgresql://flag/d"),
        ("postgresql://file/d", "postgresql://env/d", "postgresql://flag/d"),
    ),
    "host_name": ("f", "e", "a", ("f", "e", "a")),
    "lease_seconds": (1.5, "2.5", 3.5, (1.5, 2.5, 3.5)),
    "data_dir": ("/d/file", "/d/env", Path("/d/flag"), (Path("/d/file"), Path("/d/env"), Path("/d/flag"))),
    "gpus": (2, "3", "0,2", ("2", "3", "0,2")),
    "default_harness": ("file", "env", "flag", ("file", "env", "flag")),
    "default_executor": ("local", "local", "local", ("local", "local", "local")),
    "default_num_gpus": (0, "1", 2, (0, 1, 2)),
    "max_running": (1, "2", 3, (1, 2, 3)),
    "max_running_served": (1, "2", 3, (1, 2, 3)),
    "max_queued": (1, "2", 3, (1, 2, 3)),
    "max_request_bytes": (1, "2", 3, (1, 2, 3)),
    "max_streams": (1, "2", 3, (1, 2, 3)),
    "max_streams_per_owner": (1, "2", 3, (1, 2, 3)),
    "max_streams_per_connection": (1, "2", 3, (1, 2, 3)),
    "max_connections": (1, "2", 3, (1, 2, 3)),
    "max_connection_idle_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "max_connection_age_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "max_calls_per_second": (1, "2", 3, (1, 2, 3)),
    "max_unread_bytes": (1, "2", 3, (1, 2, 3)),
    "media_roots": (
        ["/m/file"],
        "/m/env",
        "/m/flag,/n",
        ((Path("/m/file"),), (Path("/m/env"),), (Path("/m/flag"), Path("/n"))),
    ),
    "output_root": ("/o/file", "/o/env", Path("/o/flag"), (Path("/o/file"), Path("/o/env"), Path("/o/flag"))),
    "output_mode": ("0600", "0660", "0644", (0o600, 0o660, 0o644)),
    "output_group": ("file", "env", "flag", ("file", "env", "flag")),
    "inherit_env": (["FILE", "F_*"], "ENV, E_*", "FLAG", (("FILE", "F_*"), ("ENV", "E_*"), ("FLAG",))),
    "reservation_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "share_half_life_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "preemption_interval_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "grace_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "stop_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "journal_max_events": (1, "2", 3, (1, 2, 3)),
    "journal_max_bytes": (1, "2", 3, (1, 2, 3)),
    "journal_max_age_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "drain": ("true", "false", True, (True, False, True)),
    "drain_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "retention_max_age_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "retention_max_jobs": (1, "2", 3, (1, 2, 3)),
    "retention_max_bytes": (1, "2", 3, (1, 2, 3)),
    "preparation_max_age_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "preparation_max_bytes": (1, "2", 3, (1, 2, 3)),
    "max_log_bytes": (1, "2", 3, (1, 2, 3)),
    "max_output_bytes": (1, "2", 3, (1, 2, 3)),
    "max_run_memory_bytes": (1, "2", 3, (1, 2, 3)),
    "max_run_processes": (1, "2", 3, (1, 2, 3)),
    "cgroups": ("off", "auto", "off", ("off", "auto", "off")),
    "warm_idle_seconds": (1, "2.5", 3.0, (1.0, 2.5, 3.0)),
    "warm_max_bytes": (1, "2", 3, (1, 2, 3)),
    "run_as_uids": ("7-9", "10-11", "7-9", ("7-9", "10-11", "7-9")),
    "run_as_groups": ("a,b", "c", "a,b", ("a,b", "c", "a,b")),
    "unknown_tasks": ("refuse", "warn", "refuse", ("refuse", "warn", "refuse")),
    "audit_file": ("/l/file", "/l/env", Path("/l/flag"), (Path("/l/file"), Path("/l/env"), Path("/l/flag"))),
    "audit_max_bytes": (1, "2", 3, (1, 2, 3)),
    "audit_max_files": (2, "3", 4, (2, 3, 4)),
    "traces": ("otlp", "off", "otlp", ("otlp", "off", "otlp")),
    "metrics_listen": ("9464", "127.0.0.1:9465", "[::1]:9466", ("127.0.0.1:9464", "127.0.0.1:9465", "[::1]:9466")),
    "log_format": ("json", "text", "json", ("json", "text", "json")),
}


ENTRY = "[[suites.a.entries]]\nharness = 'lmms-eval'\ntasks = ['t']\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "evalrpc.toml"
    path.write_text(text)
    return path


def toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_every_setting_is_tested_here() -> None:
    tables = {
        "harnesses",
        "preparations",
        "engines",
        "endpoints",
        "executors",
        "suites",
        "secrets",
        "shares",
        "quotas",
        "client_certificates",
        "oidc",
    }
    assert {field.name for field in dataclasses.fields(Settings)} == {*SOURCES, *tables}


@pytest.mark.parametrize("name", SOURCES)
def test_a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default(tmp_path: Path, name: str) -> None:
    in_file, in_environment, flag, expected = SOURCES[name]
    path = write(tmp_path, f"{name} = {toml(in_file)}\n")
    environment = {f"EVALRPC_{name.upper()}": in_environment}
    assert getattr(load_settings({}, {}), name) == getattr(Settings(), name)
    assert getattr(load_settings({}, {}, path), name) == expected[0]
    assert getattr(load_settings({}, environment, path), name) == expected[1]
    assert getattr(load_settings({name: flag}, environment, path), name) == expected[2]


@pytest.mark.parametrize("name", SOURCES)
def test_a_flag_that_was_not_given_changes_nothing(name: str) -> None:
    assert load_settings({name: None}, {}) == Settings()


def test_rights_may_be_written_as_an_octal_number_and_not_as_a_decimal_one(tmp_path: Path) -> None:
    assert load_settings({}, {}, write(tmp_path, "output_mode = 0o660\n")).output_mode == 0o660
    with pytest.raises(ConfigurationError, match=r"output_mode: .* such as 0640"):
        load_settings({}, {}, write(tmp_path, "output_mode = 660\n"))


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_queued = 5  # type: ignore[misc]


def test_variables_of_others_are_left_alone() -> None:
    assert load_settings({}, {"EVALRPC_ADDRESS": "h:1", "EVALRPC_HARNESSES": "x", "LISTEN": "y", "HOME": "/"}) == Settings()


BAD = [
    ("listen", "127.0.0.1"),
    ("listen", ":50051"),
    ("listen", "127.0.0.1:"),
    ("listen", "127.0.0.1:65536"),
    ("listen", "127.0.0.1:-1"),
    ("listen", "127.0.0.1:http"),
    ("listen", "127.0.0.1:٣"),
    ("listen", "::1:50051"),
    ("listen", "127.0.0.1:1,"),
    ("listen", "unix:"),
    ("listen", "unix:/"),
    ("listen", f"unix:/{'a' * 107}"),
    ("auth", "on"),
    ("insecure_no_auth", "yes"),
    ("gpus", "0,,1"),
    ("gpus", "0, 1"),
    ("gpus", "none"),
    ("max_running", "-1"),
    ("max_running", "many"),
    ("max_running", "1.5"),
    ("max_queued", "0"),
    ("max_request_bytes", "0"),
    ("journal_max_events", "0"),
    ("journal_max_bytes", "0"),
    ("reservation_seconds", "-1"),
    ("reservation_seconds", "nan"),
    ("reservation_seconds", "inf"),
    ("grace_seconds", "-0.1"),
    ("grace_seconds", "soon"),
    ("stop_seconds", "inf"),
    ("journal_max_age_seconds", "nan"),
    ("drain", "yes"),
    ("drain_seconds", "inf"),
    ("retention_max_jobs", "-1"),
    ("retention_max_bytes", "-1"),
    ("max_log_bytes", "-1"),
    ("max_output_bytes", "-1"),
    ("max_run_memory_bytes", "-1"),
    ("max_run_memory_bytes", "1GiB"),
    ("max_run_memory_bytes", str(2**60 + 1)),
    ("max_run_processes", "-1"),
    ("max_run_processes", "4000001"),
    ("retention_max_age_seconds", "-1"),
    ("log_format", "xml"),
    ("data_dir", "a,b"),
    ("store", "mysql://host/d"),
    ("lease_seconds", "0"),
    ("output_root", "a'b"),
    ("output_mode", "0750"),
    ("output_mode", "0440"),
    ("output_mode", "4640"),
    ("output_mode", "rw-r-----"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, {f"EVALRPC_{name.upper()}": value})
    assert f"setting {name}" in caught.value.message


@pytest.mark.parametrize("source", ["--max-queued", "EVALRPC_MAX_QUEUED", "evalrpc.toml"])
@pytest.mark.parametrize("value", ["many", "0"])
def test_the_source_of_a_bad_setting_is_named(tmp_path: Path, source: str, value: str) -> None:
    path = write(tmp_path, f"max_queued = {toml(value if source == 'evalrpc.toml' else 5)}\n")
    flags = {"max_queued": value} if source == "--max-queued" else {}
    environment = {"EVALRPC_MAX_QUEUED": value} if source == "EVALRPC_MAX_QUEUED" else {}
    with pytest.raises(ConfigurationError, match=rf"setting max_queued: must .*\(from .*{source}\)"):
        load_settings(flags, environment, path)


def test_settings_that_come_from_no_source_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="setting log_format: must be `text` or `json`"):
        Settings(log_format="xml")


def test_a_harness_has_a_policy_which_by_default_only_refuses_some_arguments(tmp_path: Path) -> None:
    limits = "max_num_gpus = 2\narguments_refused = []\nmax_timeout_seconds = 60\n"
    text = f"[harnesses.lm-eval.policy]\nmodels = ['hf', 'vllm']\n{limits}"
    harnesses = load_settings({}, {}, write(tmp_path, text + "[harnesses.lmms-eval]\n")).harnesses
    assert harnesses["lmms-eval"].policy == PolicySettings()
    assert {"trust_remote_code", "base_url"} <= set(PolicySettings().arguments_refused)
    expected = PolicySettings(models=("hf", "vllm"), max_num_gpus=2, arguments_refused=(), max_timeout_seconds=60.0)
    assert harnesses["lm-eval"].policy == expected


def test_an_engine_has_a_command_and_defaults(tmp_path: Path) -> None:
    command = ("vllm", "serve", "{model}", "--port", "{port}")
    lines = "api = ['chat', 'completions', 'log-probabilities']\nargs = {dtype = '--dtype'}\nmax_in_flight = 8\n"
    text = f"[engines.vllm]\ncommand = {list(command)}\n{lines}[engines.plain]\ncommand = {list(command)}\n"
    engines = load_settings({}, {}, write(tmp_path, text)).engines
    assert engines["plain"] == EngineSettings("plain", command, working_dir=tmp_path)
    assert engines["vllm"].api == ("chat", "completions", "log-probabilities")
    assert (engines["vllm"].args, engines["vllm"].max_in_flight) == ({"dtype": "--dtype"}, 8)


def test_a_secret_says_where_its_value_is_and_who_may_use_it(tmp_path: Path) -> None:
    first = "[secrets.HF_TOKEN]\nowners = ['alice', 'bob']\nfile = 'token'\n"
    second = "[secrets.B]\nowners = ['*']\ncommand = ['pass', 'b']\n"
    assert load_settings({}, {}, write(tmp_path, first + second)).secrets == {
        "HF_TOKEN": SecretSettings(owners=("alice", "bob"), file=tmp_path / "token"),
        "B": SecretSettings(owners=("*",), command=("pass", "b")),
    }


@pytest.mark.parametrize("key", ["value", "command", "owners"])
def test_a_secret_that_is_written_where_its_source_belongs_is_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"secrets\.A\.{key}") as caught:
        load_settings({}, {}, write(tmp_path, f"[secrets.A]\n{key} = 'sk-123'\n"))
    assert "sk-123" not in caught.value.message


def test_a_bad_environment_of_a_harness_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"harnesses\.a\.env") as caught:
        load_settings({}, {}, write(tmp_path, "[harnesses.a]\nenv = {'A-B' = 'secret'}\n"))
    assert "secret" not in caught.value.message


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="setting gpus"):
        load_settings({"gpus": "-1"}, {})


def test_an_empty_output_root_allows_no_output_dir() -> None:
    assert load_settings({}, {"EVALRPC_OUTPUT_ROOT": ""}).output_root is None


@pytest.mark.parametrize("text", ["max_queued = 2.7", "max_queued = true", "grace_seconds = true"])
def test_a_value_of_another_type_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="setting"):
        load_settings({}, {}, write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_queued = 'many'", "max_queued"),
        ("max_queued = [1]", "max_queued"),
        ("max_runing = 1", "max_runing"),
        ("gpus = [0, 2]", "gpus"),
        ("harnesses = 5", "harnesses"),
        ("harnesses = {a = 5}", "harnesses.a"),
        ("[harnesses.'A b']\nkind='command'\ncommand=['x']", "harnesses.A b"),
        ("[harnesses.a]\nkind = 'command'", "harnesses.a.command"),
        ("[harnesses.a]\nkind = 'command'\ncommand = 'true'", "harnesses.a.command"),
        ("[harnesses.a]\nkind = 'command'\ncommand = [1]", "harnesses.a.command"),
        ("[harnesses.a]\nkind = 'command'\ncommand = ['x']\ncomand = ['y']", "harnesses.a.comand"),
        ("[harnesses.a]\nname = 'b'", "harnesses.a.name"),
        ("[harnesses.a]\nkind = 5", "harnesses.a.kind"),
        ("[harnesses.a]\nenv = {A = 5}", "harnesses.a.env"),
        ("[harnesses.a]\nenv = {'A-B' = 'x'}", "harnesses.a.env"),
        ("[harnesses.a]\nenv = ['A=B']", "harnesses.a.env"),
        ("[harnesses.a]\npython = 5", "harnesses.a.python"),
        ("[harnesses.a]\nworking_dir = 5", "harnesses.a.working_dir"),
        ("[harnesses.a]\nargs = 'x'", "harnesses.a.args"),
        ("inherit_env = [1]", "inherit_env"),
        ("[harnesses.a]\npolicy = 5", "harnesses.a.policy"),
        ("[harnesses.a.policy]\nmodel = ['x']", "harnesses.a.policy.model"),
        ("[harnesses.a.policy]\nmodels = [1]", "harnesses.a.policy.models"),
        ("[harnesses.a.policy]\nmax_num_gpus = -1", "harnesses.a.policy.max_num_gpus"),
        ("[harnesses.a.policy]\nmax_timeout_seconds = 0", "harnesses.a.policy.max_timeout_seconds"),
        ("[harnesses.a.policy]\ndefault_timeout_seconds = inf", "harnesses.a.policy.default_timeout_seconds"),
        ("[harnesses.a.policy]\nmax_timeout_seconds = 5\ndefault_timeout_seconds = 6", "a.policy.default_timeout_seconds"),
        ("preparations = 5", "preparations"),
        ("preparations = {a = 5}", "preparations.a"),
        ("[preparations.'A b']\ncommand=['x']", "preparations.A b"),
        ("[preparations.a]", "preparations.a.command"),
        ("[preparations.a]\ncommand = 'x'", "preparations.a.command"),
        ("[preparations.a]\ncommand = ['x']\ntimeout_seconds = 0", "preparations.a.timeout_seconds"),
        ("[preparations.a]\ncommand = ['x']\nenv = {A = 5}", "preparations.a.env"),
        ("[preparations.a]\ncommand = ['x']\nname = 'b'", "preparations.a.name"),
        ("engines = 5", "engines"),
        ("engines = {a = 5}", "engines.a"),
        ("[engines.'A b']\ncommand=['x']", "engines.A b"),
        ("[engines.a]", "engines.a.command"),
        ("[engines.a]\ncommand = 'x'", "engines.a.command"),
        ("[engines.a]\ncommand = ['x']\nname = 'b'", "engines.a.name"),
        ("[engines.a]\ncommand = ['x']\nready = 'health'", "engines.a.ready"),
        ("[engines.a]\ncommand = ['x']\nstart_timeout_seconds = 0", "engines.a.start_timeout_seconds"),
        ("[engines.a]\ncommand = ['x']\nidle_seconds = -1", "engines.a.idle_seconds"),
        ("[engines.a]\ncommand = ['x']\nmax_in_flight = 0", "engines.a.max_in_flight"),
        ("[engines.a]\ncommand = ['x']\nmax_in_flight = 2.5", "engines.a.max_in_flight"),
        ("[engines.a]\ncommand = ['x']\nargs = {dtype = 'dtype'}", "engines.a.args"),
        ("[engines.a]\ncommand = ['x']\nargs = {dtype = ''}", "engines.a.args"),
        ("[engines.a]\ncommand = ['x']\napi = []", "engines.a.api"),
        ("[engines.a]\ncommand = ['x']\napi = ['chat', 'embeddings']", "engines.a.api"),
        ("[engines.a]\ncommand = ['x']\napi = ['chat', 'log-probabilities']", "engines.a.api"),
        ("[engines.a]\ncommand = ['x']\nenv = {A = 5}", "engines.a.env"),
        ("suites = 5", "suites"),
        ("suites = {a = 5}", "suites.a"),
        ("[suites.'A b']", "suites.A b"),
        ("[suites.a]", "suites.a.entries"),
        ("[suites.a]\nentries = []", "suites.a.entries"),
        ("[suites.a]\nentries = 5", "suites.a.entries"),
        ("[suites.a]\nentries = [5]", "suites.a.entries[0]"),
        ("[suites.a]\nalpha = 0.6", "suites.a.alpha"),
        ("[suites.a]\nmax_bad_answer_ratio = -1", "suites.a.max_bad_answer_ratio"),
        ("[suites.a]\ntasks = ['t']", "suites.a.tasks"),
        ('[suites.a]\ndescription = "a\\nb"', "suites.a.description"),
        ("[[suites.a.entries]]\nharness = 'lmms-eval'", "suites.a.entries[0].tasks"),
        ("[[suites.a.entries]]\ntasks = ['t']", "suites.a.entries[0].harness"),
        (f"{ENTRY}[[suites.a.entries]]\nharness = 'lm-eval'\ntasks = ['u']", "suites.a.entries[1].harness"),
        (ENTRY + ENTRY, "suites.a.entries[1].name"),
        (f"{ENTRY}task = 'u'", "suites.a.entries[0].task"),
        (f"{ENTRY}name = ''", "suites.a.entries[0].name"),
        (f"{ENTRY}num_fewshot = -1", "suites.a.entries[0].num_fewshot"),
        (f"{ENTRY}limit = 1.5", "suites.a.entries[0].limit"),
        (f"{ENTRY}limit = 0", "suites.a.entries[0].limit"),
        (f"{ENTRY}limit = inf", "suites.a.entries[0].limit"),
        (f"{ENTRY}gen_kwargs = 'a=1'", "suites.a.entries[0].gen_kwargs"),
        (f"{ENTRY}gen_kwargs = {{ a = nan }}", "suites.a.entries[0].gen_kwargs"),
        (f"{ENTRY}gen_kwargs = {{ a = 2026-02-14 }}", "suites.a.entries[0].gen_kwargs"),
        (f"{ENTRY}metrics = 'acc'", "suites.a.entries[0].metrics"),
        (f"{ENTRY}tier = 0", "suites.a.entries[0].tier"),
        (f"{ENTRY}required = 'no'", "suites.a.entries[0].required"),
        (f"{ENTRY}tolerance = -0.1", "suites.a.entries[0].tolerance"),
        (f"{ENTRY}threshold = nan", "suites.a.entries[0].threshold"),
        (f"{ENTRY}higher_is_better = 'yes'", "suites.a.entries[0].higher_is_better"),
        ("secrets = 5", "secrets"),
        ("secrets = {A = 5}", "secrets.A"),
        ("[secrets.'A-B']\nowners=['*']\nvariable='A'", "secrets.A-B"),
        ("[secrets.EVALRPC_JOB_ID]\nowners=['*']\nvariable='A'", "secrets.EVALRPC_JOB_ID"),
        ("[secrets.CUDA_VISIBLE_DEVICES]\nowners=['*']\nvariable='A'", "secrets.CUDA_VISIBLE_DEVICES"),
        ("[secrets.A]\nvariable='A'", "secrets.A.owners"),
        ("[secrets.A]\nowners=[]\nvariable='A'", "secrets.A.owners"),
        ("[secrets.A]\nowners=['*']", "secrets.A"),
        ("[secrets.A]\nowners=['*']\nvariable='A'\nfile='x'", "exactly one of `file`, `variable`, `command`"),
        ("[secrets.A]\nowners=['*']\ncommand='x'", "secrets.A.command"),
        ("[secrets.A]\nowners=['*']\ncommand=[]", "secrets.A.command"),
        ("[secrets.A]\nowners=['*']\nvalue='x'", "secrets.A.value"),
        ("[harnesses.a]\ninclude_path = 'x'", "harnesses.a.include_path"),
    ],
)
def test_a_bad_line_of_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, {}, write(tmp_path, text))
    assert named in caught.value.message


def test_an_entry_of_a_suite_is_called_after_its_tasks_unless_it_has_a_name(tmp_path: Path) -> None:
    others = "[[suites.a.entries]]\nharness = 'lmms-eval'\ntasks = ['u', 'v']\n[[suites.a.entries]]\nharness = 'lmms-eval'\n"
    path = write(tmp_path, f"{ENTRY}{others}tasks = ['t']\nname = 'again'\n")
    suite = load_settings({}, {}, path).suites["a"]
    assert [entry.name for entry in suite.entries] == ["t", "u,v", "again"]
    assert (suite.alpha, suite.entries[0].tier, suite.entries[0].required, suite.entries[0].threshold) == (0.05, 1, True, None)


@pytest.mark.parametrize("content", [b"max_queued = ", b"\xff\xfe", b"[harnesses", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        load_settings({}, {}, path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml"):
        load_settings({}, {}, tmp_path / "gone.toml")


def test_a_file_that_is_no_regular_one_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(ConfigurationError, match=r"fifo\.toml: it is a FIFO, not a regular file"):
        load_settings({}, {}, tmp_path / "fifo.toml")


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca", "data_dir", "output_root", "audit_file"])
def test_an_empty_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting {name}: must be a path, not '' "):
        load_settings({name: ""}, {})


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        data_dir = "data"
        output_root = "../out"
        [harnesses.nightly]
        kind = "command"
        command = ["./eval.sh"]
        include_path = ["tasks", "/abs"]
        python = "env/bin/python"
        """,
    )
    settings = load_settings({}, {}, path)
    assert settings.data_dir == tmp_path / "data"
    assert settings.output_root == tmp_path.parent / "out"
    harness = settings.harnesses["nightly"]
    assert harness.include_path == (tmp_path / "tasks", Path("/abs"))
    assert harness.python == tmp_path / "env/bin/python"
    assert harness.working_dir == tmp_path


def test_an_interpreter_that_is_a_link_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    settings = load_settings({}, {}, write(tmp_path, '[harnesses.lmms-eval]\npython = "./python"\n'))
    assert settings.harnesses["lmms-eval"].python == link


def test_a_bare_interpreter_name_is_looked_up_when_it_is_run(tmp_path: Path) -> None:
    settings = load_settings({}, {}, write(tmp_path, '[harnesses.lmms-eval]\npython = "python3"\n'))
    assert settings.harnesses["lmms-eval"].python == Path("python3")


def test_a_harness_is_of_the_kind_of_its_name_unless_it_says_otherwise(tmp_path: Path) -> None:
    text = '[harnesses.lmms-eval]\n[harnesses.nightly]\nkind = "command"\ncommand = ["x", "{model}"]\nenv = { A = "b" }\n'
    harnesses = load_settings({}, {}, write(tmp_path, text)).harnesses
    assert (harnesses["lmms-eval"].kind, harnesses["nightly"].kind) == ("lmms-eval", "command")
    assert harnesses["nightly"].command == ("x", "{model}")
    assert harnesses["nightly"].env == {"A": "b"}


def test_without_a_file_there_is_lmms_eval_in_the_servers_own_environment(tmp_path: Path) -> None:
    assert load_settings({}, {}).harnesses == {"lmms-eval": HarnessSettings("lmms-eval", "lmms-eval")}
    assert load_settings({}, {}, write(tmp_path, "max_queued = 5\n")).harnesses.keys() == {"lmms-eval"}


def test_weights_and_quotas_are_tables_by_owner_and_a_quota_takes_what_it_lacks_from_the_default(tmp_path: Path) -> None:
    text = """
        [shares]
        alice = 2
        "bob@acme.example" = 0.5
        [quotas.default]
        max_queued = 100
        max_gpus = 4
        [quotas.alice]
        max_gpus = 8
        max_bytes = 0
    """
    settings = load_settings({}, {}, write(tmp_path, text))
    policy = policy_of(settings)
    assert [policy.weight(owner) for owner in ("alice", "bob@acme.example", "carol")] == [2.0, 0.5, 1.0]
    assert policy.quota("alice") == QuotaSettings(max_queued=100, max_gpus=8, max_bytes=0)
    assert policy.quota("carol") == policy.quota("") == QuotaSettings(max_queued=100, max_gpus=4)
    assert policy_of(Settings()).quota("alice") == QuotaSettings(), "there are no limits unless some are set"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shares = 3", "setting shares: must be a table of weights by owner"),
        ("shares = { alice = 0 }", "setting shares.alice: must be a number above 0"),
        ("shares = { alice = inf }", "setting shares.alice: must be a number above 0"),
        ("shares = { alice = nan }", "setting shares.alice: must be a number above 0"),
        ("shares = { alice = true }", "setting shares.alice: must be a number above 0"),
        ('shares = { alice = "2" }', "setting shares.alice: must be a number above 0"),
        ('shares = { "" = 2 }', "setting shares.: an owner must be 1 to 63 of the characters"),
        (f"shares = {{ {'a' * 64} = 2 }}", "an owner must be 1 to 63 of the characters"),
        ('shares = { "a b" = 2 }', "setting shares.a b: an owner must be 1 to 63 of the characters"),
        ("quotas = 3", r"setting quotas: must be tables such as \[quotas.default\]"),
        ("quotas = { alice = 3 }", "setting quotas.alice: must be a table"),
        ("quotas.alice.max_running = -1", "setting quotas.alice.max_running: must be at least 0"),
        ("quotas.alice.max_running = 1.5", "setting quotas.alice.max_running: must be an integer"),
        ("lisen = 1", "unknown setting lisen; did you mean listen?"),
        ("frobnicate = 1", "unknown setting frobnicate; `evalrpc serve --help` and docs/settings.md list them all"),
        ("quotas.alice.max_jobs = 1", "setting quotas.alice.max_jobs: is unknown; there are: max_bytes, max_gpus, max_queued"),
        ('quotas."".max_queued = 1', "an owner must be 1 to 63 of the characters"),
        (f"quotas.{'a' * 64}.max_queued = 1", "an owner must be 1 to 63 of the characters"),
        ("share_half_life_seconds = 0", "setting share_half_life_seconds: must be finite and above 0"),
    ],
)
def test_what_is_wrong_with_a_weight_or_a_quota_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load_settings({}, {}, write(tmp_path, text))


@settings(deadline=None)
@given(name=st.sampled_from(sorted(SOURCES)), value=st.text())
def test_any_value_in_the_environment_works_or_is_a_configuration_error(name: str, value: str) -> None:
    refusal = ""
    try:
        load_settings({}, {f"EVALRPC_{name.upper()}": value})
    except ConfigurationError as error:
        refusal = error.message
    assert not refusal or f"setting {name}" in refusal


# Who calls.

OIDC = 'issuer = "https://id.example.org"\naudience = "evalrpc"\n'


def test_client_certificates_have_an_owner_and_a_role_each(tmp_path: Path) -> None:
    table = '"spiffe://example.org/ci" = { owner = "ci", role = "submitter" }\n"bob" = { owner = "bob@x", role = "viewer" }\n'
    settings = load_settings({}, {}, write(tmp_path, f"[client_certificates]\n{table}"))
    assert settings.client_certificates == {
        "spiffe://example.org/ci": ClientCertificate("ci", "submitter"),
        "bob": ClientCertificate("bob@x", "viewer"),
    }


def test_the_identity_provider_has_defaults_for_what_is_not_said(tmp_path: Path) -> None:
    oidc = load_settings({}, {}, write(tmp_path, f'[oidc]\n{OIDC}role = "viewer"\n')).oidc
    assert oidc == OidcSettings("https://id.example.org", "evalrpc", role="viewer")
    assert oidc is not None
    assert (oidc.owner_claim, oidc.algorithms, oidc.jwks_url) == ("sub", ("RS256", "ES256"), "")
    table = 'role_claim = "groups"\nroles = { admins = "operator" }\nalgorithms = ["EdDSA"]\n'
    oidc = load_settings({}, {}, write(tmp_path, f"[oidc]\n{OIDC}{table}")).oidc
    assert oidc is not None
    assert (oidc.role_claim, oidc.roles, oidc.algorithms) == ("groups", {"admins": "operator"}, ("EdDSA",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("client_certificates = 7", r"client_certificates: must have lines"),
        ("[client_certificates]\na = 7", r'client_certificates."a": must be a table'),
        ('[client_certificates]\na = { owner = "x" }', r'client_certificates."a".role: is needed'),
        ('[client_certificates]\na = { role = "viewer" }', r'client_certificates."a".owner: is needed'),
        ('[client_certificates]\na = { owner = "x y", role = "viewer" }', r'"a".owner: must be 1 to 63'),
        ('[client_certificates]\na = { owner = "x", role = "root" }', r'"a".role: must be `viewer`'),
        ('[client_certificates]\na = { owner = "x", role = "viewer", x = 1 }', r'"a".x: is unknown'),
        ("[oidc]", r"oidc.issuer: is needed"),
        ('[oidc]\nissuer = "https://x"', r"oidc.audience: is needed"),
        ('[oidc]\nissuer = "https://x"\naudience = ""', r"oidc.audience: must not be empty"),
        (f"[oidc]\n{OIDC}", r"oidc.role: is needed, or oidc.role_claim"),
        ('[oidc]\naudience = "x"\nissuer = "http://id.example.org"', r"oidc.issuer: must be an https URL"),
        ('[oidc]\naudience = "x"\nissuer = "https://"', r"oidc.issuer: must be an https URL"),
        (f'[oidc]\n{OIDC}jwks_url = "file:///etc/keys"', r"oidc.jwks_url: must be an https URL"),
        (f'[oidc]\n{OIDC}role = "root"', r"oidc.role: must be `viewer`"),
        (f'[oidc]\n{OIDC}roles = {{ a = "root" }}', r"oidc.roles: must be a table with the roles"),
        (f'[oidc]\n{OIDC}algorithms = ["HS256"]', r"oidc.algorithms: must be some of RS256"),
        (f'[oidc]\n{OIDC}algorithms = ["none"]', r"oidc.algorithms: must be some of RS256"),
        (f"[oidc]\n{OIDC}algorithms = []", r"oidc.algorithms: must be some of RS256"),
        ("[oidc]\nsecret = 1", r"oidc.secret: is unknown"),
        ('auth = "optional"', r"auth: must be `off` or `required`"),
    ],
)
def test_what_says_who_calls_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_settings({}, {}, write(tmp_path, f"{text}\n"))


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:1/x"])
def test_an_issuer_on_this_machine_needs_no_encryption(tmp_path: Path, issuer: str) -> None:
    text = f'[oidc]\nissuer = "{issuer}"\naudience = "x"\nrole = "viewer"\n'
    assert load_settings({}, {}, write(tmp_path, text)).oidc is not None


@pytest.mark.parametrize(
    ("owner", "is_good"),
    [
        ("a", True),
        ("A.b_c@d-9", True),
        ("x" * 63, True),
        ("x" * 64, False),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_an_owner_is_1_to_63_plain_characters(owner: str, is_good: bool) -> None:
    assert is_owner(owner) == is_good
