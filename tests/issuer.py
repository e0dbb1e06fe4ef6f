"""An issuer of tokens for tests: key pairs of its own, a real HTTP server for its JWKS, and tokens of any kind."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

ALGORITHMS = get_default_algorithms()
KINDS = {"EdDSA": "OKP", "ES256": "EC", "RS256": "RSA"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def joined(header: object, claims: object, signature: bytes) -> str:
    """A token with this signature, whatever it is worth. Bytes go in as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    return ".".join([*map(b64, parts), b64(signature)])


def signed(claims: object, key: Any, algorithm: str, **header: Any) -> str:
    """A token signed with a key (bytes: as they are), with further header fields; those that are None are left out."""
    fields = {"alg": algorithm, "typ": "JWT", **header}
    head = {name: value for name, value in fields.items() if value is not None}
    signing = ALGORITHMS[algorithm]
    text = joined(head, claims, b"").removesuffix(".")
    prepared = key if isinstance(key, bytes) else signing.prepare_key(key)
    return f"{text}.{b64(signing.sign(text.encode(), prepared))}"


def private_key(algorithm: str, name: str = "first") -> Any:
    """A key pair; the same one for the same name."""
    return _private_key(algorithm, name)


@cache
def _private_key(algorithm: str, name: str) -> Any:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name == "short" else 2048)


def public_jwk(algorithm: str, kid: str | None = "key-1", name: str = "first", **members: Any) -> dict[str, Any]:
    """The public half, as a JWKS lists it."""
    told: Any = ALGORITHMS[algorithm].to_jwk(private_key(algorithm, name).public_key(), as_dict=True)
    jwk = {key: value for key, value in told.items() if key not in ("key_ops", "alg", "use")}
    return jwk | ({} if kid is None else {"kid": kid}) | members


class Issuer:
    """What `serving` serves at any path, and what it was asked. Unless `answers` is set, it keeps who asks waiting."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.jwks: list[dict[str, Any]] = [public_jwk("EdDSA")]
        self.document: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.answers = threading.Event()
        self.answers.set()
        self.asked: list[str] = []

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Claims of a good token for `https://ledger.example/mcp`; those that are changed to `...` are left out."""
        now = int(time.time())
        usual = {"iss": self.url, "sub": "alice", "aud": "https://ledger.example/mcp", "iat": now, "exp": now + 86_400}
        return {name: value for name, value in (usual | changed).items() if value is not ...}

    def token(self, algorithm: str = "EdDSA", *, kid: str | None = "key-1", name: str = "first", **claims: Any) -> str:
        """A token signed by one of its keys."""
        return signed(self.claims(**claims), private_key(algorithm, name), algorithm, kid=kid)


@contextmanager
def serving() -> Iterator[Issuer]:
    """An issuer on a loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            issuer.answers.wait(30)
            body = json.dumps({"keys": issuer.jwks}).encode() if issuer.document is None else issuer.document
            self.send_response(issuer.status)
            for name, value in issuer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has given up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: stderr is for what a test looks for."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield issuer
    finally:
        issuer.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()
