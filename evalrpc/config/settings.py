"""Every setting of the server that is no key of a table of its own, each declared once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evalrpc.config.addresses import LOOPBACK, PortAddress, parse_listen_address
from evalrpc.config.callers import ClientCertificate, OidcSettings
from evalrpc.config.declaration import (
    BOOLEAN,
    FILE,
    FOLDER,
    INTEGER,
    NAMED_FOLDERS,
    NAMES,
    NUMBER,
    OCTAL_NUMBER,
    POSITIVE,
    RUN_MEMORY,
    RUN_PROCESSES,
    STRING,
    STRING_OR_INTEGER,
    Kind,
    Rule,
    at_least,
    one_of,
    setting,
    settings_of,
)
from evalrpc.config.engines import EndpointSettings, EngineSettings, ModelServer
from evalrpc.config.executors import LOCAL_EXECUTOR, ExecutorSettings
from evalrpc.config.harnesses import HarnessSettings
from evalrpc.config.listen import (
    AUTH_RULE,
    HOST_NAMES,
    HTTP_LISTEN,
    LISTEN,
    ORIGINS,
    ORIGINS_RULE,
    HttpListenSettings,
    ListenSettings,
)
from evalrpc.config.preparations import PreparationSettings
from evalrpc.config.quotas import QuotaSettings
from evalrpc.config.secrets import SecretSettings
from evalrpc.config.suites import SuiteSettings
from evalrpc.errors import ConfigurationError

LMMS_EVAL: Final = "lmms-eval"
"""The harness of a server that configures none."""

INHERITED_VARIABLES: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LD_LIBRARY_PATH", "PYTHONHASHSEED"),
    *("CUDA_*", "NVIDIA_*", "NCCL_*", "ROCM_*", "HIP_*", "HSA_*", "GLOO_*", "UCX_*"),
    *("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "TOKENIZERS_PARALLELISM", "TORCH*", "PYTORCH_*", "TRITON_*", "NLTK_DATA"),
    *("LMMS_EVAL_*", "LMEVAL_*", "INSPECT_*", "VLLM_*", "SGLANG_*"),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "MALLOC_*"),
    *("*_PROXY", "*_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
"""The variables of the server that a run has by default: what harnesses, their libraries and CUDA read."""

_GPUS: Final = re.compile(r"auto|\d*|(?!none\b)\w[\w.:/-]*(,\w[\w.:/-]*)*")
_UIDS: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_MAX_UID: Final = 2**32 - 2  # one more means: leave it as it is


def _is_uids(text: str) -> bool:
    match = _UIDS.fullmatch(text)
    return not text or (match is not None and 0 < int(match[1]) <= int(match[2]) <= _MAX_UID)


def _is_file_mode(mode: int) -> bool:
    return 0 <= mode <= 0o777 and mode & 0o700 == 0o600 and not mode & 0o111


_UIDS_RULE: Final = Rule(f"be empty or FIRST-LAST, of numbers from 1 to {_MAX_UID}", _is_uids, "FIRST-LAST")
_GPUS_RULE: Final = Rule(
    "be `auto`, a number (0 for none), or a list such as `0,2,3`",
    lambda gpus: _GPUS.fullmatch(gpus) is not None,
    "auto|N|0,2,3",
)
_MODE_RULE: Final = Rule("be the rights of a file that its owner may read and write, such as 0640", _is_file_mode)
_STORE_RULE: Final = Rule(
    "be empty, or as in postgresql://USER@HOST/DATABASE",
    lambda store: not store or store.startswith(("postgresql://", "postgres://")),
    "postgresql://...",
)
_HOST_NAME: Final = Rule(
    "be a name of letters, digits, `.`, `_` and `-`, that begins with a letter or digit, and not `local`",
    lambda name: not name or (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", name) is not None and name != "local"),
)
_FINITE: Final = Rule("be finite and not negative", lambda number: 0 <= number < float("inf"))
_PLAIN_PATH: Final = Rule(
    "have no comma or quote, which lmms-eval would misread", lambda path: not set(",'\"") & set(str(path))
)


def _seconds(default: float, description: str) -> float:
    return setting(default, NUMBER, description, unit="seconds", rule=_FINITE)


def _count(default: int, unit: str, minimum: int, description: str) -> int:
    return setting(default, INTEGER, description, unit=unit, rule=at_least(minimum))


def _metrics_address(value: Any, folder: Path) -> str:
    text = STRING_OR_INTEGER.parse(value, folder)
    if not text:
        return ""
    address = parse_listen_address(f"{LOOPBACK}:{text}" if text.isdecimal() else text)
    if not isinstance(address, PortAddress):
        raise ValueError(text)  # noqa: TRY004 - it is a wrong text
    return str(address)


_METRICS_ADDRESS: Final = Kind("PORT or HOST:PORT, with a port from 0 to 65535", "PORT", _metrics_address)


@dataclass(frozen=True)
class Settings:
    """Every setting of a server. Raises ConfigurationError, naming the setting, for a value that it may not have."""

    listen: tuple[ListenSettings, ...] = setting(
        (ListenSettings("127.0.0.1:50051"),),
        LISTEN,
        "The addresses. Port 0 takes a free one. The folder of a socket must be private to the server's account (0700), and is "
        "made if it is missing. The file can give an address rules of its own: see below.",
        rule=Rule("not be empty", bool),
    )
    http_listen: tuple[HttpListenSettings, ...] = setting(
        (),
        HTTP_LISTEN,
        "The addresses for HTTP, in the forms of `listen`: the same calls by the Connect protocol, for curl, scripts and "
        "browsers. It takes the extra `http`. TLS and sign-in are as at the addresses of gRPC.",
        default_text="none: no HTTP",
    )
    lmms_eval_paths: bool = setting(
        False,
        BOOLEAN,
        "Whether addresses for HTTP where nobody has to sign in also have the paths of lmms-eval's own server, for its "
        "clients, which can't sign in.",
    )
    http_hosts: tuple[str, ...] = setting(
        (),
        HOST_NAMES,
        "Further names by which HTTP clients may call this server, as a proxy before it passes them on in `Host`. Accepted in "
        "any case are addresses in numbers, `localhost`, the name of the machine, and the host in `http_listen`; any other "
        "name may be one that a foreign web page has had pointed here.",
        default_text="none",
    )
    http_origins: tuple[str, ...] = setting(
        (),
        ORIGINS,
        "The web pages of other servers that may call this one from browsers, as their origins, such as "
        "`https://dashboard.example.org`.",
        rule=ORIGINS_RULE,
        default_text="none",
    )
    page: bool = setting(
        True,
        BOOLEAN,
        "Whether browsers get the page at `/` of the addresses for HTTP, and may sign in there with a token.",
    )
    tls_cert: Path | None = setting(
        None,
        FILE,
        "The server's certificate with its chain, as PEM: all ports speak TLS, and only TLS. A new one on disk is taken up "
        "without a restart.",
        default_text="none: no TLS",
    )
    tls_key: Path | None = setting(None, FILE, "The private key of `tls_cert`, as PEM.", default_text="none")
    tls_client_ca: Path | None = setting(
        None,
        FILE,
        "Mutual TLS: the certificates, as PEM, that sign those of clients. A client without one can't connect, so clients "
        "that have only a token need another address.",
        default_text="none: clients need no certificate",
    )
    auth: str | None = setting(
        None,
        STRING,
        "Whether callers must sign in. Where they need not, whoever brings no token or certificate is an anonymous submitter.",
        rule=AUTH_RULE,
        default_text="`off` on loopback and sockets, `required` on all other addresses",
    )
    proxy_terminates_tls: bool = setting(
        False,
        BOOLEAN,
        "Whether a proxy before the server speaks TLS with its clients. Only then may tokens reach an address without TLS "
        "that is not loopback; nothing but the proxy should reach it.",
    )
    insecure_no_auth: bool = setting(
        False,
        BOOLEAN,
        "Whether sign-in may be off on addresses that are not loopback, and is by default. Then whoever reaches the port runs "
        "code as the server's account.",
    )
    visibility: str = setting(
        "all",
        STRING,
        "Whose jobs a caller sees who is no operator: those of `all`, or only its `own`. Then the jobs of others do not exist "
        "for it, except in counts.",
        rule=one_of("all", "own"),
    )
    data_dir: Path = setting(
        Path("evalrpc-data"),
        FOLDER,
        "The folder of the database, the logs and the results. One server at a time, readable by its account only.",
        rule=_PLAIN_PATH,
    )
    store: str = setting(
        "",
        STRING,
        "The PostgreSQL database that keeps the jobs, as in `postgresql://evalrpc@db.example/evalrpc`. A password belongs into "
        "`~/.pgpass`. Logs and results stay in `data_dir`.",
        rule=_STORE_RULE,
        default_text="SQLite, in `data_dir`",
    )
    host_name: str = setting(
        "",
        STRING,
        "With `store`: by what name other servers know this machine, to which its runs belong. Each has one of its own, "
        "and it must not change while jobs run.",
        rule=_HOST_NAME,
        default_text="the machine's host name",
    )
    lease_seconds: float = setting(
        10.0,
        NUMBER,
        "With `store`: for how long a server may be silent until another one places jobs in its stead, or sees to the runs of "
        "its machine.",
        unit="seconds",
        rule=POSITIVE,
    )
    gpus: str = setting(
        "auto",
        STRING_OR_INTEGER,
        "The GPUs to hand out. `auto`: those that CUDA_VISIBLE_DEVICES or the driver shows. N: the first N. `0,2,3`: these. "
        "`0` or empty: none.",
        rule=_GPUS_RULE,
    )
    default_harness: str = setting(
        "",
        STRING,
        "The harness of a request that names none.",
        default_text="the only one configured, else `lmms-eval` if it is configured, else none: then a request must name one",
    )
    default_executor: str = setting(
        LOCAL_EXECUTOR,
        STRING,
        "Where the run of a request is placed that does not say where: `local`, the server's own machine, or an executor. A "
        "harness that may not use it uses the first of its `executors`.",
    )
    default_num_gpus: int | None = setting(
        None,
        INTEGER,
        "The number of GPUs of a request that does not say how many. No more than the server has.",
        unit="GPUs",
        rule=at_least(0),
        default_text="1 where the server has GPUs, 0 where it has none",
    )
    max_running: int = _count(
        0,
        "jobs",
        0,
        "The most jobs that run at once. 0: one per GPU plus two. Jobs without GPUs get the slots that GPU jobs can't fill, "
        "and at least one. Those with a served model have slots of their own.",
    )
    max_running_served: int = _count(
        8,
        "jobs",
        1,
        "The most jobs with a served model that run at once, besides all others: each is a harness that asks an engine.",
    )
    max_queued: int = _count(100_000, "jobs", 1, "The most jobs that wait; beyond that SubmitJob answers RESOURCE_EXHAUSTED.")
    # Well above what a request may hold, so that most oversized requests get an answer that names the field.
    max_request_bytes: int = _count(
        16 * 1024 * 1024, "bytes", 1, "The largest request; a larger one is answered with RESOURCE_EXHAUSTED."
    )
    max_streams: int = _count(
        20_000,
        "streams",
        1,
        "The most streams (watches, logs and files being read) that are open at once, of all callers together.",
    )
    max_streams_per_owner: int = _count(
        15_000, "streams", 1, "The same of one owner. All callers who have not signed in are one owner."
    )
    max_streams_per_connection: int = _count(
        0, "calls", 0, "The most calls in progress on one connection; further ones wait in the client. 0: any number."
    )
    max_connections: int | None = setting(
        None,
        INTEGER,
        "The most connections; further ones are closed at once.",
        unit="connections",
        rule=at_least(1),
        default_text="three quarters of the file descriptors that the server may open (`ulimit -n`)",
    )
    max_connection_idle_seconds: float = _seconds(
        3600.0, "How long a connection without a call stays open. Clients connect again when they need to. 0: forever."
    )
    max_connection_age_seconds: float = _seconds(
        0.0,
        "How long a connection stays open, so that clients spread over the addresses of a name again. Calls in progress then "
        "get a minute to end, and our clients resume their streams. 0: forever.",
    )
    max_calls_per_second: int = _count(
        0,
        "calls",
        0,
        "The most calls per second of one owner; as many may come at once. 0: any number. Health checks don't count.",
    )
    max_unread_bytes: int = _count(
        64 * 1024 * 1024,
        "bytes",
        1,
        "The memory for answers over 16 KiB that their clients have not read yet, all together. More must wait; meanwhile, a "
        "client that takes none of its answer for 10 s is disconnected.",
    )
    output_root: Path | None = setting(
        None,
        FOLDER,
        "The folder below which a request's `output_dir` must lie.",
        rule=_PLAIN_PATH,
        default_text="no request may name an `output_dir`",
    )
    output_mode: int = setting(
        0o640,
        OCTAL_NUMBER,
        "The permissions of files below `output_root`. Whoever may read a file may enter its folder. A program can still "
        "restrict its files further.",
        rule=_MODE_RULE,
    )
    output_group: str = setting(
        "",
        STRING_OR_INTEGER,
        "The group, by name or number, of files and folders below `output_root`.",
        default_text="the server's own",
    )
    media_roots: tuple[Path, ...] = setting(
        (),
        NAMED_FOLDERS,
        "Folders below which files may lie that samples refer to: images, sounds and videos that are shown with them. Whoever "
        "may read a job may read any file there that a sample of it names, so name folders of data sets, and none with "
        "anything else. Links below one are followed as long as they stay below it, as those of a Hugging Face cache do. What "
        "lies in the job's own output folder is always shown, but for links.",
        default_text="none",
    )
    inherit_env: tuple[str, ...] = setting(
        INHERITED_VARIABLES,
        NAMES,
        "The environment variables of the server that runs inherit, as globs; all others they don't see. What looks like a "
        "secret (`*TOKEN`, `*_KEY`, `*SECRET*`, `*PASSWORD*` and the like, in any case) is inherited only if it is named "
        "without `*`: better make it one of the secrets. A harness's `env` adds further variables.",
        default_text=", ".join(f"`{name}`" for name in INHERITED_VARIABLES),
    )
    reservation_seconds: float = _seconds(
        600.0,
        "How long smaller jobs may overtake one that needs more GPUs than are free; after that, GPUs are reserved for it.",
    )
    share_half_life_seconds: float = setting(
        24 * 3600.0,
        NUMBER,
        "How long it takes until what an owner has used counts half. The next job is taken from the owner with the least use.",
        unit="seconds",
        rule=POSITIVE,
    )
    preemption_interval_seconds: float = _seconds(
        1800.0, "How long a preemptible job that has given way to another is not made to do so again."
    )
    grace_seconds: float = _seconds(10.0, "The time between SIGTERM and SIGKILL for a run that is being stopped.")
    stop_seconds: float = _seconds(
        10.0,
        "How long a graceful stop waits for calls in progress, besides the drain. Five seconds later it exits by force.",
    )
    drain: bool = setting(
        False,
        BOOLEAN,
        "Whether a graceful stop waits for the runs instead of leaving them to the next server. No run is started meanwhile.",
    )
    drain_seconds: float = _seconds(3600.0, "How long a drain may take; runs that remain are left to the next server.")
    journal_max_events: int = _count(1_000_000, "events", 1, "How many events the journal keeps for watchers that resume.")
    journal_max_age_seconds: float = _seconds(7 * 24 * 3600.0, "How long the journal keeps an event.")
    journal_max_bytes: int = _count(
        1024**3,
        "bytes",
        1,
        "How large the journal may be, looked at every minute. An event is as large as its job was then, and counts so even "
        "where the job is deleted.",
    )
    retention_max_age_seconds: float = _seconds(0.0, "How long a job and its files are kept after its end. 0: forever.")
    retention_max_jobs: int = _count(0, "jobs", 0, "How many finished jobs are kept, the latest first. 0: all.")
    retention_max_bytes: int = _count(
        0,
        "bytes",
        0,
        "The space on the disk that the files of all finished jobs may occupy together, looked at every minute: the jobs that "
        "ended first are deleted until they do. 0: as much as they like.",
    )
    preparation_max_age_seconds: float = _seconds(
        7 * 24 * 3600.0, "How long a prepared model is kept after a job has used it. 0: forever."
    )
    preparation_max_bytes: int = _count(
        0,
        "bytes",
        0,
        "The space on the disk that prepared models may occupy together, looked at every minute: those unused for longest are "
        "removed until they do, but none that a job uses. 0: as much as they like.",
    )
    max_log_bytes: int = _count(
        1024**3,
        "bytes",
        0,
        "The space on the disk that the log of one run may occupy. A run past that is ended, and its job is FAILED with "
        "`LOG_TOO_LARGE`; of that of an engine, only the end is kept. 0: as much as it likes.",
    )
    max_output_bytes: int = _count(
        0,
        "bytes",
        0,
        "The space on the disk that the output folder of one attempt may occupy, measured every few seconds. A run past that "
        "is ended, and its job is FAILED with `OUTPUT_TOO_LARGE`. 0: as much as it likes.",
    )
    max_run_memory_bytes: int = setting(
        0,
        INTEGER,
        "The memory that the processes of one run may have together, without swap. A run past that is ended, and its job is "
        "FAILED with `OUT_OF_MEMORY`. Where cgroups can't limit it, this bounds the address space of each process instead, "
        "which is more than it uses, and a run with GPUs is not limited. `evalrpc doctor` says how it is enforced. 0: as much "
        "as it likes.",
        unit="bytes",
        rule=RUN_MEMORY,
    )
    max_run_processes: int = setting(
        0,
        INTEGER,
        "How many processes and threads one run may have at once; it can't start more. Where cgroups can't limit it, this "
        "bounds all runs of an owner together, with `run_as_uids`, and otherwise nothing. `evalrpc doctor` says how it is "
        "enforced. 0: as many as it likes.",
        unit="processes",
        rule=RUN_PROCESSES,
    )
    cgroups: str = setting(
        "auto",
        STRING,
        "Whether each run gets a cgroup (version 2) below the server's own, which ends it as a whole and proves its end. "
        "`auto`: where the server's account may make some, as with `Delegate=yes` in a unit of systemd. The log and "
        "`evalrpc doctor` say whether it may.",
        rule=one_of("auto", "off"),
    )
    warm_idle_seconds: float = _seconds(
        3600.0, "How long a process that has a harness in memory stays after the last run that was forked from it."
    )
    warm_max_bytes: int = _count(
        4 * 1024**3,
        "bytes",
        0,
        "The memory that all these processes may need together; beyond that, the one that was used least recently ends. 0: no "
        "run is warm.",
    )
    run_as_uids: str = setting(
        "",
        STRING,
        "The accounts of runs, by number, such as `200000-200999`: each owner's runs get one of these, which no other owner "
        "ever gets, and the group of the same number. So they can't read what the server or other owners have. Takes a server "
        "that runs as root, and numbers that nobody else on this machine has.",
        rule=_UIDS_RULE,
        default_text="none: runs have the account of the server",
    )
    run_as_groups: str = setting(
        "",
        STRING,
        "The further groups of these accounts, by name or number, such as `render,video` where these may use the GPUs.",
        default_text="none",
    )
    unknown_tasks: str = setting(
        "warn",
        STRING,
        "How to treat a job with a task that the harness does not list, once the server has the list. A model that it does not "
        "list is warned of in any case.",
        rule=one_of("warn", "refuse"),
    )
    metrics_listen: str = setting(
        "",
        _METRICS_ADDRESS,
        "Where Prometheus finds the metrics, as `GET /metrics` over HTTP. A port alone is one of the loopback interface. "
        "Nobody has to sign in there, and there is no TLS: whoever reaches it sees counts and times, but no job, model, task "
        "or owner. Takes the extra `metrics`.",
        default_text="none: nothing is measured",
    )
    traces: str = setting(
        "off",
        STRING,
        "Whether spans of submissions, waits and attempts are recorded. `otlp`: they are sent by OTLP over HTTP where the "
        "standard variables of OpenTelemetry say (`OTEL_EXPORTER_OTLP_ENDPOINT`), by default to `http://localhost:4318`. Takes "
        "the extra `otel`.",
        rule=one_of("off", "otlp"),
    )
    log_format: str = setting(
        "text", STRING, "The log on standard error: `text` for people or `json` for machines.", rule=one_of("text", "json")
    )
    audit_file: Path | None = setting(
        None,
        FILE,
        "The file with the audit: a line of JSON per call that changes something or is refused. Its folder must be there.",
        default_text="`audit.jsonl` in `data_dir`",
    )
    audit_max_bytes: int = _count(
        64 * 1024 * 1024, "bytes", 1, "How large the audit's file may become; then it is renamed, and a new one begun."
    )
    audit_max_files: int = _count(
        16, "files", 2, "How many files of the audit are kept, with those that were renamed: `FILE.1` is the newest of these."
    )
    harnesses: Mapping[str, HarnessSettings] = field(default_factory=lambda: {LMMS_EVAL: HarnessSettings(LMMS_EVAL, LMMS_EVAL)})
    """The harnesses by name. Default: `lmms-eval` in the server's own environment."""
    preparations: Mapping[str, PreparationSettings] = field(default_factory=dict)
    """The preparations of models by name."""
    engines: Mapping[str, EngineSettings] = field(default_factory=dict)
    """The engines by name."""
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)
    """The endpoints by name."""
    executors: Mapping[str, ExecutorSettings] = field(default_factory=dict)
    """The clusters by name."""
    suites: Mapping[str, SuiteSettings] = field(default_factory=dict)
    """The suites by name."""
    client_certificates: Mapping[str, ClientCertificate] = field(default_factory=dict)
    """Who the bearers of client certificates are, by a name in the certificate."""
    oidc: OidcSettings | None = None
    """The identity provider whose tokens are accepted. None: there is none."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The weights of owners. Default: 1 for each."""
    quotas: Mapping[str, QuotaSettings] = field(default_factory=dict)
    """The quotas of owners; `default` has those of all others. What a table leaves out is filled in from that."""

    secrets: Mapping[str, SecretSettings] = field(default_factory=dict)
    """The secrets by name."""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name, declared in SETTINGS.items():
            declared.check(getattr(self, name))
        for suite in self.suites.values():
            _require_known_harnesses(suite, self.harnesses)
        _require_known_executors("default_executor", (self.default_executor,), self.executors)
        for harness in self.harnesses.values():
            _require_known_executors(f"harnesses.{harness.name}.executors", harness.executors, self.executors)

    @property
    def model_servers(self) -> dict[str, ModelServer]:
        """The engines and the endpoints by name."""
        return {**self.engines, **self.endpoints}


SETTINGS: Final = settings_of(Settings)
"""The declaration of each setting but those that are tables of the config file only."""


def _require_known_harnesses(suite: SuiteSettings, harnesses: Mapping[str, HarnessSettings]) -> None:
    for index, entry in enumerate(suite.entries):
        if entry.harness not in harnesses:
            raise ConfigurationError(
                f"setting suites.{suite.name}.entries[{index}].harness: there is no harness {entry.harness!r}; configured are: "
                f"{', '.join(sorted(harnesses))}"
            )


def _require_known_executors(setting_name: str, named: Sequence[str], executors: Mapping[str, ExecutorSettings]) -> None:
    known = (LOCAL_EXECUTOR, *sorted(executors))
    for name in named:
        if name not in known:
            raise ConfigurationError(
                f"setting {setting_name}: there is no executor {name!r}; configured are: {', '.join(known)}"
            )


def parse_uids(run_as_uids: str) -> range:
    """Return the numbers of FIRST-LAST; none for an empty text. Raises ConfigurationError."""
    SETTINGS["run_as_uids"].check(run_as_uids)
    first, _, last = run_as_uids.partition("-")
    return range(int(first), int(last) + 1) if run_as_uids else range(0)
