"""Sends each job to a URL, signed as the specification of Standard Webhooks says, and again until it is taken."""

import base64
import hashlib
import hmac
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, Final

from google.protobuf import json_format

from evalrpc.errors import ConfigurationError, UnavailableError
from evalrpc.exporting.state import ExportState
from evalrpc.v1.jobs_pb2 import JobInfo, JobStatus

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how one begins
_MIN_KEY_BYTES: Final = 24
_TIMEOUT_SECONDS: Final = 30.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 300.0
_MAX_ASKED_SECONDS: Final = 3600.0
_GONE: Final = 410


class ReceiverUnavailableError(UnavailableError):
    """The receiver of webhooks, not the server of evalrpc, does not take a message."""


class WebhookTarget:
    """POSTs jobs, one after the other. `secrets`: each signs, so that a receiver may change from one to the next."""

    part_count = 0

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        give_up_seconds: float | None = None,
        note: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        """Raises ConfigurationError for a URL or a secret that is none."""
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{url} is no URL with http or https")
        self._url = url
        self._keys = [_key(secret) for secret in secrets]
        self._give_up_seconds = give_up_seconds
        self._note = note
        self._pause = pause
        self._timeout_seconds = timeout_seconds
        self._opener = urllib.request.build_opener(_NoRedirects)

    def resume(self, state: ExportState | None) -> None:
        """Do nothing: the receiver knows a message by its id."""

    def put(self, job: JobInfo, revision: int) -> bool:
        """Send a job, and return when it was taken. Raises ReceiverUnavailableError when that is given up, ConfigurationError
        if the receiver says that it is gone for good."""
        status = JobStatus.Name(job.status).removeprefix("JOB_STATUS_").lower()
        data = {"revision": revision, "job": json_format.MessageToDict(job, preserving_proto_field_name=True)}
        message = {"type": f"job.{status}", "timestamp": job.completed_at.ToJsonString(), "data": data}
        self._deliver(f"{job.job_id}_{revision}", json.dumps(message).encode())
        return True

    def flush(self) -> None:
        """Do nothing: what was put was taken."""

    def _deliver(self, message_id: str, body: bytes) -> None:
        begun, pause_seconds = time.monotonic(), _FIRST_PAUSE_SECONDS
        while (problem := self._try(message_id, body)) is not None:
            if self._give_up_seconds is not None and time.monotonic() - begun >= self._give_up_seconds:
                raise ReceiverUnavailableError(
                    f"the receiver at {self._url} does not take message {message_id}: {problem.text}"
                )
            wait_seconds = max(random.uniform(0.5, 1.0) * pause_seconds, problem.asked_seconds)  # noqa: S311 - no secret
            self._note(f"message {message_id} is sent again in {wait_seconds:.0f} s: {problem.text}")
            self._pause(wait_seconds)
            pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)

    def _try(self, message_id: str, body: bytes) -> "_Problem | None":
        """Send a message once. Return why it was not taken; None if it was."""
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "evalrpc",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self._keys:
            headers["webhook-signature"] = signatures(self._keys, message_id, timestamp, body)
        request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310 - checked above
        try:
            with self._opener.open(request, timeout=self._timeout_seconds):
                return None
        except urllib.error.HTTPError as error:
            with error:
                if error.code == _GONE:
                    raise ConfigurationError(f"the receiver at {self._url} wants no more messages (410)") from error
                return _Problem(f"it answers {error.code}", _asked_seconds(error.headers))
        except (OSError, HTTPException) as error:
            return _Problem(str(getattr(error, "reason", "") or error) or type(error).__name__)


class _Problem:
    """Why a message was not taken."""

    def __init__(self, text: str, asked_seconds: float = 0.0) -> None:
        self.text = text
        self.asked_seconds = asked_seconds
        """How long the receiver asks to wait."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for a refusal: a signed message goes where it was meant to."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


def signatures(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one signature per key."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except ValueError as error:
        raise ConfigurationError("a webhook secret is `whsec_` and base64") from error
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigurationError(f"a webhook secret has at least {_MIN_KEY_BYTES} bytes, and so 32 characters of base64")
    return key


def _asked_seconds(headers: Any) -> float:
    text = headers.get("retry-after", "")
    return min(float(text), _MAX_ASKED_SECONDS) if text.isdecimal() else 0.0
