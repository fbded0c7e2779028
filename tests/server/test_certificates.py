"""The files of a certificate: when they are taken up, when not, and when they expire."""

import logging
import os
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from certificates import Authority
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.config.listeners import TlsFiles
from evalrpc.errors import ConfigurationError
from evalrpc.server import certificates
from evalrpc.server.certificates import Certificate, Pem, expiry_of, read_tls_files
from evalrpc.server.x509 import validity_of

AUTHORITY = Authority()


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return TlsFiles(*AUTHORITY.issue().write(tmp_path), AUTHORITY.write(tmp_path))


@pytest.fixture
def certificate(files: TlsFiles) -> Certificate:
    return Certificate(files)


def test_files_that_stay_are_no_news(certificate: Certificate) -> None:
    assert certificate.changed() is None


def test_new_files_are_taken_up_once(certificate: Certificate, files: TlsFiles) -> None:
    new = AUTHORITY.issue()
    new.write(files.cert.parent)

    assert certificate.changed() == Pem(*new, AUTHORITY.pem)
    assert certificate.changed() is None


def test_a_new_authority_of_clients_is_taken_up(certificate: Certificate, files: TlsFiles) -> None:
    other = Authority("other")
    other.write(files.cert.parent)

    pem = certificate.changed()

    assert pem is not None
    assert pem.client_ca == other.pem


def test_a_pair_that_is_half_new_waits_for_its_other_half_and_is_logged_once(
    certificate: Certificate, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = certificate.pem, AUTHORITY.issue()
    files.cert.write_bytes(new.cert)
    with caplog.at_level(logging.INFO):
        assert [certificate.changed() for _ in range(3)] == [None] * 3
        assert certificate.pem == old
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "stays in use" in caplog.text
        assert "KEY_VALUES_MISMATCH" in caplog.text
        files.key.write_bytes(new.key)
        assert certificate.changed() == Pem(*new, AUTHORITY.pem)
    assert caplog.messages[-1] == f"took up the new certificate in {files.cert}"


def test_what_changes_while_it_is_checked_is_read_again_at_the_next_handshake(
    certificate: Certificate, files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [AUTHORITY.issue(), AUTHORITY.issue()]
    pairs[0].write(files.cert.parent)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "validity_of", lambda pem: pairs[1].write(files.cert.parent))
        assert certificate.changed() is None

    assert certificate.changed() == Pem(*pairs[1], AUTHORITY.pem)


@pytest.mark.parametrize("broken", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cut"])
@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_what_is_broken_is_not_taken_up(certificate: Certificate, files: TlsFiles, name: str, broken: str) -> None:
    path: Path = getattr(files, name)
    path.write_text(path.read_text()[:-40] if broken == "cut" else broken)

    assert certificate.changed() is None
    with pytest.raises(ConfigurationError, match=r"setting tls_(cert|client_ca): "):
        Certificate(files)


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(certificate: Certificate, files: TlsFiles, name: str) -> None:
    getattr(files, name).unlink()
    os.mkfifo(getattr(files, name))

    assert certificate.changed() is None
    with pytest.raises(ConfigurationError, match=rf"setting tls_{name}: can't read .*: it is a FIFO, not a regular file"):
        read_tls_files(files)


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_a_file_that_is_gone_is_not_missed_until_a_restart(certificate: Certificate, files: TlsFiles, name: str) -> None:
    getattr(files, name).unlink()

    assert certificate.changed() is None
    with pytest.raises(ConfigurationError, match=rf"setting tls_{name}: can't read .*: No such file"):
        read_tls_files(files)


def test_a_certificate_of_its_own_key_is_no_certificate_authority_of_ours_but_may_have_a_chain(files: TlsFiles) -> None:
    with files.cert.open("ab") as cert:
        cert.write(AUTHORITY.pem)

    assert read_tls_files(files).cert.endswith(AUTHORITY.pem)


@pytest.mark.parametrize(
    ("life_days", "left_days", "near"),
    [(91, 15, False), (91, 13, True), (11, 2.5, False), (11, 2, True), (1, 0.3, False), (1, 0.1, True), (91, -1, True)],
)
def test_an_end_is_near_two_weeks_before_or_when_a_fifth_of_a_shorter_life_is_left(
    life_days: float, left_days: float, near: bool
) -> None:
    issued = AUTHORITY.issue(days=life_days - 1)  # it has begun a day ago
    end = x509.load_pem_x509_certificate(issued.cert).not_valid_after_utc

    expiry = expiry_of(Pem(*issued, None), end - timedelta(days=left_days))

    assert f"{end:%Y-%m-%d %H:%M} UTC" in expiry.text
    assert expiry.is_near == near
    assert ("has expired" in expiry.text) == (left_days < 0)


@pytest.mark.parametrize("days", [0, 1, 10_000, 2_900_000])
def test_the_validity_is_what_the_certificate_says_in_every_century(days: int) -> None:
    issued = AUTHORITY.issue(days=days)
    expected = x509.load_pem_x509_certificate(issued.cert)

    assert validity_of(issued.cert) == (expected.not_valid_before_utc, expected.not_valid_after_utc)


@given(st.binary())
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        validity_of(ssl.DER_cert_to_PEM_cert(content).encode())
