"""What the fuzz sends: random messages, mutated ones and plain bytes, for every method that the descriptors have."""

import random
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

from evalrpc.protobuf.wire_format import message_field
from evalrpc.v1.engines_pb2 import ListEnginesResponse
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.suites_pb2 import SuiteRun

BOUNDARIES: Final = (0, 1, -1, 2, 63, 64, 1000, 1001, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63))
NUMBERS: Final = (0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), -1.0, 2**53 + 1.0)
SURROGATE, SURROGATE_BYTES = "\ue000", b"\xed\xa0\x80"
"""A character, and bytes in its place that no UTF-8 may have: half of a surrogate pair."""
TEXTS: Final = (
    *("", " ", "\0", "a\0b", "\n", "\x1b[31m", "\u202eabc", "\ufeff", "e\u0301", "\U0001f600", SURROGATE, f"x{SURROGATE}y"),
    *("*", "?", "%", "_", "[", "\\", "'", '"', "; DROP TABLE jobs", "../../etc/passwd", "/", ".", "-x", "{model}", "${HOME}"),
    *("x" * 255, "x" * 256, "y" * 10_000, "\u202e" * 3000, "null", "NaN", "0", "-1", "1e999", "true", "lmms-eval"),
    *("00000000-0000-0000-0000-000000000000", "a=b,c!=d", "run in (", "!", "a=" * 2000, '"', "step in (1,2),!x,y"),
)
ESSENTIAL: Final = frozenset(
    (
        "job_id",
        "baseline_job_id",
        "candidate_job_id",
        "candidate_job_ids",
        "request",
        "model",
        "tasks",
        "task",
        "harness",
        "name",
        "labels",
        "suite",
        "suite_run_id",
        "engine",
        "engine_id",
    )
)
"""Without these most calls are refused early."""
OF_SUITES: Final = (
    *(
        "harness",
        "tasks",
        "num_fewshot",
        "limit",
        "gen_kwargs",
        "task_args",
        "log_samples",
        "predict_only",
        "tasks_separately",
        "output_dir",
    ),
)
OF_ENGINES: Final = ("model", "device", "batch_size", "gpu_mode", "preparation", "num_gpus", "model_args")
"""What a request for a suite, and one for a served model, does not say."""
MAX_REMEMBERED: Final = 200
_MAX_DEPTH: Final = 4

_T = TypeVar("_T")


class Dice(random.Random):
    """Chooses three times as fast as its base, and not as evenly, which only very long sequences would notice."""

    def choice(self, seq: Sequence[_T]) -> _T:  # type: ignore[override]
        return seq[int(self.random() * len(seq))]


@dataclass(frozen=True)
class Target:
    """A method, and the name that the table of results has for it."""

    method: MethodDescriptor
    service: str

    @property
    def may_stay_quiet(self) -> bool:
        """Whether a good call may have no answer for long: it is a stream that the client does not lead."""
        return bool(self.method.server_streaming and not self.method.client_streaming)

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.method.name}"

    @property
    def name(self) -> str:
        return self.path.removeprefix("/evalrpc.v1.EvaluationService/")


@dataclass
class Known:
    """What makes a message good. Grows by what is answered."""

    values: Mapping[str, Sequence[Any]]
    """For each field by its name, values that fit the jobs there are. The name may have that of the message before it, as in
    `Duration.seconds`, for values that fit only there."""
    expendable: deque[str] = field(default_factory=partial(deque, maxlen=MAX_REMEMBERED))
    """Jobs that may be deleted and cancelled."""
    tokens: deque[str] = field(default_factory=partial(deque, maxlen=MAX_REMEMBERED))
    """Page tokens, which fit no request but one."""
    next_pages: dict[Target, deque[bytes]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=MAX_REMEMBERED)))
    """The requests for the pages that follow those answered."""
    learned: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=MAX_REMEMBERED)))
    """For a field by its name, what answers have said."""

    def fitting(self, each: FieldDescriptor) -> Sequence[Any]:
        return self.values.get(name_in_message(each)) or self.values.get(each.name) or self.learned.get(each.name) or ()

    def learn(self, target: Target, request: bytes, answer: bytes) -> None:
        """Remember what was submitted, the engines there are, and the request for the next page of an answer."""
        if target.name == "SubmitJob":
            job = JobInfo.FromString(answer)
            self.expendable.extend([job.job_id] if job.job_id else [])
        elif target.name == "SubmitSuite":
            run = SuiteRun.FromString(answer)
            self.expendable.extend(job.job_id for job in run.jobs if job.job_id)
            self.learned["live_suite_run_id"].extend([run.suite_run_id] if run.suite_run_id else [])
        elif target.name == "ListEngines":
            self.learned["engine_id"].extend(engine.engine_id for engine in ListEnginesResponse.FromString(answer).engines)
        elif "next_page_token" in target.method.output_type.fields_by_name:
            page: Any = GetMessageClass(target.method.output_type).FromString(answer)
            if page.next_page_token:
                following: Any = GetMessageClass(target.method.input_type).FromString(request)
                following.page_token = page.next_page_token
                self.tokens.append(page.next_page_token)
                self.next_pages[target].append(following.SerializeToString())


