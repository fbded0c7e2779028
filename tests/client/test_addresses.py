"""Addresses: what is taken, what is refused, and with which words."""

from typing import Any

import pytest

from evalrpc.client import core
from evalrpc.client.addresses import Address, parse_address, proxy_variable


@pytest.mark.parametrize(
    ("text", "target", "local"),
    [
        ("gpu-box:50051", "gpu-box:50051", False),
        ("gpu-box", "gpu-box:50051", False),
        ("eval.example.com.:1", "eval.example.com.:1", False),
        ("10.0.0.7:8443", "10.0.0.7:8443", False),
        ("127.0.0.1:50051", "127.0.0.1:50051", True),
        ("127.8.8.8", "127.8.8.8:50051", True),
        ("0.0.0.0:50051", "0.0.0.0:50051", True),
        ("localhost:1", "localhost:1", True),
        ("LOCALHOST", "LOCALHOST:50051", True),
        ("localhost.example.com", "localhost.example.com:50051", False),
        ("[::1]:50051", "[::1]:50051", True),
        ("[::1]", "[::1]:50051", True),
        ("::1", "[::1]:50051", True),
        ("[2001:db8::7]:9", "[2001:db8::7]:9", False),
        ("dns:///gpu-box:1", "dns:///gpu-box:1", False),
        ("dns:///gpu-box", "dns:///gpu-box:50051", False),
        ("dns:gpu-box:1", "dns:gpu-box:1", False),
        ("dns://8.8.8.8/gpu-box:1", "dns://8.8.8.8/gpu-box:1", False),
        ("dns:///localhost:1", "dns:///localhost:1", True),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", False),
        ("ipv4:10.0.0.1", "ipv4:10.0.0.1:50051", False),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.2:2", "ipv4:127.0.0.1:1,10.0.0.2:2", False),
        ("ipv6:[::1]:1", "ipv6:[::1]:1", True),
        ("ipv6:2001:db8::7", "ipv6:[2001:db8::7]:50051", False),
        ("unix:evalrpc.sock", "unix:evalrpc.sock", True),
        ("unix:///run/evalrpc.sock", "unix:///run/evalrpc.sock", True),
        ("unix-abstract:evalrpc", "unix-abstract:evalrpc", True),
        ("http://gpu-box:1", "gpu-box:1", False),
        ("http://gpu-box:1/", "gpu-box:1", False),
        ("http://gpu-box", "gpu-box:50051", False),
        ("HTTP://127.0.0.1:1", "127.0.0.1:1", True),
        ("http://[::1]:1/", "[::1]:1", True),
    ],
)
def test_an_address_is_what_people_and_grpc_write(text: str, target: str, local: bool) -> None:
    assert parse_address(text) == Address(target, uses_tls=False, is_local=local)


