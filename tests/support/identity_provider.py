"""An identity provider on this machine: its keys, its HTTP server, and the tokens that it signs."""

import base64
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from waiting import DEADLINE_SECONDS

from evalrpc.config import OidcSettings

AUDIENCE = "evalrpc"
JWKS_PATH = "/keys"
DISCOVERY_PATH = "/.well-known/openid-configuration"

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
FOREIGN_KEY = rsa.generate_private_key(65537, 2048)
"""A key that no provider publishes."""


def jwk(key: Any, **fields: Any) -> dict[str, Any]:
    """Return the public half of a key as providers publish it."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **fields}


class IdentityProvider:
    """Answers over HTTP on loopback with what its attributes say. `asked` counts by path."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA_KEY, kid="rsa", alg="RS256"), jwk(EC_KEY, kid="ec")]
        self.answers: dict[str, Any] = {}
        self.status = 200
        self.asked: Counter[str] = Counter()
        self.may_answer = threading.Event()
        self.may_answer.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked[self.path] += 1
                assert provider.may_answer.wait(DEADLINE_SECONDS)
                body = json.dumps(provider.answer(self.path)).encode()
                self.send_response(provider.status)
                self.send_header("Location", f"{provider.issuer}{JWKS_PATH}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> Any:
        usual = {
            JWKS_PATH: {"keys": self.keys},
            DISCOVERY_PATH: {"issuer": self.issuer, "jwks_uri": f"{self.issuer}{JWKS_PATH}"},
        }
        return self.answers.get(path, usual.get(path))

    def settings(self, **changed: Any) -> OidcSettings:
        given: dict[str, Any] = {"jwks_url": f"{self.issuer}{JWKS_PATH}", "role": "submitter", **changed}
        return OidcSettings(issuer=self.issuer, audience=AUDIENCE, **given)

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return good claims; None leaves one out."""
        claims = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 3600, **changed}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: Any = RSA_KEY, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changed: Any) -> str:
        """Return a signed token, good but for what is changed."""
        return jwt.encode(self.claims(**changed), key, algorithm, {"kid": "rsa", **(headers or {})})


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
