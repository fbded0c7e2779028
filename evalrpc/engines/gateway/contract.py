"""What the server and the gateway say to each other: these messages, as JSON, a line each.

A request is `{"call": NAME, "arguments": {...}}`, and its reply `{"instance": ID, "result": ...}`, or `{"instance": ID,
"error": TEXT}` where the call is wrong. Replies come in the order of the requests. The calls:

    status      {}                              -> Status
    declare     {engines: [...], routes: [...]} -> Status. All that there is from now on; what is not named ends.
    put_engine  {engine: Engine}                -> null. Adds an engine, or replaces what is said of it. Requests go on.
    put_route   {route: Route}                  -> null. Adds a route to an engine that is there, or replaces what is said of
                                                   it. Its counters go on, unless its attempt or its recording changes.
    remove_engine {name: str}                   -> null. Routes to it have to be removed first.
    remove_route  {token: str, finish_seconds}  -> Counters, or null without such a route
    counters      {token: str}                  -> Counters, or null without such a route
    in_flight     {name: str, url: str}         -> int: the requests that an engine's replica is answering. One that is not
                                                   named any more goes on with those that it has.

Every call may be repeated. `instance` changes when the gateway was started again: then it knows nothing until `declare`, and
holds requests with tokens that it does not know. A gateway may be older or newer than the server: fields that one side does not
know are ignored, and absent ones have their defaults. PROTOCOL rises when that is not enough.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

PROTOCOL: Final = 1
"""The version of these messages."""

CONTROL_SOCKET: Final = "control"
"""The name of the socket, in the gateway's folder."""

HOLD_SECONDS: Final = 240.0
"""How long a request is held, by default, while no engine can answer it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Replica:
    """One process, or one address, that answers."""

    url: str
    """What `/v1` stands for, such as `http://127.0.0.1:8000/v1`. With `https`, certificates and proxies are the machine's."""
    max_in_flight: int = 64
    """How many requests it gets at once."""


@dataclass(frozen=True)
class Engine:
    """A served model, or an endpoint of others."""

    name: str
    replicas: tuple[Replica, ...] = ()
    """Those that are up. While there is none, requests are held."""
    model: str = ""
    """The name that it knows the model by, which replaces that in each request. Empty: requests stay as they are."""
    key: str = field(default="", repr=False)
    """A secret for its API. In the gateway's memory only."""
    key_header: str = "authorization"
    """The header that carries it: in `authorization` as a bearer token, in any other, such as `x-api-key`, as it is."""
    answer_seconds: float = 3600.0
    """How long it may be silent on a request before that counts as a failure."""


@dataclass(frozen=True)
class Lender:
    """A recording of another job."""

    recording: str
    """The file. One that is not there lends nothing."""
    key_prefix: str = ""
    """That of the route which recorded it: the same weights may have had another one."""


@dataclass(frozen=True)
class Route:
    """What one token may ask: an engine, for one attempt of a job."""

    token: str = field(repr=False)
    engine: str
    """The name of the engine."""
    job_id: str = ""
    """For the log."""
    attempt: str = ""
    """Names the attempt: within one, the second request with the same body gets another answer than the first."""
    key_prefix: str = ""
    """What answers depend on beside the request: the weights and the engine. Recorded answers of others are not used."""
    recording: str = ""
    """The file with the answers of the job, made if it is missing. Empty: nothing is recorded."""
    max_recording_bytes: int = 1 << 30
    """Beyond this size nothing more is recorded."""
    lenders: tuple[Lender, ...] = ()
    """Recordings of other jobs, which are read only, and only for requests that are greedy or have a seed."""
    hold_seconds: float = HOLD_SECONDS
    """How long a request is held while no engine can answer it."""
    max_tries: int = 4
    """How often a request is sent to engines that fail on it (5xx, a broken answer). 429 and 503 don't count as tries."""


@dataclass
class PartCounters:
    """What has become of the questions of a part of a route: those asked below `/t/NAME`. As in Counters."""

    name: str
    answered: int = 0
    replayed: int = 0
    truncated: int = 0
    empty: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Counters:
    """What has become of the requests of a route: questions to the model, not what is asked beside them."""

    answered: int = 0
    """Answers given to the harness, each counted once, from the recording or from an engine: the `done` of its progress."""
    replayed: int = 0
    """Those of them from a recording."""
    truncated: int = 0
    """Those of them that ended at the limit of tokens. Log-likelihood requests always do, and are not counted."""
    empty: int = 0
    """Those of them without any text."""
    failed: int = 0
    """Questions that were answered with an error, and not answered well since."""
    retried: int = 0
    """How often the gateway asked an engine again."""
    unavailable: int = 0
    """Requests that were given up, since no engine could answer within `hold_seconds`, or one that broke off has ended."""
    gateway_failures: int = 0
    """Requests that failed through a fault of the gateway itself."""
    unrecorded: int = 0
    """Answers that could not be recorded. They were given all the same."""
    prompt_tokens: int = 0
    """Of all answers given, replayed ones too, as the engine counted."""
    completion_tokens: int = 0
    """Of all answers given, replayed ones too, as the engine counted."""
    in_flight: int = 0
    """Requests that an engine is answering now."""
    held: int = 0
    """Requests that wait for an engine, or for room in it, now."""
    last_status: int = 0
    """The HTTP status that the harness got last; 0: none yet."""
    recording_error: str = ""
    """Why answers can't be recorded; empty: they can."""
    parts: tuple[PartCounters, ...] = ()
    """Of those that were asked; none, where the gateway was started again meanwhile, since it does not know all then."""


@dataclass(frozen=True)
class RouteStatus:
    """A route, as `status` lists it."""

    route: Route
    counters: Counters


@dataclass(frozen=True)
class Status:
    """What the gateway is and has."""

    instance: str
    """Changes with each start of the gateway."""
    protocol: int
    pid: int
    address: str
    """Where it listens, as HOST:PORT."""
    declared: bool
    """Whether it has been told all routes since it was started."""
    engines: tuple[Engine, ...] = ()
    routes: tuple[RouteStatus, ...] = ()
    connections: int = 0
    """Connections of harnesses that are open."""
    bytes_in_flight: int = 0
    """Bytes of requests and answers in memory."""


def to_json(message: Any) -> Any:
    """Return a message as what `json.dumps` takes."""
    return dataclasses.asdict(message)


def from_json(kind: type[T], value: Any, place: str = "") -> T:
    """Return the message of a class that JSON stands for. Fields that the class does not have are ignored.

    Raises ValueError if a field has the wrong type, or one without a default is absent.
    """
    result: T = _convert(kind, value, place or kind.__name__)
    return result


def connect_path(folder_descriptor: int) -> str:
    """Return the path of the control socket in an open folder. It is short, as addresses of sockets have to be."""
    return str(Path(f"/proc/self/fd/{folder_descriptor}") / CONTROL_SOCKET)


def _convert(kind: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _message(kind, value, place)
    if isinstance(kind, types.GenericAlias):  # tuple[ITEM, ...] is the only one there is
        if not isinstance(value, list):
            raise ValueError(f"{place} is no list")  # noqa: TRY004 - it is a wrong message
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, each, f"{place}[{number}]") for number, each in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{place} is no {kind.__name__}")
    return value


def _message(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object")  # noqa: TRY004 - it is a wrong message
    given = {}
    for each in dataclasses.fields(kind):
        if each.name in value:
            given[each.name] = _convert(each.type, value[each.name], f"{place}.{each.name}")
        elif each.default is dataclasses.MISSING:
            raise ValueError(f"{place}.{each.name} is missing")
    return kind(**given)
