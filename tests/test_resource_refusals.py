"""URIs that give nothing, in both protocol eras: of a foreign or an absent conversation, or of another form."""

from __future__ import annotations

import json
import time

from mcp import Client

from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from tests.conftest import OpenClient
from tests.test_resources import TEMPLATES, no_resource, read
from tests.test_tool_list import NOWHERE
from tests.test_tools import ABSENT, call, with_messages

BAD_URIS = [
    "",
    "conversation:",
    "conversation://",
    "conversation:///",
    "conversation:1",
    "conversation:/1",
    "conversation:///1",
    "conversation://1/",
    "conversation://1//",
    "conversation://1/.",
    "conversation://1/..",
    "conversation://..",
    "conversation://../1",
    "conversation://1/../2",
    "conversation://1/messages/../../2",
    "conversation://%2e%2e",
    "conversation://1/%2e%2e/2",
    "conversation://%31",
    "conversation://1%00",
    "conversation://%00",
    "conversation://1\x00",
    "conversation://1/messages/1%00",
    "conversation://1#2",
    "conversation://1#",
    "conversation://1?",
    "conversation://1?limit=5",
    "conversation://1/messages/1?x=1",
    "conversation://1/messages/1#x",
    "conversation://alice@1",
    "conversation://alice:pw@1",
    "conversation://@1",
    "conversation://1:80",
    "conversation://[1]",
    "conversation://localhost/1",
    "conversation://alice/1",
    "CONVERSATION://1",
    "Conversation://1",
    "conversations://1",
    "file:///etc/passwd",
    "http://127.0.0.1/1",
    "postgresql://1",
    "javascript:alert(1)",
    "data:,1",
    "1",
    ABSENT,
    "conversation://012",
    "conversation://00",
    "conversation://0",
    "conversation://+1",
    "conversation://-1",
    "conversation://1.0",
    "conversation://1.5",
    "conversation://1e3",
    "conversation://0x1",
    "conversation://1_0",
    "conversation:// 1",
    "conversation://1 ",
    " conversation://1",
    "conversation://1\n",
    "conversation://1\r\nX: y",
    "conversation://\t1",
    "conversation://\uff11\uff12",
    "conversation://\u0661",
    "conversation://1/messages/\uff11",
    "conversation://true",
    "conversation://null",
    "conversation://latest",
    f"conversation://{{{ABSENT}}}",
    f"conversation://urn:uuid:{ABSENT}",
    f"conversation://{ABSENT.replace('-', '')}",
    f"conversation://{ABSENT}0",
    f"conversation://{ABSENT}/",
    "conversation://{conversation_id}",
    "conversation://{conversation_id}/messages/{seq}",
    "conversation://'; DROP TABLE messages; --",
    "conversation://1' OR '1'='1",
    "conversation://1/messages",
    "conversation://1/messages/",
    "conversation://1/messages/1/",
    "conversation://1/messages/1/2",
    "conversation://1/Messages/1",
    "conversation://1/message/1",
    "conversation://1/1",
    "conversation://1/messages/0",
    "conversation://1/messages/-1",
    "conversation://1/messages/+1",
    "conversation://1/messages/01",
    "conversation://1/messages/1.5",
    f"conversation://1/messages/{2**70}",
    f"conversation://1/messages/{10**19 - 1}",
    "conversation://1\\messages\\1",
    "conversation://" + "9" * 8_000,
    "conversation://" + "a" * 8_000,
    "conversation://1/messages/" + "9" * 8_000,
    "conversation://" + "../" * 2_700,
    "conversation://" + "%2e" * 2_700,
    "x" * 8_000,
]


async def test_a_foreign_conversation_and_an_absent_one_are_answered_byte_for_byte_alike(client_of: OpenClient) -> None:
    async with with_messages(client_of, 2) as (alice, bob):
        for _ in range(3):
            await call(bob, "create_conversation", title="Bob's")
        foreign = (await call(bob, "load_history"))["conversation"]
        gone = (await call(alice, "create_conversation"))["conversation"]
        await call(alice, "delete_conversation", conversation_id=gone["id"])
        names = [ABSENT, foreign["id"], foreign["id"].upper(), gone["id"], gone["number"], foreign["number"], 99]
        names += [2**31, 2**63, 10**30]
        for form in ("conversation://{}", "conversation://{}/messages/1"):
            uris = [form.format(name) for name in names]
            answers = [await no_resource(alice, uri, "conversation_unavailable") for uri in uris]
            assert len({json.dumps(answer).replace(uri, "URI") for answer, uri in zip(answers, uris, strict=True)}) == 1
            assert foreign["id"] not in answers[0]["message"]
        assert "Bob's" in (await read(bob, "conversation://3")).text


async def test_a_uri_of_another_form_is_refused_at_once_and_never_looked_up(era: str) -> None:
    async with (
        ConversationStore.at(NOWHERE) as store,
        Client(make_server(store, local_user("alice")), mode=era) as alice,
        Client(make_server(store, local_user("bob")), mode=era) as bob,
    ):
        said = set()
        for uri in BAD_URIS:
            took = []
            for client in (alice, bob, alice, bob, alice):
                start = time.process_time()
                said.add((await no_resource(client, uri, "invalid_argument"))["message"])
                took.append(time.process_time() - start)
            assert min(took) < 0.05, "the best of five, as the machine may be busy"
        forms = " and ".join(template["uriTemplate"] for template in TEMPLATES)
        assert said == {
            f"invalid_argument: there is no such resource; the resources are {forms}",
            "invalid_argument: conversation_id must be the UUID of a conversation or its number, 1 or more",
            "invalid_argument: seq must be between 1 and 9,223,372,036,854,775,807",
        }
