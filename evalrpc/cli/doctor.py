"""`evalrpc doctor`: whether a server could run here, and what to do if not."""

import json
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from evalrpc import extras
from evalrpc.cli.connection import form_options
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux, with_flag
from evalrpc.cli.output import Form, is_terminal, print_folded, print_json_text, print_table
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.cli.tables import Column, Kind
from evalrpc.client import EvalClient
from evalrpc.clock import SystemClock
from evalrpc.config import Settings, load_settings
from evalrpc.config.addresses import ListenAddress, PortAddress, parse_listen_address
from evalrpc.config.listeners import Listener, TlsFiles, http_listeners_of, listeners_of
from evalrpc.errors import ConfigurationError, EvalrpcError, UnauthenticatedError
from evalrpc.files.regular import read_named_file

if TYPE_CHECKING:
    from evalrpc.scheduling.run_accounts import AccountPool

_PROBE_TIMEOUT_SECONDS = 3.0
_TRIAL_SECONDS: Final = 60.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_WAY: Final = "data folder with an account of runs"
_COLUMNS: Final = (Column("check"), Column("result", Kind.WHOLE), Column("detail"))


class Finding(NamedTuple):
    """The result of a check."""

    subject: str
    good: bool
    detail: str
    """What was found, or what is wrong and what to do."""


@click.command(short_help="Check whether a server could run here.")
@setting_flags(
    "listen",
    "http_listen",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "auth",
    "proxy_terminates_tls",
    "insecure_no_auth",
    "data_dir",
    "store",
    "gpus",
    "metrics_listen",
)
@click.option("--warm", is_flag=True, help="Load each harness, too, as for warm runs: up to a minute for each.")
@form_options
def doctor_command(config: Path | None, form: Form, *, warm: bool, **flags: Any) -> None:
    """Check the harnesses, the GPUs, the data folder and the port. Exits with 1 if something is wrong."""
    require_linux()
    with reported():
        settings = load_settings(flags, os.environ, config)
        findings = [Finding("config file", True, str(config or "none")), *examine(settings, os.environ)]
        if warm:
            findings += _guarded("warm runs", lambda: check_warm(settings, os.environ))
    if form in (Form.JSON, Form.JSONL):
        for finding in findings:
            print_json_text(json.dumps(finding._asdict()))
    else:
        _print(form, findings)
    wrong = sum(not finding.good for finding in findings)
    if wrong:
        fail(ExitCode.NOT_PASSED, f"{wrong} of {len(findings)} checks found something wrong")


