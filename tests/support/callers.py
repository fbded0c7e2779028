"""Callers for tests: what they present, and tokens in a data folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evalrpc.server.auth.token_format import new_token
from evalrpc.server.auth.token_store import FILE_NAME, StoredToken, TokenStore


class Caller:
    """Presents a token, more headers, or the names of a certificate."""

    def __init__(
        self,
        token: str | None = None,
        *,
        headers: Iterable[tuple[str, Any]] = (),
        certificate: Mapping[str, list[bytes]] | None = None,
        peer: str = "ipv4:192.0.2.1:4711",
    ) -> None:
        self._headers = [*headers, *([("authorization", f"Bearer {token}")] if token is not None else [])]
        self._certificate = {"x509_pem_cert": [b"-----"], **certificate} if certificate is not None else {}
        self._peer = peer

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        return [("user-agent", "test"), *self._headers]

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._certificate

    def peer(self) -> str:
        return self._peer


def add_token(data_dir: Path, owner: str = "alice", role: str = "submitter", expires_ns: int | None = None) -> str:
    """Add a token to those of a data folder, and return it."""
    token, parts = new_token()
    TokenStore(data_dir).add(StoredToken(parts.token_id, parts.digest, owner, role, created_ns=1, expires_ns=expires_ns))
    return token


def revoke_token(data_dir: Path, token: str) -> None:
    assert TokenStore(data_dir).revoke(token.split("_")[1], now_ns=2)


def spoil_tokens(data_dir: Path) -> None:
    """Put what is no database in the place of the tokens, at once: a server that looks meanwhile would find that there are
    none."""
    damaged = data_dir / "damaged"
    damaged.write_bytes(b"this is no database" * 1000)
    damaged.replace(data_dir / FILE_NAME)
