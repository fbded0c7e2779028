"""What `listen` may say, which rules follow for each address, and with which of them no server starts."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import ListenSettings, Settings, load_settings
from evalrpc.config.addresses import PortAddress, SocketAddress, parse_listen_address
from evalrpc.config.listen import HttpListenSettings
from evalrpc.config.listeners import Listener, TlsFiles, http_listeners_of, listeners_of
from evalrpc.errors import ConfigurationError

TLS = {"tls_cert": Path("/cert"), "tls_key": Path("/key")}


def listeners_in(text: str, tmp_path: Path) -> tuple[Listener, ...]:
    path = tmp_path / "evalrpc.toml"
    path.write_text(text)
    return listeners_of(load_settings({}, {}, path))


def rules_at(*addresses: str, **given: object) -> list[tuple[bool, bool]]:
    """Return for each address whether it has TLS, and whether callers must sign in."""
    listen = tuple(map(ListenSettings, addresses))
    return [(one.tls is not None, one.requires_sign_in) for one in listeners_of(Settings(listen=listen, **given))]  # type: ignore[arg-type]


# HTTP


def test_http_has_the_rules_of_grpc_at_addresses_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "evalrpc.toml"
    path.write_text(
        'http_listen = ["unix:http", { address = "0.0.0.0:2", auth = "required", tls_cert = "own", tls_key = "key" }]\n'
    )
    of_socket, of_port = http_listeners_of(load_settings({}, {}, path))
    assert of_socket[:4] == (SocketAddress(tmp_path / "http"), None, False, "http_listen")
    assert of_port[:4] == (PortAddress("0.0.0.0", 2), TlsFiles(tmp_path / "own", tmp_path / "key", None), True, "http_listen")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"http_listen": "127.0.0.1:1,127.0.0.1:1"}, "setting http_listen: names 127.0.0.1:1 more than once"),
        ({"http_listen": "127.0.0.1:50051"}, "setting http_listen: names 127.0.0.1:50051, as listen does"),
        ({"http_listen": "0.0.0.0:1"}, "setting tls_cert: 0.0.0.0:1 is not loopback"),
        ({"http_listen": "0.0.0.0:1", "auth": "off"}, "setting auth: `off` on 0.0.0.0:1"),
        ({"http_listen": "nowhere"}, "setting http_listen: must be HOST:PORT"),
        ({"http_origins": "example.org"}, "setting http_origins: must be origins"),
        ({"http_origins": "https://example.org/"}, "setting http_origins: must be origins"),
    ],
)
def test_what_http_can_not_have_is_said(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        http_listeners_of(load_settings(settings, {}))


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", PortAddress("127.0.0.1", 0)),
        ("[::1]:50051", PortAddress("[::1]", 50051)),
        ("host.example:65535", PortAddress("host.example", 65535)),
        ("unix:/run/evalrpc/socket", SocketAddress(Path("/run/evalrpc/socket"))),
        ("unix:///run/evalrpc/socket", SocketAddress(Path("/run/evalrpc/socket"))),
        ("unix:socket", SocketAddress(Path("/folder/socket"))),
        ("unix:/a:1", SocketAddress(Path("/a:1"))),
    ],
)
def test_an_address_is_a_host_and_a_port_or_a_socket(text: str, expected: PortAddress | SocketAddress) -> None:
    assert parse_listen_address(text, Path("/folder")) == expected


@settings(deadline=None)
@given(st.text() | st.text().map("unix:".__add__))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_listen_address(text)
    except ValueError:
        return
    assert parse_listen_address(str(address)) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LocalHost", "[::1]"])
def test_loopback_is_local(host: str) -> None:
    assert PortAddress(host, 1).is_local


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::]", "10.0.0.1", "127.1", "2130706433", "localhost.example", "[::ffff:10.0.0.1]", "unix-abstract"]
)
def test_whatever_else_is_not(host: str) -> None:
    assert not PortAddress(host, 1).is_local


def test_several_addresses_have_commas_between_them_or_stand_in_a_list(tmp_path: Path) -> None:
    expected = ["127.0.0.1:1", "unix:/s"]
    for text in ("127.0.0.1:1,unix:/s", "127.0.0.1:1, unix:/s"):
        assert [one.address for one in load_settings({}, {"EVALRPC_LISTEN": text}).listen] == expected
    assert [one.address for one in load_settings({"listen": tuple(expected)}, {}).listen] == expected
    assert [str(one.address) for one in listeners_in('listen = ["127.0.0.1:1", "unix:/s"]', tmp_path)] == expected


def test_a_socket_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (listener,) = listeners_in('listen = "unix:run/socket"', tmp_path)

    assert listener.address == SocketAddress(tmp_path / "run/socket")


def test_an_address_may_not_be_named_twice_but_several_free_ports_may() -> None:
    for address in ("127.0.0.1:1", "unix:/s"):
        with pytest.raises(ConfigurationError, match=f"setting listen: names {address} more than once"):
            rules_at(address, address)
    assert len(rules_at("127.0.0.1:0", "127.0.0.1:0")) == 2


# Rules


def test_a_table_replaces_what_the_settings_say_for_all_addresses(tmp_path: Path) -> None:
    listeners = listeners_in(
        """
        tls_cert = "cert"
        tls_key = "key"
        listen = [
            "unix:socket",
            "0.0.0.0:1",
            { address = "0.0.0.0:2", tls_client_ca = "clients" },
            { address = "127.0.0.1:3", tls_cert = "own", tls_key = "own-key", auth = "required" },
        ]
        """,
        tmp_path,
    )

    here = tmp_path
    assert [listener[1:3] for listener in listeners] == [
        (None, False),
        (TlsFiles(here / "cert", here / "key", None), True),
        (TlsFiles(here / "cert", here / "key", here / "clients"), True),
        (TlsFiles(here / "own", here / "own-key", None), True),
    ]


def test_tables_may_stand_on_their_own_and_a_flag_replaces_them(tmp_path: Path) -> None:
    path = tmp_path / "evalrpc.toml"
    path.write_text('[[listen]]\naddress = "127.0.0.1:1"\nauth = "required"\n[[listen]]\naddress = "unix:s"\n')

    assert [one.requires_sign_in for one in listeners_of(load_settings({}, {}, path))] == [True, False]
    assert [one.address for one in load_settings({"listen": ("127.0.0.1:9",)}, {}, path).listen] == ["127.0.0.1:9"]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("tls_crt = '/c'\naddress = '127.0.0.1:1'", "listen.tls_crt: is unknown"),
        ("auth = 'required'", "listen.address: every"),
        ("address = 'nowhere'", "listen.address: must be HOST:PORT"),
        ("address = 5", "listen.address: must be HOST:PORT"),
        ("address = '127.0.0.1:1'\nauth = 'on'", "listen.auth: must be `off` or `required`"),
        ("address = '127.0.0.1:1'\ntls_cert = 5", "listen.tls_cert: must be a path"),
    ],
)
def test_a_bad_key_of_a_table_is_named_with_its_file(tmp_path: Path, table: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"setting {re.escape(named)}.* \(from .*evalrpc\.toml\)"):
        listeners_in(f"[[listen]]\n{table}\n", tmp_path)


@pytest.mark.parametrize("text", ["listen = 5", "listen = []", "listen = [5]", "[listen]\naddress = '127.0.0.1:1'"])
def test_what_is_no_list_of_addresses_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="setting listen: must"):
        listeners_in(text, tmp_path)


def test_rules_that_come_from_no_source_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match=r"setting listen\.address: must be HOST:PORT, .*, not 'nowhere'"):
        ListenSettings("nowhere")
    with pytest.raises(ConfigurationError, match=r"setting listen\.auth: must be `off` or `required`"):
        ListenSettings("127.0.0.1:0", auth="on")


def test_sign_in_is_off_on_this_machine_and_required_elsewhere() -> None:
    assert rules_at("127.0.0.1:1", "[::1]:1", "unix:/s", "0.0.0.0:2", "host.example:1", **TLS) == [
        (True, False),
        (True, False),
        (False, False),
        (True, True),
        (True, True),
    ]


def test_sign_in_can_be_required_on_this_machine_too() -> None:
    assert rules_at("127.0.0.1:1", "unix:/s", auth="required") == [(False, True), (False, True)]


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host.example:1"])
def test_other_machines_get_in_only_with_sign_in_or_with_the_flag_that_says_that_this_is_insecure(address: str) -> None:
    for tls in ({}, TLS):
        with pytest.raises(ConfigurationError, match=r"setting auth: .*--insecure-no-auth"):
            rules_at(address, auth="off", **tls)
        assert rules_at(address, insecure_no_auth=True, **tls) == [(bool(tls), False)]
        assert rules_at(address, insecure_no_auth=True, auth="off", **tls) == [(bool(tls), False)]
    assert rules_at(address, insecure_no_auth=True, auth="required", **TLS) == [(True, True)]


def test_tokens_never_travel_in_the_open_unless_a_proxy_has_decrypted_them() -> None:
    for rules in ({}, {"auth": "required"}, {"auth": "required", "insecure_no_auth": True}):
        with pytest.raises(ConfigurationError, match=r"setting tls_cert: 0\.0\.0\.0:1 .*proxy_terminates_tls"):
            rules_at("0.0.0.0:1", **rules)
    assert rules_at("0.0.0.0:1", proxy_terminates_tls=True) == [(False, True)]


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"tls_cert": Path("/c")}, "tls_key"), ({"tls_key": Path("/k")}, "tls_cert"), ({"tls_client_ca": Path("/a")}, "tls_cert")],
)
def test_half_of_tls_is_refused(given: dict[str, Path], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting {missing}: is missing: TLS at 127.0.0.1:1 needs"):
        rules_at("127.0.0.1:1", **given)


def test_a_socket_has_no_tls() -> None:
    with pytest.raises(ConfigurationError, match="unix:/s is a socket, which has no TLS"):
        listeners_of(Settings(listen=(ListenSettings("unix:/s", **TLS),)))  # type: ignore[arg-type]


def test_operators_are_told_who_is_anonymous() -> None:
    local, public, signed_in = (
        listeners_of(Settings(listen=(ListenSettings(address, auth=auth),), insecure_no_auth=True, **TLS))[0]  # type: ignore[arg-type]
        for address, auth in (("127.0.0.1:1", None), ("0.0.0.0:1", None), ("127.0.0.1:1", "required"))
    )

    anonymous = "is an anonymous submitter"
    assert local.risk == f"127.0.0.1:1 asks nobody to sign in: any local user and any proxy on this host {anonymous}"
    assert public.risk == f"0.0.0.0:1 asks nobody to sign in: whoever reaches it {anonymous}"
    assert signed_in.risk == ""


@pytest.mark.parametrize("name", ["Authorization", "cookie", "X Token", "", "X-Tökén"])
def test_a_proxy_passes_tokens_on_in_a_header_of_its_own(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"setting http_listen\.proxy_token_header"):
        HttpListenSettings("127.0.0.1:1", proxy_token_header=name)


@pytest.mark.parametrize(("auth", "problem"), [(None, "needs sign-in"), ("required", r"needs `\[oidc\]`")])
def test_such_a_header_takes_an_identity_provider_and_sign_in(auth: str | None, problem: str) -> None:
    table = HttpListenSettings("127.0.0.1:1", auth=auth, proxy_token_header="X-Token")
    with pytest.raises(ConfigurationError, match=problem):
        http_listeners_of(Settings(http_listen=(table,)))