class Inputs:
    """An endless, random sequence of inputs: a method, and the messages to send to it."""

    def __init__(self, targets: list[Target], known: Known, seed: int) -> None:
        self.targets = targets
        self.known = known
        self.dice = Dice(seed)

    def __iter__(self) -> Iterator[tuple[Target, list[bytes]]]:
        while True:
            target = self.dice.choice(self.targets)
            count = self.dice.choice((0, 1, 1, 2, 5)) if target.method.client_streaming else 1
            yield target, [self._input(target) for _ in range(count)]

    def _input(self, target: Target) -> bytes:
        match self.dice.randrange(10):
            case 0:
                return self.dice.randbytes(self.dice.choice((1, 2, 5, 20, 100, 1000)))
            case 1 if pages := self.known.next_pages.get(target):
                page = self.dice.choice(pages)
                return page if self.dice.random() < 0.5 else self._mutated(page)
            case 1 | 2 | 3:
                return self._mutated(self._message(target))
            case _:
                return self._message(target)

    def _message(self, target: Target) -> bytes:
        builder = Builder(self.dice, self.known, oddness=self.dice.choice((0.0, 0.0, 0.02, 0.2, 1.0)))
        message = GetMessageClass(target.method.input_type)()
        builder.fill(message)
        self._spare_the_jobs(target, message)
        data = message.SerializeToString()
        return data.replace(SURROGATE.encode(), SURROGATE_BYTES) if self.dice.random() < 0.5 else data

    def _spare_the_jobs(self, target: Target, message: Any) -> None:
        """Keep what good messages need, and the number of runs small: most submissions are checked only."""
        if target.name in ("DeleteJob", "CancelJob") and message.job_id.lower() in self.known.values["job_id"]:
            message.job_id = self.dice.choice(self.known.expendable or ("",))
        if target.name == "CancelSuiteRun" and self.dice.random() < 0.5:
            message.suite_run_id = self.dice.choice(self.known.learned["live_suite_run_id"] or ("",))
        if target.name in ("SubmitJob", "SubmitSuite"):
            message.validate_only = len(self.known.expendable) == MAX_REMEMBERED or self.dice.random() < 0.9
            self._clear(message.request, OF_SUITES if target.name == "SubmitSuite" else ())
            self._clear(message.request, OF_ENGINES if message.request.HasField("served_model") else ())

    def _clear(self, request: Message, names: Sequence[str]) -> None:
        """Leave out, mostly, what a good request must not say."""
        if self.dice.random() < 0.8:
            for name in names:
                request.ClearField(name)

    def _mutated(self, data: bytes) -> bytes:
        for _ in range(self.dice.choice((1, 1, 2, 4))):
            data = self.dice.choice(MUTATIONS)(self.dice, data)
        return data


