"""What a browser gets of the page, and how it signs in, without a browser."""

import hashlib
import json
import re
from collections.abc import Callable
from importlib.resources import files

import pytest
from callers import add_token, revoke_token
from http_calls import HttpApi, http_of, path_of
from identity_provider import AUDIENCE, IdentityProvider
from serving import NOWHERE, ServerHere, Site
from waiting import eventually

from evalrpc.server.transports.http.request import SESSION_COOKIE

Serve = Callable[..., ServerHere]
VENDOR = files("evalrpc.server.web") / "vendor"
SUMS = re.findall(r"^\| `(\S+)` \|.*\| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def http(serve: Serve) -> HttpApi:
    return http_of(serve(http_listen="127.0.0.1:0"))


def session_of(http: HttpApi, token: str) -> str:
    """Sign in as a browser does, and return the cookie that it sends from then on."""
    answer = http.request("POST", "/v1/session", json.dumps({"token": token}).encode(), {"content-type": "application/json"})
    assert answer.status == 204, answer.body
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"}.issubset(attributes)
    return cookie


def caller(http: HttpApi, cookie: str) -> tuple[int, str]:
    answer = http.request("GET", path_of("GetCaller"), headers={"cookie": cookie})
    return answer.status, answer.json.get("owner", "")


@pytest.mark.parametrize("path", ["/", "/jobs", f"/jobs/{NOWHERE}/samples", "/compare?baseline=x", "/history", "/submit"])
def test_every_view_is_the_same_page_which_may_load_nothing_from_elsewhere(http: HttpApi, path: str) -> None:
    answer = http.request("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"<script(?![^>]* src=\"/web/)|<style| on\w+=|https?://", answer.body)


def test_modules_are_not_sent_again_as_long_as_they_stay(http: HttpApi) -> None:
    first = http.request("GET", "/web/app.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    etag = first.headers["etag"]
    for known in (etag, f'"other", {etag}', f"W/{etag}"):  # the last one from a proxy that has compressed it
        again = http.request("GET", "/web/app.js", headers={"if-none-match": known})
        assert (again.status, again.body) == (304, b"")
    assert http.request("GET", "/web/app.js", headers={"if-none-match": '"other"'}).status == 200


def test_a_head_is_answered_as_a_get_without_its_body(http: HttpApi) -> None:
    for path in ("/", "/web/app.js"):
        whole, head = http.request("GET", path), http.request("HEAD", path)
        assert (head.status, head.headers, head.body) == (200, whole.headers, b"")


@pytest.mark.parametrize("path", ["/web/", "/web/none.js", "/web/../app.py", "/web/__init__.py", "/web/vendor/LICENSE.htm"])
def test_nothing_else_of_the_package_is_served(http: HttpApi, path: str) -> None:
    assert http.request("GET", path).status == 404


def test_there_is_no_page_where_the_operator_wants_none(serve: Serve) -> None:
    http = http_of(serve(http_listen="127.0.0.1:0", page=False))
    assert http.request("GET", "/").status == 404
    assert http.request("POST", "/v1/session", b"{}").status == 404


@pytest.mark.parametrize(("name", "checksum"), SUMS)
def test_vendored_modules_are_those_that_the_list_says(name: str, checksum: str) -> None:
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == checksum


def test_every_vendored_file_is_in_the_list_or_a_licence() -> None:
    names = {entry.name for entry in VENDOR.iterdir() if not entry.name.startswith("LICENSE.")}
    assert names == {name for name, _ in SUMS} | {"README.md"}


def test_a_browser_signs_in_with_a_token_and_stays_so_until_that_is_revoked(serve: Serve, site: Site) -> None:
    http = http_of(serve(http_listen="127.0.0.1:0", auth="required"))
    token = add_token(site.folder / "data", "alice")
    assert caller(http, "")[0] == 401
    eventually(lambda: caller(http, f"{SESSION_COOKIE}={token}") == (200, "alice"), "for the server to know the token")
    cookie = session_of(http, token)
    assert caller(http, cookie) == (200, "alice")
    assert caller(http, f"other=1; {cookie}") == (200, "alice")
    assert http.get("/v1/session", cookie=cookie).json == {"hasSession": True}
    assert http.get("/v1/session").json == {"hasSession": False}
    revoke_token(site.folder / "data", token)
    eventually(lambda: caller(http, cookie)[0] == 401, "for the session to end with its token")


def test_a_browser_signs_out(http: HttpApi) -> None:
    answer = http.request("DELETE", "/v1/session")
    assert (answer.status, answer.headers["set-cookie"].split("; ")[:2]) == (204, ["evalrpc_session=", "Max-Age=0"])


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"token": "evr_wrong"}', 401), (b'{"token": "a; b"}', 401), (b'{"token": 7}', 400), (b"{", 400), (b"[]", 400)],
)
def test_what_is_no_token_gets_no_session(http: HttpApi, body: bytes, status: int) -> None:
    answer = http.request("POST", "/v1/session", body, {"content-type": "application/json"})
    assert answer.status == status, answer.body
    assert "set-cookie" not in answer.headers


def test_a_page_of_another_server_can_not_sign_a_browser_in(http: HttpApi, site: Site) -> None:
    body = json.dumps({"token": add_token(site.folder / "data", "mallory")}).encode()
    assert http.request("POST", "/v1/session", body, {"content-type": "text/plain"}).status == 400
    headers = {"content-type": "application/json", "origin": "https://evil.example"}
    assert http.request("POST", "/v1/session", body, headers).status == 403


def test_a_proxy_signs_browsers_in_and_only_the_servers_own_page_may_change_anything(serve: Serve, site: Site) -> None:
    with IdentityProvider() as provider:
        with site.config.open("a") as config:
            config.write(
                f'[oidc]\nissuer = "{provider.issuer}"\naudience = "{AUDIENCE}"\nrole = "submitter"\n'
                '[[http_listen]]\naddress = "127.0.0.1:0"\nauth = "required"\nproxy_token_header = "X-Auth-Jwt"\n'
            )
        http = http_of(serve())
        good, bad = {"x-auth-jwt": provider.token()}, {"x-auth-jwt": provider.token(aud="other")}
        assert http.call("GetCaller").status == 401
        assert http.get(path_of("GetCaller"), **bad).status == 401
        assert http.get(path_of("GetCaller"), **good).json["owner"] == "alice"
        assert http.get("/", **good).status == 200
        assert http.call("ListJobs", **good).status == 403, "no page says that it is from here"
        assert http.call("ListJobs", origin="https://evil.example", **good).status == 403
        assert http.call("ListJobs", origin=http.url, **good).status == 200
        program = {"authorization": f"Bearer {provider.token()}"}
        assert http.call("ListJobs", **program, **good).status == 200
        assert http.call("ListJobs", authorization="Bearer x", origin=http.url, **good).status == 401
        cookie = {"cookie": f"{SESSION_COOKIE}=no-longer-valid"}
        assert http.call("ListJobs", origin=http.url, **cookie, **good).status == 200
        assert http.get("/v1/session", **cookie, **good).json == {"hasSession": False}, "there is nothing to sign out of"
