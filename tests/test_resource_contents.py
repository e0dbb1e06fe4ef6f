"""What the URI of a resource gives, in both protocol eras: a transcript as Markdown, a message as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from chatledger.storage import Limits
from tests.conftest import OpenClient
from tests.hostile_texts import CANARY, HOSTILE, UNSEEN, ours
from tests.test_resources import no_resource, read
from tests.test_tools import ABSENT, CALL, NOTICE, call, with_messages


async def test_a_transcript_is_markdown_with_every_message_in_order(client_of: OpenClient) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        await call(alice, "update_conversation", conversation_id=1, title="Trip")
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "look\n\nfor **it**", "name": "Ann"},
            {"role": "assistant", "tool_calls": CALL},
            {"role": "tool", "content": "found", "tool_call_id": "call_1", "name": "look"},
            {"role": "user", "parts": [{"type": "image", "data": "SECRET"}]},
            {"role": "assistant", "content": "هم‌اکنون 👍 é"},
        ]
        done = await call(alice, "append_messages", conversation_id=1, messages=said)
        content = await read(alice, "conversation://1")
        assert content.mime_type == "text/markdown"
        lines = ours(content.text)
        when = done["messages"][0]["created_at"][:19].replace("T", " ") + "Z"
        assert [line for line in lines if line.startswith("## ")] == [
            f"## {seq} · {message['role']} · {when}" for seq, message in enumerate(said, 1)
        ]
        facts = dict(line.split(": ", 1) for line in lines[1 : lines.index("---", 1)])
        assert {name: json.loads(value) for name, value in facts.items()}["title"] == "Trip"
        assert json.loads(facts["id"]) == done["conversation_id"]
        assert "# Conversation 1" in lines
        assert any(line.startswith(NOTICE) for line in lines)
        assert lines[lines.index("# Conversation 1") + 2] == "Messages 1 to 5 of 5, oldest first."
        assert "\n```text\nlook\n\nfor **it**\n```\n" in content.text
        assert '"name": "look",\n  "tool_call_id": "call_1"' in content.text
        assert '"function": {' in content.text
        assert "SECRET" not in content.text
        assert "هم\\u200cاکنون 👍 é" in content.text
        upper = f"conversation://{done['conversation_id'].upper()}"
        for same in (f"conversation://{done['conversation_id']}", upper):
            assert (await read(alice, same)).text == content.text
        await call(bob, "create_conversation")
        assert "There are no messages yet." in ours((await read(bob, "conversation://1")).text)


async def test_a_transcript_is_bounded_as_a_window_is_and_says_how_to_go_on(client_of: OpenClient) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        await call(bob, "create_conversation")
        for start in range(0, 60, 20):
            messages = [{"role": "user", "content": f"[{start + n + 1}] " + "word " * 200} for n in range(20)]
            await call(alice, "append_messages", conversation_id=1, messages=messages)
        window = await call(alice, "load_history", conversation_id=1)
        first = window["messages"][0]["seq"]
        assert window["has_more_before"]
        text = (await read(alice, "conversation://1")).text
        seqs = [int(seq) for seq in re.findall(r"^## (\d+) ", text, re.MULTILINE)]
        assert seqs == [message["seq"] for message in window["messages"]] == list(range(first, 61))
        (told,) = [line for line in ours(text) if line.startswith("Messages ")]
        assert told == (
            f"Messages {first} to 60 of 60, oldest first. To go on to earlier ones, call load_history with "
            f"conversation_id 1 and before_seq {first}."
        )
        earlier = await call(alice, "load_history", conversation_id=1, before_seq=first)
        assert earlier["messages"][-1]["seq"] == first - 1
        assert "load_history" not in (await read(bob, "conversation://1")).text


async def test_nothing_that_was_stored_stands_outside_a_fence_or_cannot_be_seen(client_of: OpenClient) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        await call(bob, "create_conversation")
        for number, text in enumerate(HOSTILE, 1):
            if number > 1:
                await call(alice, "create_conversation")
            await call(
                alice, "update_conversation", conversation_id=number, title=text, metadata={"source": {"format": text}}
            )
            calls = [{"id": text[:50], "function": {"name": text, "arguments": text}}]
            said: list[dict[str, Any]] = [
                {"role": "user", "content": text, "name": text[:128]},
                {"role": "assistant", "content": text, "tool_calls": calls},
                {"role": "tool", "content": text, "tool_call_id": text[:50]},
                {"role": "system", "content": text},
            ]
            await call(alice, "append_messages", conversation_id=number, messages=said)
            markdown = (await read(alice, f"conversation://{number}")).text
            assert CANARY in markdown
            assert not UNSEEN.search(markdown)
            lines = ours(markdown)
            front, body = lines[: lines.index("---", 1)], lines[lines.index("---", 1) :]
            assert CANARY not in "\n".join(body)
            assert len([line for line in body if line.startswith("#")]) == 1 + len(said)
            values = {line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in front[1:]}
            assert (values["title"], values["source"]) == (text, text)
            for seq, message in enumerate(said, 1):
                exact = (await read(alice, f"conversation://{number}/messages/{seq}")).text
                assert exact == exact.translate(dict.fromkeys(range(32)))
                assert not UNSEEN.search(exact)
                found = json.loads(exact)["message"]
                assert found | message == found
            await no_resource(bob, f"conversation://{number + 1}/messages/1", "conversation_unavailable")


async def test_a_message_is_given_whole_and_without_the_rest_of_its_exchange(client_of: OpenClient) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        rich = {"client_message_id": "c", "parts": [{"type": "image"}], "metadata": {"n": 1e23}, "name": "Ann"}
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "see", **rich},
            {"role": "assistant", "tool_calls": CALL},
            {"role": "tool", "content": "r", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "done"},
        ]
        done = await call(alice, "append_messages", conversation_id=1, messages=said)
        full = await call(alice, "load_history", conversation_id=1, detail="full")
        for seq, message in enumerate(full["messages"], 1):
            for name in ("1", done["conversation_id"], done["conversation_id"].upper()):
                content = await read(alice, f"conversation://{name}/messages/{seq}")
                assert content.mime_type == "application/json"
                assert json.loads(content.text) == {"message": message, "notice": NOTICE}
        await call(bob, "create_conversation")
        foreign = f"conversation://{done['conversation_id']}/messages/1"
        absent = [foreign, "conversation://1/messages/1", f"conversation://1/messages/{2**63 - 1}"]
        absent += [f"conversation://{ABSENT}/messages/1", f"conversation://{2**80}/messages/1"]
        answers = [await no_resource(bob, uri, "conversation_unavailable") for uri in absent]
        assert len({json.dumps(answer).replace(uri, "URI") for answer, uri in zip(answers, absent, strict=True)}) == 1
        own = await no_resource(alice, "conversation://1/messages/5", "conversation_unavailable")
        assert own["message"] == answers[0]["message"]


async def test_a_message_of_a_million_characters_comes_whole_and_alone(client_of: OpenClient) -> None:
    wide = Limits(max_content_chars=1_000_000)
    async with client_of("alice", limits=wide) as alice, client_of("bob", limits=wide) as bob:
        for client, text in ((alice, "`" * 1_000_000), (bob, ("# x\n```\n\u202e" * 120_000)[:1_000_000])):
            await call(client, "create_conversation")
            await call(client, "append_message", conversation_id=1, role="user", content="before")
            await call(client, "append_message", conversation_id=1, role="user", content=text)
            exact = json.loads((await read(client, "conversation://1/messages/2")).text)
            assert exact["message"]["content"] == text
            markdown = (await read(client, "conversation://1")).text
            assert text.replace("\u202e", "\\u202e") in markdown
            lines = ours(markdown)
            assert [line[:5] for line in lines if line.startswith("## ")] == ["## 2 "]
            assert any("before_seq 2." in line for line in lines)