@pytest.mark.parametrize(
    ("text", "target"), [("https://eval.example.com", "eval.example.com:443"), ("https://gpu-box:50051/", "gpu-box:50051")]
)
def test_https_is_tls_at_the_port_of_https(text: str, target: str) -> None:
    assert parse_address(text) == Address(target, uses_tls=True, is_local=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no host"),
        (":50051", "names no host"),
        ("50051", "a port needs a host"),
        (" gpu-box:1", "can't be the name of a host"),
        ("gpu box:1", "can't be the name of a host"),
        ("gpu-box:1\n", "has the port"),
        ("gpu-box\x1b[2J:1", "is not understood"),
        ("-gpu:1", "can't be the name of a host"),
        ("büro:1", "can't be the name of a host"),
        ("a" * 300, "can't be the name of a host"),
        ("gpu-box:", "no number from 1 to 65535"),
        ("gpu-box:0", "no number from 1 to 65535"),
        ("gpu-box:65536", "no number from 1 to 65535"),
        ("gpu-box:http", "no number from 1 to 65535"),
        ("gpu-box:-1", "no number from 1 to 65535"),
        ("gpu-box:1:2", "no number from 1 to 65535"),
        ("gpu-box/path", "can't be the name of a host"),
        ("gpu-box:50051/path", "no number from 1 to 65535"),
        ("999.1.1.1:1", "neither an IPv4 address nor the name of a host"),
        ("1.2.3:1", "neither an IPv4 address nor the name of a host"),
        ("[::1:1", "is not understood"),
        ("[gpu-box]:1", "no IPv6 address in brackets"),
        ("[::1]x:1", "is not understood"),
        ("ftp://gpu-box:1", "scheme that is not known"),
        ("http:gpu-box:1", "is no URL"),
        ("http://", "names no host"),
        ("http:///v1", "has a path"),
        ("http://gpu-box:1/v1", "has a path"),
        ("https://gpu-box?x=1", "has a path"),
        ("https://gpu-box#x", "has a path"),
        ("http://me:secret@gpu-box/v1", "has a path"),
        ("me:secret@gpu-box:1", "a user name or a password"),
        ("grpc://me:secret@gpu-box", "scheme that is not known"),
        ("https://me:secret@gpu-box", "a user name or a password"),
        ("dns:///", "names no host"),
        ("ipv4:gpu-box:1", "no IPv4 address"),
        ("ipv4:", "names no host"),
        ("ipv4:10.0.0.1:1,", "names no host"),
        ("ipv6:10.0.0.1:1", "no IPv6 address"),
        ("unix:", "names no socket"),
        ("unix:///", "names no socket"),
        ("unix:a\0b", "names no socket"),
        ("unix://host/path", "has two slashes"),
    ],
)
def test_nonsense_is_refused_in_one_sentence_that_shows_it(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_address(text)

    message = str(caught.value)
    assert message.startswith(f"the address {text.replace('me:secret@', '***@')!r} ")
    assert message.isprintable()
    assert "secret" not in message


def test_the_address_comes_from_the_argument_then_the_environment_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALRPC_ADDRESS", raising=False)
    assert core.server_address(None).target == "127.0.0.1:50051"
    monkeypatch.setenv("EVALRPC_ADDRESS", "there:1")
    assert core.server_address(None).target == "there:1"
    assert core.server_address("here:2").target == "here:2"


def test_a_bad_address_in_the_environment_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALRPC_ADDRESS", "there:x")

    with pytest.raises(ValueError, match="EVALRPC_ADDRESS: the address 'there:x' has the port 'x'"):
        core.server_address(None)


@pytest.mark.parametrize(("use_proxy", "value"), [(True, 1), (False, 0)])
def test_the_options_say_whether_a_proxy_may_be_used(use_proxy: bool, value: int) -> None:
    options: dict[str, Any] = dict(core.channel_options(use_proxy=use_proxy))

    assert options["grpc.enable_http_proxy"] == value


@pytest.mark.parametrize(
    ("address", "variables", "found"),
    [
        ("eval.example:1", {"http_proxy": "http://p:3128"}, "http_proxy"),
        ("https://eval.example", {"http_proxy": "p", "https_proxy": "p"}, "https_proxy"),
        ("dns:///eval.example:1", {"grpc_proxy": "p", "http_proxy": "p"}, "grpc_proxy"),
        ("eval.example:1", {"HTTP_PROXY": "p"}, ""),  # which gRPC does not read
        ("eval.example:1", {"http_proxy": ""}, ""),
        ("eval.example:1", {"http_proxy": "p", "no_proxy": "other, .example"}, ""),
        ("eval.example:1", {"http_proxy": "p", "no_proxy": "other,"}, "http_proxy"),
        ("localhost:1", {"http_proxy": "p"}, ""),
        ("[::1]:1", {"http_proxy": "p"}, ""),
        ("unix:/run/e.sock", {"http_proxy": "p"}, ""),
        ("no address at all", {"http_proxy": "p"}, ""),
    ],
)
def test_the_variable_that_leads_to_a_proxy_is_known(
    address: str, variables: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_variable(address) == found
