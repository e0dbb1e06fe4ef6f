"""Who gets in over HTTP, with a real server on a real socket: every row of the table, in both eras."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.auth.scopes import DELETE, READ, WRITE
from chatledger.server.http_guard import LOOPBACK
from chatledger.server.identity import verified_user
from chatledger.storage import ConversationStore
from tests.auth_server import METADATA, PUBLIC, US, Serve, Served, challenge, client, message, rules_for
from tests.http_server import HttpServer, serving
from tests.issuer import Issuer, joined, private_key, public_jwk, signed
from tests.patience import PATIENCE

# ---- who is nobody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "bearer"},
        {"authorization": "Basic YWxpY2U6eA=="},
        {"authorization": "Digest x"},
        {"authorization": "Bearerx y"},
        {"x-user-id": "alice", "x-forwarded-user": "alice", "cookie": "user=alice"},
    ],
)
async def test_without_a_token_the_answer_says_where_to_get_one(
    served: Served, era: str, headers: dict[str, str]
) -> None:
    answer = await served.post("tools/list", {}, era=era, **headers)
    assert answer.status_code == 401
    assert challenge(answer) == {"scope": f"{READ} {WRITE}", "resource_metadata": METADATA}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"error": "unauthorized"}


async def test_a_token_in_the_query_or_the_body_is_none(served: Served, era: str) -> None:
    good = served.issuer.token()
    sent = message("tools/list", era=era)
    assert (await served.http.post(f"/mcp?access_token={good}", **sent)).status_code == 401
    sent["json"]["access_token"] = good
    assert (await served.http.post("/mcp", **sent)).status_code == 401
    form = {"access_token": good}
    assert (await served.http.post("/mcp", data=form)).status_code == 401


async def test_two_tokens_are_none(served: Served, era: str) -> None:
    good = served.issuer.token()
    sent = message("tools/list", era=era)
    headers = [*sent["headers"].items(), ("authorization", f"Bearer {good}"), ("authorization", "Bearer x")]
    for order in (headers, headers[::-1]):
        answer = await served.http.post("/mcp", json=sent["json"], headers=order)
        assert (answer.status_code, challenge(answer)["error"]) == (401, "invalid_token")


def bad_tokens(issuer: Issuer) -> dict[str, str]:
    key = private_key("EdDSA")
    return {
        "random": "abc",
        "expired": issuer.token(exp=int(time.time()) - 60),
        "nbf ahead": issuer.token(nbf=int(time.time()) + 3600),
        "iss wrong": issuer.token(iss="https://evil.example"),
        "aud wrong": issuer.token(aud="https://other.example/mcp"),
        "aud missing": issuer.token(aud=...),
        "aud a sibling path": issuer.token(aud=f"{PUBLIC}/other"),
        "aud a list without us": issuer.token(aud=["https://a.example", "https://b.example"]),
        "alg none": joined({"alg": "none"}, issuer.claims(), b""),
        "alg unlisted": signed(issuer.claims(), private_key("RS256"), "RS384", kid="key-1"),
        "HS256 by the public key": signed(
            issuer.claims(), json.dumps(public_jwk("EdDSA")).encode(), "HS256", kid="key-1"
        ),
        "kid unknown": issuer.token(kid="key-9"),
        "jku": signed(issuer.claims(), key, "EdDSA", kid="key-1", jku=f"{issuer.url}/evil"),
        "jwk": signed(issuer.claims(), key, "EdDSA", jwk=public_jwk("EdDSA")),
        "crit": signed(issuer.claims(), key, "EdDSA", kid="key-1", crit=["x"], x=1),
        "zero ES256 signature": joined({"alg": "ES256", "kid": "key-1"}, issuer.claims(), bytes(64)),
        "ID token": issuer.token(nonce="x"),
        "user missing": issuer.token(sub=...),
        "user empty": issuer.token(sub=""),
        "user of 300 characters": issuer.token(sub="x" * 300),
        "user with U+0000": issuer.token(sub="a\0"),
        "user a number": issuer.token(sub=7),
        "over 8 KiB": issuer.token(padding="x" * 9_000),
        "static, never made": f"chatledger_{'0' * 12}_{'0' * 64}",
        "static, cut": "chatledger_",
    }


@pytest.mark.parametrize("what", sorted(bad_tokens(Issuer("https://issuer.example"))))
async def test_a_bad_token_is_told_so_and_nothing_of_it_is_repeated(served: Served, what: str) -> None:
    token = bad_tokens(served.issuer)[what]
    for era in ("auto", "legacy"):
        answer = await served.call("list_conversations", {}, era=era, token=token)
        assert answer.status_code == 401
        told = challenge(answer)
        assert (told["error"], told["resource_metadata"]) == ("invalid_token", METADATA)
        assert told["scope"] == f"{READ} {WRITE}"
        assert answer.json() == {"error": "invalid_token", "error_description": told["error_description"]}
        assert token not in answer.text


async def test_100_kilobytes_of_a_token_end_without_a_5xx(served: Served) -> None:
    with contextlib.suppress(httpx2.TransportError):  # the socket server may close before all of it is read
        answer = await served.post("tools/list", era="auto", token="x" * 100_000)
        assert answer.status_code in (400, 401, 431)
    assert (await served.post("tools/list", era="auto", token="x" * 20_000)).status_code == 401
    assert (await served.post("tools/list", era="auto", token=served.issuer.token())).status_code == 200


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/sse", "/messages/", "/messages/?session_id=0", "/", "/none"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
async def test_nothing_but_what_is_open_is_answered_to_nobody(served: Served, path: str, method: str) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == 401
    assert challenge(answer)["resource_metadata"] == (METADATA if path == "/mcp" else METADATA.removesuffix("/mcp"))


@pytest.mark.parametrize(
    "path", ["//healthz", "/healthz/", "/healthz/../mcp", "/HEALTHZ", "/healthz;x", "/%68ealthz/x", "/mcp/healthz"]
)
async def test_a_path_that_resembles_an_open_one_is_not_open(served: Served, path: str) -> None:
    request = served.http.build_request("POST", served.base)
    reader, writer = await asyncio.open_connection("127.0.0.1", request.url.port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


# ---- who is somebody ------------------------------------------------------------------------------------------------


async def test_a_user_is_who_the_token_says_whatever_else_the_request_says(served: Served, era: str) -> None:
    async with client(served, era, served.issuer.token(sub="alice")) as alice:
        made = await alice.call_tool("create_conversation", {"key": "mine"})
        assert not made.is_error
    forged = {"x-user-id": "alice", "x-forwarded-user": "alice", "mcp-user": "alice"}
    bobs = served.issuer.token(sub="bob")
    for arguments in ({}, {"user_id": "alice"}, {"user": "alice"}):
        answer = await served.http.post(
            "/mcp",
            **message(
                "tools/call", {"name": "list_conversations", "arguments": arguments}, era=era, token=bobs, **forged
            ),
        )
        result = answer.json()["result"]
        told = result["structuredContent"]
        assert told["error"]["code"] == "invalid_argument" if arguments else told == {"conversations": []}
    async with client(served, era, served.issuer.token(sub="alice")) as alice:
        assert made.structured_content is not None
        listed = (await alice.call_tool("list_conversations", {})).structured_content
        assert listed is not None
        assert [each["id"] for each in listed["conversations"]] == [made.structured_content["conversation"]["id"]]


async def test_a_static_token_is_its_user_until_it_is_revoked(served: Served, era: str) -> None:
    made, text = await served.tokens.create("alice", scopes=[READ, WRITE])
    async with client(served, era, text) as alice:
        assert not (await alice.call_tool("create_conversation", {"title": "hers"})).is_error
    jwt = await served.call("list_conversations", {}, era=era, token=served.issuer.token(sub="alice"))
    assert jwt.json()["result"]["structuredContent"]["conversations"][0]["title"] == "hers"
    await served.tokens.revoke(made.id)
    answer = await served.call("list_conversations", {}, era=era, token=text)
    assert (answer.status_code, challenge(answer)["error"]) == (401, "invalid_token")


@pytest.mark.parametrize("settings", [{"static_tokens": False}, {"issuer": None, "static_tokens": True}])
async def test_tokens_of_a_kind_that_is_not_configured_are_refused(serve: Serve, settings: dict[str, Any]) -> None:
    async with serve(**settings) as served:
        _, text = await served.tokens.create("alice", scopes=[READ])
        static = await served.post("tools/list", era="auto", token=text)
        jwt = await served.post("tools/list", era="auto", token=served.issuer.token())
        expected = (200, 401) if settings["static_tokens"] else (401, 200)
        assert (static.status_code, jwt.status_code) == expected
        assert served.issuer.asked == ([] if settings["static_tokens"] else ["/.well-known/jwks.json"])


async def test_without_the_layer_a_request_is_nobody_s(serve: Serve, era: str) -> None:
    async with serve(wrap=lambda app: app) as served:
        answer = await served.call("list_conversations", {}, era=era, token=served.issuer.token())
        assert "no authenticated caller" in answer.text
        assert "structuredContent" not in answer.text


# ---- an issuer or a database that is away ---------------------------------------------------------------------------


async def test_while_the_issuer_is_down_known_keys_count_and_others_hear_when_to_come_back(
    served: Served, era: str
) -> None:
    served.issuer.status = 500
    answer = await served.post("tools/list", era=era, token=served.issuer.token())
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "www-authenticate" not in answer.headers


async def test_a_known_key_outlasts_its_issuer(served: Served, era: str) -> None:
    assert (await served.post("tools/list", era=era, token=served.issuer.token())).status_code == 200
    served.issuer.status = 500
    assert (await served.post("tools/list", era=era, token=served.issuer.token())).status_code == 200


async def test_while_the_database_is_away_a_static_token_is_not_refused_for_good(
    served: Served, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    from chatledger.storage.engine import Database
    from chatledger.storage.errors import Unavailable

    _, text = await served.tokens.create("alice", scopes=[READ])

    async def away(*_: Any, **__: Any) -> list[Any]:
        raise Unavailable("the database is restarting; try again shortly", retry_after_seconds=2.5)

    monkeypatch.setattr(Database, "read", away)
    answer = await served.post("tools/list", era=era, token=text)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


# ---- the whole application ------------------------------------------------------------------------------------------


@pytest.fixture
async def whole(database_url: str, store: ConversationStore, issuer: Issuer) -> AsyncIterator[HttpServer]:
    """What `chatledger serve` serves with authentication: guard, layer, both transports, health checks."""
    auth = ResourceServer(rules_for(issuer), store, public_url=PUBLIC)
    hosts = [*LOOPBACK, "ledger.example"]
    async with serving(database_url, caller=verified_user(), auth=auth, hosts=hosts, origins=[PUBLIC]) as server:
        yield server
        await auth.aclose()


async def test_the_guard_stands_before_the_layer_and_health_is_open(whole: HttpServer, issuer: Issuer) -> None:
    good: dict[str, str | None] = {"authorization": f"Bearer {issuer.token()}"}
    listed = message("tools/list", era="legacy")["json"]
    assert (await whole.post(listed, good)).status == 200
    assert (await whole.post(listed, {**good, "host": "evil.example"})).status == 421
    assert (await whole.post(listed, {**good, "origin": "https://evil.example"})).status == 403
    assert (await whole.post(listed, {**good, "origin": PUBLIC, "host": "ledger.example"})).status == 200
    body = json.dumps(listed).encode()
    for method, path in (("POST", "/mcp"), ("GET", "/sse"), ("POST", "/messages/?session_id=0"), ("GET", "/none")):
        refused = await whole.request(method, path, {"content-type": "application/json"}, body)
        where = METADATA if path == "/mcp" else METADATA.removesuffix("/mcp")
        told = refused.headers["www-authenticate"]
        assert (refused.status, f'resource_metadata="{where}"' in told) == (401, True)
    for path in ("/healthz", "/readyz"):
        assert (await whole.request("GET", path, {"host": "10.0.0.7"})).status == 200
    found = await whole.request("GET", "/.well-known/oauth-protected-resource/mcp")
    assert (found.status, found.json()["authorization_servers"]) == (200, [issuer.url])


async def test_an_sse_session_is_its_users_alone(whole: HttpServer, issuer: Issuer) -> None:
    alice, bob = ({"authorization": f"Bearer {issuer.token(sub=user)}"} for user in ("alice", "bob"))
    sent = message("tools/list", era="legacy")["json"]
    async with (
        httpx2.AsyncClient(base_url=whole.base, timeout=PATIENCE) as http,
        http.stream("GET", "/sse", headers=alice) as stream,
    ):
        lines = stream.aiter_lines()  # when it is given up, the stream is closed
        while not (line := await anext(lines)).startswith("data: "):
            pass
        endpoint = line.removeprefix("data: ")
        assert (await http.post(endpoint, json=sent)).status_code == 401
        foreign = await http.post(endpoint, json=sent, headers=bob)
        absent = await http.post("/messages/?session_id=" + "0" * 32, json=sent, headers=bob)
        assert (foreign.status_code, absent.status_code, foreign.text) == (404, 404, absent.text)
        assert (await http.post(endpoint, json=sent, headers=alice)).status_code == 202


# ---- metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["ledger.example", "evil.example", "127.0.0.1", "evil.example:443"])
async def test_metadata_names_this_server_by_its_public_url_whatever_the_host_header_says(
    served: Served, host: str
) -> None:
    hostile = {"host": host, "x-forwarded-host": "evil.example", "forwarded": "host=evil.example"}
    for path, resource in (("", PUBLIC), ("/mcp", US)):
        answer = await served.http.get(f"/.well-known/oauth-protected-resource{path}", headers=hostile)
        assert answer.status_code == 200
        assert answer.json() == {
            "resource": resource,
            "resource_name": "chatledger",
            "authorization_servers": [served.issuer.url],
            "scopes_supported": [READ, WRITE, DELETE],
            "bearer_methods_supported": ["header"],
        }
        assert "evil" not in f"{answer.text}{answer.headers}"
    refused = await served.http.post("/mcp", headers=hostile)
    assert challenge(refused)["resource_metadata"] == METADATA


@pytest.mark.parametrize(
    ("public_url", "resource", "metadata"),
    [
        ("https://a.example/", "https://a.example/mcp", "https://a.example/.well-known/oauth-protected-resource/mcp"),
        (
            "https://a.example/mcp",
            "https://a.example/mcp",
            "https://a.example/.well-known/oauth-protected-resource/mcp",
        ),
        (
            "https://a.example:8443/x/y",
            "https://a.example:8443/x/y/mcp",
            "https://a.example:8443/.well-known/oauth-protected-resource/x/y/mcp",
        ),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/mcp", "http://127.0.0.1:9/.well-known/oauth-protected-resource/mcp"),
    ],
)
async def test_the_resource_is_the_endpoint_below_the_public_url(
    serve: Serve, public_url: str, resource: str, metadata: str
) -> None:
    async with serve(public_url=public_url) as served:
        refused = await served.http.post("/mcp")
        assert challenge(refused)["resource_metadata"] == metadata
        path = metadata.removeprefix(re.match(r"https?://[^/]+", metadata)[0])  # type: ignore[index]
        assert (await served.http.get(path)).json()["resource"] == resource
        assert (await served.http.get("/.well-known/oauth-protected-resource/mcp")).json()["resource"] == resource
        assert (await served.post("tools/list", era="auto", token=served.issuer.token(aud=resource))).is_success
        assert (await served.post("tools/list", era="auto", token=served.issuer.token(aud=US))).status_code == 401


async def test_metadata_may_be_read_from_a_page_and_names_no_issuer_where_there_is_none(serve: Serve) -> None:
    async with serve(issuer=None, static_tokens=True) as served:
        answer = await served.http.get(
            "/.well-known/oauth-protected-resource/mcp", headers={"origin": "https://app.example"}
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "authorization_servers" not in answer.json()
