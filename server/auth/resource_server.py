"""The layer in front of the application that lets verified callers through: an OAuth 2.1 resource server, over ASGI."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import cors_middleware
from mcp.server.transport_security import RequestBodyLimitMiddleware
from starlette.authentication import AuthCredentials
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatledger.server.auth import scopes
from chatledger.server.auth.challenge import Challenge
from chatledger.server.auth.jwt_verifier import JwtVerifier
from chatledger.server.auth.refusals import KeysUnavailable, TokenRefused
from chatledger.server.auth.rules import AuthRules
from chatledger.server.auth.static_tokens import StaticTokenVerifier, is_static
from chatledger.storage.errors import StorageError
from chatledger.storage.message_log import MessageLog
from chatledger.storage.tokens import TokenStore

logger = logging.getLogger("chatledger")

_METHODS: Final = ["GET", "OPTIONS"]


class ResourceServer:
    """Verifies the bearer of each request. Nothing is connected to before the first token.

    `public_url` is the address by which clients reach this server, with or without `/mcp`.
    """

    def __init__(self, rules: AuthRules, store: MessageLog, *, public_url: str) -> None:
        jwt = rules.jwt
        issuer = jwt.issuer if jwt is not None else None
        named = issuer if issuer is not None and issuer.startswith(("https://", "http://")) else None
        self._challenge = Challenge(public_url.rstrip("/").removesuffix("/mcp"), named)
        self._jwt = None
        if jwt is not None:
            self._jwt = JwtVerifier(jwt, self._challenge.own_names, require_scopes=rules.require_scopes)
        self._tokens = TokenStore(store)
        self._static = StaticTokenVerifier(self._tokens, self._challenge.resource) if rules.static_tokens else None

    async def aclose(self) -> None:
        """Before the store is closed: finish what is noted about tokens in use."""
        await self._tokens.aclose()

    def routes(self) -> list[Route]:
        """Where clients learn who issues tokens for this server. They need no token."""
        return [
            Route(path, cors_middleware(_serving(document), _METHODS), methods=_METHODS)
            for path, document in self._challenge.metadata.items()
        ]

    def protect(self, app: ASGIApp, *, open_paths: Iterable[str], body_bytes: int) -> ASGIApp:
        """The application behind this layer. All but `open_paths` and the metadata needs a token; websockets end here.

        Tools and identity find who it is by `get_access_token()`. Bodies are read whole, up to `body_bytes`.
        """
        free = frozenset(open_paths) | self._challenge.metadata.keys()
        inner = AuthContextMiddleware(app)

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in free):
                await app(scope, receive, send)
            elif scope["type"] == "http":
                token = await self._admitted(scope, receive, send)
                if token is not None:
                    scope = {**scope, "user": AuthenticatedUser(token), "auth": AuthCredentials(token.scopes)}
                    layer = _ScopeLayer(inner, token, self._challenge)
                    within = RequestBodyLimitMiddleware(layer, body_bytes) if scope["method"] == "POST" else inner
                    await within(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})

        return protected

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> AccessToken | None:
        try:
            text = _bearer(Headers(scope=scope))
            if text is not None:
                return await self.verify(text)
            answer = self._challenge.unauthorized(scope["path"], None)
        except TokenRefused as exc:
            logger.info("a token was refused: %s", exc)
            answer = self._challenge.unauthorized(scope["path"], str(exc))
        except KeysUnavailable as exc:
            answer = self._challenge.unavailable(str(exc), exc.retry_after_seconds)
        except StorageError as exc:
            logger.warning("a token could not be looked up: %s", exc.message)
            retry_after = exc.details.get("retry_after_seconds", 30)  # chosen, for what only a person mends
            answer = self._challenge.unavailable("tokens cannot be looked up at present", retry_after)
        await answer(scope, receive, send)
        return None

    async def verify(self, text: str) -> AccessToken:
        """Whom a token stands for.

        Raises:
            TokenRefused, KeysUnavailable, StorageError: nobody, or nobody can tell.
        """
        verifier = self._static if is_static(text) else self._jwt
        if verifier is None:
            raise TokenRefused("tokens of this kind are not taken here")
        return await verifier.verify(text)


class _ScopeLayer:
    """Answers 403 to a message that needs a scope which the token does not have."""

    def __init__(self, app: ASGIApp, token: AccessToken, challenge: Challenge) -> None:
        self._app, self._token, self._challenge = app, token, challenge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read: list[Message] = []
        if not set(scopes.ALL) <= set(self._token.scopes):  # who may do everything is not read for it
            read.append(await receive())
            needed = _needed(read[0].get("body", b""))
            if needed is not None and needed not in self._token.scopes:
                answer = self._challenge.insufficient(scope["path"], self._token.scopes, needed)
                await answer(scope, receive, send)
                return

        async def replay() -> Message:
            return read.pop() if read else await receive()

        await self._app(scope, replay, send)


def _needed(body: bytes) -> str | None:
    """The scope that a body's message needs. One that cannot be read is left to the protocol's own answer."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    method = message.get("method") if isinstance(message, dict) else None
    return scopes.needed(method, message.get("params")) if isinstance(method, str) else None


def _bearer(headers: Headers) -> str | None:
    """The token that a request bears, which stands nowhere but in this header (OAuth 2.1, 5.1)."""
    values = headers.getlist("authorization")
    if len(values) > 1:
        raise TokenRefused("there is more than one Authorization header")
    scheme, _, text = values[0].partition(" ") if values else ("", "", "")
    return text.strip() or None if scheme.lower() == "bearer" else None


def _serving(document: dict[str, Any]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_: Request) -> Response:
        return JSONResponse(document, headers={"cache-control": "public, max-age=3600"})

    return serve