class Builder:
    """Fills one message. `oddness` is the share of its fields that get a value made to do harm instead of a fitting one."""

    def __init__(self, dice: random.Random, known: Known, oddness: float) -> None:
        self._dice = dice
        self._known = known
        self._oddness = oddness
        self._set_share = dice.choice((0.1, 0.4, 0.9))

    def fill(self, message: Message, depth: int = 0) -> None:
        if isinstance(message, Struct):
            return self._fill_struct(message)
        for each in self._fields_of(message.DESCRIPTOR):
            share = 0.95 if each.name in ESSENTIAL else self._set_share
            if self._dice.random() < share and (each.message_type is None or depth < _MAX_DEPTH):
                self._set(message, each, depth)
        return None

    def _fields_of(self, kind: Any) -> list[FieldDescriptor]:
        """Return the fields, of each `oneof` only one."""
        return [
            *(each for each in kind.fields if each.containing_oneof is None),
            *(self._dice.choice(oneof.fields) for oneof in kind.oneofs),
        ]

    def _set(self, message: Any, each: FieldDescriptor, depth: int) -> None:
        if is_map(each):
            self._fill_map(getattr(message, each.name), each.message_type, depth)
        elif each.is_repeated:
            self._fill_list(getattr(message, each.name), each, depth)
        elif each.message_type is not None:
            self.fill(getattr(message, each.name), depth + 1)
            getattr(message, each.name).SetInParent()
        else:
            setattr(message, each.name, self._scalar(each))

    def _fill_list(self, values: Any, each: FieldDescriptor, depth: int) -> None:
        count = self._count()
        if each.message_type is not None:
            for _ in range(min(count, 8)):
                self.fill(values.add(), depth + 1)
            return
        values.extend(self._scalar(each) for _ in range(count))
        if values and self._is_odd():
            values.extend([values[0]] * count)

    def _fill_map(self, values: Any, entry: Any, depth: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        if value.message_type is not None:
            for _ in range(min(self._count(), 8)):
                self.fill(values[self._scalar(key)], depth + 1)
            return
        for _ in range(self._count()):
            values[self._scalar(key)] = self._scalar(value)

    def _fill_struct(self, message: Struct) -> None:
        """Fill in numbers, texts and a chain of lists, up to a depth just below that which no parser takes."""
        for key in self._dice.sample(TEXTS, self._count() % len(TEXTS)) if self._is_odd() else ("pretrained", "seed"):
            value: Any = message.fields[key]
            for _ in range(self._dice.choice((0, 1, 7, 16, 40)) if self._is_odd() else 0):
                value = value.list_value.values.add()
            match self._dice.randrange(4):
                case 0:
                    value.number_value = self._dice.choice(NUMBERS) if self._is_odd() else 1.0
                case 1:
                    value.string_value = self._text() if self._is_odd() else "gpt2"
                case 2:
                    value.struct_value.fields[self._text() if self._is_odd() else "inner"].null_value = 0
                case _ if self._is_odd():
                    value.SetInParent()  # without a kind
                case _:
                    value.bool_value = True

    def _scalar(self, each: FieldDescriptor) -> Any:
        fitting = self._known.fitting(each)
        if fitting and not self._is_odd():
            return self._dice.choice(fitting)
        match each.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return self._odd_text(fitting) if each.type == FieldDescriptor.TYPE_STRING else self._dice.randbytes(9)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._dice.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM if each.enum_type is not None and not self._is_odd():
                return self._dice.choice(each.enum_type.values).number
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._dice.choice(NUMBERS) if self._is_odd() else self._dice.choice((0.0, 0.05, 1.0))
            case kind:
                return as_integer(self._dice.choice(BOUNDARIES) if self._is_odd() else self._dice.randrange(5), kind)

    def _odd_text(self, fitting: Sequence[Any]) -> str:
        """Return a text that fits nothing, or one that fits almost."""
        if not fitting or self._dice.random() < 0.5:
            return self._text() if self._is_odd() else ""
        text = str(self._dice.choice(fitting))
        place = self._dice.randrange(len(text) + 1)
        return self._dice.choice((text[:place], text[:place] + self._text() + text[place + 1 :], text.upper(), text * 2))

    def _text(self) -> str:
        return self._dice.choice(self._known.tokens if self._known.tokens and self._dice.random() < 0.1 else TEXTS)

    def _count(self) -> int:
        return self._dice.choice((0, 1, 2, 70, 300)) if self._is_odd() else self._dice.choice((0, 1, 1, 2))

    def _is_odd(self) -> bool:
        return self._dice.random() < self._oddness


@cache
def name_in_message(each: FieldDescriptor) -> str:
    """Return the name of a field with that of its message, as `Duration.seconds`."""
    return ".".join(each.full_name.split(".")[-2:])


@cache
def is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and each.message_type.GetOptions().map_entry


def as_integer(number: int, kind: int) -> int:
    """Return the number as one that a field of this type holds."""
    form = {FieldDescriptor.CPPTYPE_INT64: "q", FieldDescriptor.CPPTYPE_UINT64: "Q", FieldDescriptor.CPPTYPE_UINT32: "I"}.get(
        kind, "i"
    )
    size_bytes = struct.calcsize(form)
    bits = number & (256**size_bytes - 1)
    return int.from_bytes(bits.to_bytes(size_bytes, "little"), "little", signed=form.islower())


# Mutations of a serialised message. Each takes the dice and the bytes, which may be empty.


def flip_bits(dice: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data or b"\0")
    for _ in range(dice.choice((1, 1, 4, 16))):
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def truncate(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def insert_bytes(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.randbytes(dice.choice((1, 2, 8, 64))) + data[place:]


def repeat_part(dice: random.Random, data: bytes) -> bytes:
    start, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:]


def change_wire_type(dice: random.Random, data: bytes) -> bytes:
    """Give the first field another wire type, the two that do not exist included."""
    return bytes([data[0] & 0xF8 | dice.randrange(8)]) + data[1:] if data else b"\x0e"


def claim_huge_length(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.choice((b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\x80" * 11)) + data[place + 1 :]


def add_unknown_field(dice: random.Random, data: bytes) -> bytes:
    return data + message_field(dice.choice((100, 19_000, 2**29 - 1)), dice.randbytes(20))


def nest_deeply(dice: random.Random, data: bytes) -> bytes:
    """Wrap it into itself, below and above the depth at which parsers give up."""
    number = dice.randrange(1, 16)
    for _ in range(dice.choice((1, 50, 99, 101, 500))):
        data = message_field(number, data)
    return data


def open_groups(dice: random.Random, data: bytes) -> bytes:
    """Add groups that are never closed, closed wrongly, or closed."""
    return data + b"\x0b" * dice.choice((1, 99, 101, 2000)) + dice.choice((b"", b"\x0c", b"\x14"))


def break_text(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.choice((b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80", SURROGATE_BYTES)) + data[place + 1 :]


MUTATIONS: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    flip_bits,
    truncate,
    insert_bytes,
    repeat_part,
    change_wire_type,
    claim_huge_length,
    add_unknown_field,
    nest_deeply,
    open_groups,
    break_text,
)