def examine(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings of every check. Changes nothing that lasts."""
    yield from _guarded("harnesses", lambda: check_harnesses(settings))
    yield from _guarded("preparations", lambda: check_preparations(settings))
    yield from _guarded("engines", lambda: check_engines(settings))
    yield from _guarded("endpoints", lambda: check_endpoints(settings))
    yield from _guarded("suites", lambda: check_suites(settings))
    yield from _guarded("GPUs", lambda: check_gpus(settings, environment))
    yield from _guarded("defaults", lambda: check_defaults(settings, environment))
    yield from _guarded("cgroups", lambda: check_cgroups(settings, environment))
    yield check_environment(settings, environment)
    yield from check_secrets(settings, environment)
    yield from _guarded("accounts of runs", lambda: check_accounts(settings, environment))
    yield from _guarded("data folder", lambda: check_data_dir(settings.data_dir))
    yield from _guarded("executors", lambda: check_executors(settings, environment))
    yield from _guarded("metrics", lambda: check_metrics(settings))
    yield from _guarded("store", lambda: check_store(settings))
    yield from _guarded("addresses", lambda: check_listeners(settings, SystemClock().now().ToDatetime(UTC)))


def check_harnesses(settings: Settings) -> Iterator[Finding]:
    """Check that the program of every configured harness is available."""
    from evalrpc.harnesses.registry import build_harnesses

    for name, harness in sorted(build_harnesses(settings).items()):
        info = harness.info()
        detail = f"{info.kind} {info.version}".rstrip() if info.available else info.unavailable_reason
        yield Finding(f"harness {name}", info.available, detail)


def check_warm(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check which harnesses a process can have in memory, for runs to be forked from. A server can do without."""
    from evalrpc.executors.local.cgroups import find_cgroups
    from evalrpc.executors.local.environment import build_environment, inherited_variables
    from evalrpc.executors.local.warm_parents import NEEDS_CGROUPS, try_preload
    from evalrpc.harnesses.registry import build_harnesses

    if settings.run_as_uids and find_cgroups(settings.cgroups, is_trial=True).cgroups is None:
        yield Finding("warm runs", True, f"no job can be warm: {NEEDS_CGROUPS}")
        return
    inherited = inherited_variables(environment, settings.inherit_env)
    for name, harness in sorted(build_harnesses(settings).items()):
        command = harness.catalog_command()
        if command is not None and command.preload is not None and harness.info().available:
            variables = build_environment(inherited, command.env, gpus=(), job_id="", attempt=0)
            yield Finding(f"harness {name}, warm", True, try_preload(command.preload, command.cwd or Path.cwd(), variables))


def check_preparations(settings: Settings) -> Iterator[Finding]:
    """Check that the program of every configured preparation is there."""
    from evalrpc.preparations.preparation import build_preparations

    for name, preparation in sorted(build_preparations(settings.preparations).items()):
        problem = preparation.problem()
        yield Finding(f"preparation {name}", not problem, problem or "its program is there")


def check_engines(settings: Settings) -> Iterator[Finding]:
    """Check that the command line of every configured engine can be one, and that its program is there."""
    from evalrpc.engines.definition import build_engines

    for name, engine in sorted(build_engines(settings.engines).items()):
        problem = engine.problem()
        yield Finding(f"engine {name}", not problem, problem or "its program is there")


def check_endpoints(settings: Settings) -> Iterator[Finding]:
    """Say which endpoints there are, and check that the libraries for them are there. Asks none of them."""
    from evalrpc.engines.endpoints import endpoint_problem

    for name, endpoint in sorted(settings.endpoints.items()):
        key = f"key: secret {endpoint.secret}" if endpoint.secret else "no key"
        problem = endpoint_problem(endpoint)
        yield Finding(
            f"endpoint {name}", not problem, problem or f"{endpoint.url}, {key}; models: {', '.join(endpoint.models)}"
        )


def check_suites(settings: Settings) -> Iterator[Finding]:
    """Check that a job can be made of each entry of every suite."""
    from evalrpc.server.suite_definitions import build_suites

    for name, suite in build_suites(settings.suites).items():
        yield Finding(f"suite {name}", True, f"entries: {', '.join(entry.name for entry in suite.entries)}")


def check_gpus(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check which GPUs a server would hand out. None is fine if none were asked for, or with `auto`."""
    from evalrpc.executors.local.gpus import find_gpus

    gpus = find_gpus(settings.gpus, environment)
    names = ", ".join(f"{gpu.id} ({gpu.name or 'not known to the driver'})" for gpu in gpus)
    advice = f"the driver does not know all that `gpus = {settings.gpus}` names; run nvidia-smi to see what it knows"
    known = all(gpu.name for gpu in gpus)
    yield Finding("GPUs", known, (names if known else f"{names}: {advice}") or "none")


def check_defaults(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the server has what a request gets that leaves out the harness and the GPUs."""
    from evalrpc.executors.local.gpus import find_gpus
    from evalrpc.jobs.defaults import request_defaults

    defaults = request_defaults(settings, len(find_gpus(settings.gpus, environment)))
    harness = f"harness {defaults.harness}" if defaults.harness else "no harness: a request must name one"
    yield Finding("defaults", True, f"{harness}; GPUs: {defaults.num_gpus}")


def check_executors(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Have each cluster run a tiny program from the data folder, if that is there."""
    from evalrpc.executors.slurm.trial import try_cluster

    for name, executor in sorted(settings.executors.items()):
        if settings.data_dir.is_dir():
            good, detail = try_cluster(executor, settings.data_dir, environment, _TRIAL_SECONDS)
        else:
            good, detail = True, "not tried, since there is no data folder yet"
        yield Finding(f"executor {name}", good, detail)


def check_cgroups(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check whether runs can have cgroups, without which a server can do, and whether their limits are enforced."""
    from evalrpc.executors.local.cgroups import find_cgroups
    from evalrpc.executors.local.gpus import find_gpus
    from evalrpc.scheduling.run_limits import describe_limits

    cgroups, detail = find_cgroups(settings.cgroups, is_trial=True)
    yield Finding("cgroups", True, detail)
    has_gpus = bool(find_gpus(settings.gpus, environment))
    for limit in describe_limits(settings, cgroups.controllers if cgroups else frozenset(), has_gpus=has_gpus):
        yield Finding(limit.subject, limit.holds, limit.detail)


def check_environment(settings: Settings, environment: Mapping[str, str]) -> Finding:
    """Name the variables that a run does not inherit because they look like secrets: what a run misses may be one of them."""
    from evalrpc.executors.local.environment import inherited_variables, looks_secret

    inherited = inherited_variables(environment, settings.inherit_env)
    withheld = ", ".join(sorted(name for name in environment if name not in inherited and looks_secret(name))) or "none"
    detail = f"inherits {len(inherited)} of {len(environment)} variables; not inherited, as possible secrets: {withheld}"
    return Finding("environment of runs", True, detail)


def check_secrets(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that every secret can be read. Its value is not shown."""
    from evalrpc.secrets.registry import Secrets

    secrets = Secrets(settings.secrets, environment)
    for name in sorted(settings.secrets):
        problem = secrets.problem(name)
        yield Finding(f"secret {name}", not problem, problem or f"can be read; for {', '.join(settings.secrets[name].owners)}")


def check_accounts(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that runs can have accounts of their own, if they are to, and what a process with one can do."""
    from evalrpc.scheduling.run_accounts import account_pool, describe_accounts, find_lacks

    pool = account_pool(settings.run_as_uids, settings.run_as_groups)
    yield Finding("accounts of runs", True, describe_accounts(pool))
    if pool is None:
        return
    for harness in settings.harnesses.values():
        lacks = find_lacks(pool, harness, environment)
        detail = "; ".join(lacks) or "its program can be run"
        yield Finding(f"harness {harness.name} with an account of runs", not lacks, detail)
    yield from _guarded(_WAY, lambda: check_way(pool, settings.data_dir))


def check_way(pool: "AccountPool", data_dir: Path) -> Iterator[Finding]:
    """Check that runs with accounts of their own can get to the data folder."""
    from evalrpc.scheduling.run_accounts import require_way

    require_way(pool, data_dir)
    yield Finding(_WAY, True, f"can get to {data_dir}")


def check_data_dir(data_dir: Path) -> Iterator[Finding]:
    """Check that the data folder is writable or can be created, on a disk with room."""
    from evalrpc.server.write_check import MIN_FREE_BYTES

    nearest = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        yield Finding("data folder", False, f"{nearest} is no folder; choose another --data-dir")
    elif not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data folder", False, f"{nearest} can't be written; change its owner or choose another --data-dir")
    elif shutil.disk_usage(nearest).free < MIN_FREE_BYTES:
        yield Finding("data folder", False, f"the disk of {nearest} is full; make room on it, or choose another --data-dir")
    else:
        yield Finding("data folder", True, f"{data_dir.absolute()}{'' if nearest == data_dir.absolute() else ', to be made'}")


def check_store(settings: Settings) -> Iterator[Finding]:
    """Check that the database can be opened or reached, and keeps what it has acknowledged."""
    if not settings.store:
        from evalrpc.store.sqlite.opening import check_database as check_file
        from evalrpc.store.sqlite.store import DATABASE_NAME

        check_file(settings.data_dir / DATABASE_NAME)
        yield Finding("store", True, "SQLite, in the data folder")
        return
    from evalrpc.store.postgres.checking import check_clock, check_database

    yield Finding("store", *check_database(settings.store))
    if problem := check_clock(settings.store):
        yield Finding("clock", False, problem)


def check_listeners(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Check of each address that it is free or held by an evalrpc server, its certificate, and whether callers must sign in."""
    http_listeners = http_listeners_of(settings)
    listeners = (*listeners_of(settings), *http_listeners)
    if http_listeners:
        yield check_http()
    for listener in listeners:
        place = f" {listener.address}" if len(listeners) > 1 else ""
        yield check_address(listener, f"port{place}")
        if listener.tls is not None:
            yield check_certificate(listener.tls, now, f"certificate{place}")
        yield Finding(f"sign-in{place}", True, listener.risk or f"{listener.address} requires it")


def check_metrics(settings: Settings) -> Iterator[Finding]:
    """Check that the metrics can be served, if they are to."""
    if not settings.metrics_listen:
        return
    from evalrpc.server.listening import find_refusal

    if find_spec("prometheus_client") is None:
        yield Finding("metrics", False, f"a library is missing; install it: {extras.install_command('metrics')}")
        return
    address = settings.metrics_listen
    refusal = find_refusal(parse_listen_address(address))
    if refusal is None:
        yield Finding("metrics", True, f"{address} is free")
    elif _has_metrics(address):
        yield Finding("metrics", True, f"an evalrpc server answers at {address}")
    else:
        yield Finding("metrics", False, f"can't listen on {address} ({refusal.strerror}); choose another --metrics-listen")


def _has_metrics(address: str) -> bool:
    """Return whether an evalrpc server has its metrics at an address."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_PROBE_TIMEOUT_SECONDS) as answer:
            return b"evalrpc_build_info" in answer.read()
    except (OSError, ValueError, HTTPException):
        return False


def check_http() -> Finding:
    """Check that there is what HTTP takes."""
    try:
        import evalrpc.server.transports.http_server  # noqa: F401 - it loads the libraries
    except ModuleNotFoundError as error:
        return Finding("HTTP", False, extras.missing(error, "http"))
    return Finding("HTTP", True, "its libraries are installed")


def check_address(listener: Listener, subject: str) -> Finding:
    """Check that an address is free or held by an evalrpc server."""
    from evalrpc.server.listening import find_refusal

    refusal = find_refusal(listener.address)
    if refusal is None:
        return Finding(subject, True, f"{listener.address} is free")
    address, tls, flag = listener.address, listener.tls, f"--{listener.setting_name.replace('_', '-')}"
    if listener.setting_name == "http_listen":
        holder = _http_holder(listener)
    else:
        holder = _tls_holder(address, tls) if tls and isinstance(address, PortAddress) else _holder(address)
    if holder:
        return Finding(subject, True, f"{holder} answers at {address}")
    return Finding(subject, False, f"can't listen on {address} ({refusal.strerror}); choose another {flag}")


def check_certificate(tls: TlsFiles, now: datetime, subject: str) -> Finding:
    """Check that a certificate can be used, and is valid for some time to come."""
    from evalrpc.server.certificates import expiry_of, read_tls_files

    try:
        expiry = expiry_of(read_tls_files(tls), now)
    except ConfigurationError as error:
        return Finding(subject, False, with_flag(error.message))
    return Finding(subject, not expiry.is_near, f"{tls.cert} {expiry.text}")


def _holder(address: ListenAddress) -> str:
    """Return what answers at an address without TLS, if it is an evalrpc server."""
    try:
        with EvalClient(str(address), timeout_seconds=_PROBE_TIMEOUT_SECONDS) as client:
            return f"evalrpc {client.get_server_info().version}"
    except UnauthenticatedError:
        return "evalrpc"
    except (EvalrpcError, TimeoutError, ValueError):
        return ""


def _http_holder(listener: Listener) -> str:
    """Return what answers at an address for HTTP, if it is an evalrpc server."""
    address = listener.address
    if not isinstance(address, PortAddress):
        return ""
    if listener.tls:
        return _tls_holder(address, listener.tls)
    url = f"http://{address}/evalrpc.v1.EvaluationService/GetServerInfo"
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_SECONDS) as answer:
            return f"evalrpc {json.loads(answer.read(_MAX_ANSWER_BYTES))['version']}"
    except urllib.error.HTTPError as error:
        return "evalrpc" if error.headers.get("www-authenticate") == "Bearer" else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tls_holder(address: PortAddress, tls: TlsFiles) -> str:
    """Return what answers at a port with TLS, if it has the certificate of this server, or if nobody can tell."""
    from evalrpc.server.x509 import first_certificate

    try:
        theirs = ssl.get_server_certificate((address.host.strip("[]"), address.port), timeout=_PROBE_TIMEOUT_SECONDS)
    except (OSError, ValueError):
        return ""
    try:
        is_ours = ssl.PEM_cert_to_DER_cert(theirs) == first_certificate(read_named_file(tls.cert))
    except (OSError, ValueError):
        return f"a server with TLS, which is this one or another (that can't be told without the certificate in {tls.cert}),"
    return "a server with this certificate" if is_ours else ""


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn a check that can't run into a finding, so that the others still run."""
    try:
        yield from check()
    except ConfigurationError as error:
        yield Finding(subject, False, with_flag(error.message))
    except ModuleNotFoundError as error:
        yield Finding(subject, False, extras.missing(error, "server"))
    except OSError as error:
        yield Finding(subject, False, f"{error.filename}: {error.strerror}")


def _print(form: Form, findings: Sequence[Finding]) -> None:
    """Print a table; on a terminal, what to do is too long for one, so that it goes on below itself."""
    rows = [(finding.subject, "ok" if finding.good else "WRONG", finding.detail) for finding in findings]
    if form is Form.TABLE and is_terminal():
        print_folded((subject, f"{result}: {detail}") for subject, result, detail in rows)
    else:
        print_table(form, _COLUMNS, rows)
