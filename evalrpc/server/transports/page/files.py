"""Serves the page and its modules, which are part of the package, to browsers.

Every view is a URL, at which the same page is served: its modules then show what the URL says. The policy in its headers lets
it load nothing, and send nothing, but from and to this server; nothing that is put into it can run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from evalrpc.server.transports.http.application import Endpoint
from evalrpc.server.transports.http.request import HttpRequest

FOLDER: Final = "/web/"
INDEX: Final = "index.html"
VIEWS: Final = ("/", "/jobs", "/jobs/", "/compare", "/suites", "/suites/", "/history", "/submit", "/signin")
"""The paths of views; one that ends with `/` stands for all below it."""

POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TYPES: Final[Mapping[str, bytes]] = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}


class _File(NamedTuple):
    headers: tuple[tuple[bytes, bytes], ...]
    etag: bytes
    content: bytes


class PageFiles:
    """The page with all its modules, in memory."""

    def __init__(self) -> None:
        self._files = dict(_read(files("evalrpc.server.web"), FOLDER))
        self._index = self._files[FOLDER + INDEX]

    def find(self, request: HttpRequest) -> Endpoint | None:
        """Return what answers a request, if it is for the page."""
        if request.method not in ("GET", "HEAD"):
            return None
        file = self._files.get(request.path)
        if file is None and (request.path in VIEWS or _is_below_a_view(request.path)):
            file = self._index
        return (lambda request: _send(request, file)) if file is not None else None

    def find_for_browsers(self, request: HttpRequest) -> Endpoint | None:
        """Do so only for a browser: at an address where other programs find something else at the paths of views."""
        is_shown = "text/html" in request.headers.get("accept", "") or request.path.startswith(FOLDER)
        return self.find(request) if is_shown else None


def _is_below_a_view(path: str) -> bool:
    return any(path.startswith(view) for view in VIEWS if view.endswith("/") and view != "/")


async def _send(request: HttpRequest, file: _File) -> None:
    known = request.headers.get("if-none-match", "").encode().split(b",")
    if any(etag.strip().removeprefix(b"W/") == file.etag for etag in known):  # a proxy that compresses makes it a weak one
        await request.respond(304, file.headers)
    else:
        await request.respond(200, file.headers, file.content)


def _read(folder: Traversable, path: str) -> Iterator[tuple[str, _File]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _read(entry, f"{path}{entry.name}/")
        elif kind := _TYPES.get(entry.name.rpartition(".")[2]):
            content = entry.read_bytes()
            etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
            headers = (
                (b"content-type", kind),
                (b"content-security-policy", POLICY),
                (b"cache-control", b"no-cache"),
                (b"etag", etag),
            )
            yield path + entry.name, _File(headers, etag, content)
