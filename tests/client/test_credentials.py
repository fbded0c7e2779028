"""What a client brings: which certificates, which token, and never a token in the open."""

import os
import stat
from pathlib import Path

import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.client import EvalClient
from evalrpc.client.addresses import parse_address
from evalrpc.client.credentials import Bearer, bearer, tls_options
from evalrpc.client.logins import forget_token, keep_token, kept_token, logins_path

HERE, TLS, ELSEWHERE = map(parse_address, ("127.0.0.1:1", "https://host.example:1", "host.example:1"))
SECRET = "evr_1_secret"
AUTHORITY = Authority()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any credentials."""
    for name in ("TOKEN", "TLS_CA", "TLS_CLIENT_CERT", "TLS_CLIENT_KEY"):
        monkeypatch.delenv(f"EVALRPC_{name}", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("evr_of_file\n")
    return path


def sent(token: Bearer) -> str:
    """Return what travels with a call, without the scheme."""
    ((key, value),) = token.metadata()
    assert key == "authorization"
    return value.removeprefix("Bearer ")


# Tokens


def test_without_a_token_nothing_is_sent() -> None:
    assert bearer(TLS).metadata() == ()


def test_a_token_is_the_argument_then_the_file_then_the_variable_then_that_of_login(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_token(TLS.target, "evr_of_login")
    assert sent(bearer(TLS)) == "evr_of_login"
    monkeypatch.setenv("EVALRPC_TOKEN", "evr_of_variable")
    assert sent(bearer(TLS)) == "evr_of_variable"
    assert sent(bearer(TLS, token_file=token_file)) == "evr_of_file"
    assert sent(bearer(TLS, SECRET)) == SECRET
    with pytest.raises(ValueError, match="either a token or a token_file"):
        bearer(TLS, SECRET, token_file)


def test_a_token_in_a_file_can_be_exchanged_while_it_is_in_use(token_file: Path) -> None:
    token = bearer(TLS, token_file=token_file)
    token_file.write_text(SECRET)

    assert sent(token) == SECRET


@pytest.mark.parametrize(
    "text", ["host.example:1", "http://host.example", "10.0.0.1:1", "dns:///host.example:1", "ipv4:127.0.0.1:1,10.0.0.1:1"]
)
def test_a_token_never_travels_in_the_open_to_another_machine(
    text: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_address(text)
    for given_token in ({"token": SECRET}, {"token_file": token_file}):
        with pytest.raises(ValueError, match=r"with TLS only.*https://") as caught:
            bearer(address, **given_token)  # type: ignore[arg-type]
        assert "evr_" not in str(caught.value)
    monkeypatch.setenv("EVALRPC_TOKEN", SECRET)
    with pytest.raises(ValueError, match="EVALRPC_TOKEN"):
        EvalClient(text)


@pytest.mark.parametrize("text", ["127.0.0.1:1", "localhost", "unix:/s", "https://host.example", "https://10.0.0.1:1"])
def test_a_token_travels_over_tls_and_on_this_machine(text: str) -> None:
    assert sent(bearer(parse_address(text), SECRET)) == SECRET


@pytest.mark.parametrize("bad", ["a b", "a\nb", "é", "\x00", "a\x7f"])
def test_what_can_be_no_token_is_refused_and_not_shown(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text(bad)
    for given_token in ({"token": bad}, {"token_file": path}):
        with pytest.raises(ValueError, match="characters that no token has") as caught:
            bearer(TLS, **given_token)  # type: ignore[arg-type]
        assert bad not in str(caught.value)


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        bearer(TLS, token_file=path)
    with pytest.raises(FileNotFoundError):
        bearer(TLS, token_file=tmp_path / "none")


def test_no_client_shows_its_token() -> None:
    with EvalClient(HERE.target, token=SECRET) as client:
        assert SECRET not in f"{client!r} {client} {client._bearer!r}"


@given(st.text())
def test_any_text_is_a_token_or_refused_without_being_shown(text: str) -> None:
    refusal = ""
    try:
        assert bool(Bearer(text)) == bool(text)
    except ValueError as error:
        refusal = str(error)
    assert len(text) < 3 or text not in refusal


# What `evalrpc login` keeps


def test_tokens_are_kept_by_address_in_a_file_for_the_user_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        keep_token("a:1", "evr_a")
        path = keep_token("b:1", "evr_b")
    finally:
        os.umask(before)

    assert path == logins_path() == home / ".config/evalrpc/tokens.json"
    assert [stat.S_IMODE(found.stat().st_mode) for found in (path, path.parent)] == [0o600, 0o700]
    assert [kept_token(target) for target in ("a:1", "b:1", "c:1")] == ["evr_a", "evr_b", ""]
    assert [file.name for file in path.parent.iterdir()] == ["tokens.json"]


def test_a_token_is_forgotten_without_the_others() -> None:
    keep_token("a:1", "evr_a")
    keep_token("b:1", "evr_b")

    assert forget_token("a:1")
    assert not forget_token("a:1")
    assert [kept_token(target) for target in ("a:1", "b:1")] == ["", "evr_b"]


def test_xdg_config_home_is_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert keep_token("a:1", "evr_a") == tmp_path / "xdg/evalrpc/tokens.json"


def test_a_file_that_others_may_read_is_refused() -> None:
    keep_token("a:1", "evr_a").chmod(0o640)

    with pytest.raises(ValueError, match="chmod 600"):
        EvalClient("a:1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a:1": 5}', b"\xff"])
def test_a_broken_file_is_refused_with_what_to_do(content: bytes) -> None:
    keep_token("a:1", "evr_a").write_bytes(content)

    with pytest.raises(ValueError, match="delete it, and log in again"):
        kept_token("a:1")


def test_a_user_without_a_home_has_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)

    assert bearer(TLS).metadata() == ()


# Certificates


def test_an_address_without_tls_takes_no_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = AUTHORITY.write(tmp_path)
    with pytest.raises(ValueError, match=r"write https://127\.0\.0\.1:1"):
        tls_options(HERE, ca)
    monkeypatch.setenv("EVALRPC_TLS_CA", str(ca))
    assert tls_options(HERE) is None


def test_certificates_are_the_arguments_then_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, ours, theirs = Authority("other"), AUTHORITY.issue("ours"), AUTHORITY.issue("theirs")
    variables = ("TLS_CA", other.write(tmp_path, "other.pem")), ("TLS_CLIENT_CERT", theirs.write(tmp_path, "theirs")[0])
    for name, path in (*variables, ("TLS_CLIENT_KEY", tmp_path / "theirs-key.pem")):
        monkeypatch.setenv(f"EVALRPC_{name}", str(path))

    assert tls_options(TLS) == (other.pem, theirs.key, theirs.cert)
    assert tls_options(TLS, AUTHORITY.write(tmp_path), *ours.write(tmp_path, "ours")) == (AUTHORITY.pem, ours.key, ours.cert)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    cert, key = AUTHORITY.issue().write(tmp_path)
    files = {"ca": AUTHORITY.write(tmp_path), "cert": cert, "key": key}
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        tls_options(TLS, **{**files, name: tmp_path / "fifo"})
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        bearer(TLS, token_file=tmp_path / "fifo")
    with pytest.raises(ValueError, match=f"tls_{name} is empty: name a file, or leave it out"):
        tls_options(TLS, **{name: ""})


def test_an_empty_name_of_a_token_file_is_refused() -> None:
    with pytest.raises(ValueError, match="token_file is empty"):
        bearer(TLS, token_file="")


def test_what_are_no_certificates_is_refused(tmp_path: Path) -> None:
    ca, (cert, key) = AUTHORITY.write(tmp_path), AUTHORITY.issue().write(tmp_path)
    with pytest.raises(ValueError, match=f"tls_ca: {key} must hold certificates"):
        tls_options(TLS, key)
    with pytest.raises(ValueError, match=f"tls_cert: {ca} and {key} must be a certificate and its key"):
        tls_options(TLS, ca, ca, key)
    for half in ({"cert": cert}, {"key": key}):
        with pytest.raises(ValueError, match="give both, or neither"):
            tls_options(TLS, ca, **half)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        tls_options(TLS, tmp_path / "none")
