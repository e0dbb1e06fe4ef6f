"""What a request hears that is not let in, and where clients learn how to be (RFC 6750, RFC 9728).

Every URL in it comes from the settings: a Host header is the sender's to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

from chatledger.server.auth import scopes

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"  # RFC 9728, 3
ENDPOINT: Final = "/mcp"
_UNCACHED: Final = {"cache-control": "no-store"}  # RFC 6750, 5.3


class Challenge:
    """Answers of a server that clients reach at `base`: a URL without a slash or `/mcp` at its end."""

    def __init__(self, base: str, issuer: str | None) -> None:
        self.base, self.resource = base, f"{base}{ENDPOINT}"
        self._issuer = issuer
        parts = urlsplit(base)
        self._origin, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.path

    @property
    def own_names(self) -> frozenset[str]:
        """By which an `aud` names this server: the endpoint, or all that is served at its address."""
        return frozenset({self.resource, self.base, f"{self.base}/"})

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Paths and the documents there, one for each name: clients compare it with the URL that they were given.

        Each stands where it does for a server at the root of its host, and where RFC 9728 has it below a prefix.
        """
        whole, endpoint = self._document(self.base), self._document(self.resource)
        found: dict[str, dict[str, Any]] = {}
        for prefix in {"", self._prefix}:
            found |= {f"{WELL_KNOWN}{prefix}": whole, f"{WELL_KNOWN}{prefix}{ENDPOINT}": endpoint}
        return found

    def _document(self, resource: str) -> dict[str, Any]:
        document: dict[str, Any] = {
            "resource": resource,
            "resource_name": "chatledger",
            "scopes_supported": list(scopes.ALL),
            "bearer_methods_supported": ["header"],
        }
        return document if self._issuer is None else document | {"authorization_servers": [self._issuer]}

    def unauthorized(self, path: str, refused: str | None) -> Response:
        """401: no token, or (with the reason) one that is refused."""
        fields = [("error", "invalid_token"), ("error_description", refused)] if refused is not None else []
        return self._answer(401, path, fields, scopes.UNNAMED)

    def insufficient(self, path: str, held: Iterable[str], needed: str) -> Response:
        """403: the scopes that a token should have, those that this one has among them, or a client would lose them."""
        wanted = [scope for scope in scopes.ALL if scope == needed or scope in held]
        fields = [("error", "insufficient_scope"), ("error_description", f"this needs the scope {needed}")]
        return self._answer(403, path, fields, wanted)

    def unavailable(self, sentence: str, retry_after_seconds: float) -> Response:
        """503: nobody can be verified at present."""
        headers = _UNCACHED | {"retry-after": str(max(1, math.ceil(retry_after_seconds)))}
        return JSONResponse({"error": "temporarily_unavailable", "error_description": sentence}, 503, headers)

    def _answer(self, status: int, path: str, fields: Sequence[tuple[str, str]], wanted: Iterable[str]) -> Response:
        # The older transport's endpoint is another one: only the name of the whole server covers it.
        place = ENDPOINT if path == ENDPOINT else ""
        told = [*fields, ("scope", " ".join(wanted)), ("resource_metadata", self._metadata_url(place))]
        value = "Bearer " + ", ".join(f'{name}="{text}"' for name, text in told)
        return JSONResponse(dict(fields) or {"error": "unauthorized"}, status, _UNCACHED | {"www-authenticate": value})

    def _metadata_url(self, place: str) -> str:
        return f"{self._origin}{WELL_KNOWN}{self._prefix}{place}"
