"""What the conformance suite wants to find on a server: its tools, resources, prompts and completions.

Names and texts are the suite's (`src/scenarios/server` in modelcontextprotocol/conformance). They are added to the real
server and served by its own `call_tool` and `answer`, so that what is tested is what wraps them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeAlias

from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ContentBlock,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    GetPromptRequestParams,
    GetPromptResult,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListPromptsResult,
    ListRootsRequest,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    PromptReference,
    ReadResourceRequestParams,
    ReadResourceResult,
    Result,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

from chatledger.server.app import LedgerServer
from chatledger.server.completions import Completions
from chatledger.server.identity import Caller
from chatledger.server.prompts import ConversationPrompts
from chatledger.server.resources import ConversationResources
from chatledger.storage.store import ConversationStore

Ctx: TypeAlias = Context[Any, Any]
Round: TypeAlias = dict[str, InputRequest]
"""What is asked of the client at once; the keys are ours."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


# One red pixel; a WAV file without a sample.
_PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0]))
    + _chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
    + _chunk(b"IEND", b"")
).decode()
_WAV = base64.b64encode(
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00"
    b"data\x00\x00\x00\x00"
).decode()
_IMAGE = ImageContent(type="image", data=_PNG, mime_type="image/png")


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _asks(message: str, field: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _samples(prompt: str) -> CreateMessageRequest:
    messages = [SamplingMessage(role="user", content=_text(prompt))]
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=messages, max_tokens=100))


_CONTENT: dict[str, list[ContentBlock]] = {
    "test_simple_text": [_text("This is a simple text response for testing.")],
    "test_image_content": [_IMAGE],
    "test_audio_content": [AudioContent(type="audio", data=_WAV, mime_type="audio/wav")],
    "test_embedded_resource": [
        _embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    ],
    "test_multiple_content_types": [
        _text("Multiple content types test:"),
        _IMAGE,
        _embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ],
    # For a client that wants no log messages, and for one that watches the stream: nothing is sent before the answer.
    "test_logging_tool": [_text("nothing was logged")],
    "test_streaming_elicitation": [_text("nothing was asked for")],
}

_CONFIRM = _asks("Please confirm", "ok", "boolean")
_ROUNDS: dict[str, Sequence[Round]] = {
    "test_input_required_result_elicitation": [{"user_name": _asks("What is your name?", "name")}],
    "test_input_required_result_sampling": [{"capital_question": _samples("What is the capital of France?")}],
    "test_input_required_result_list_roots": [{"client_roots": ListRootsRequest()}],
    "test_input_required_result_request_state": [{"confirm": _CONFIRM}],
    "test_input_required_result_tampered_state": [{"confirm": _CONFIRM}],
    "test_input_required_result_multiple_inputs": [
        {
            "user_name": _asks("What is your name?", "name"),
            "greeting": _samples("Generate a greeting"),
            "client_roots": ListRootsRequest(),
        }
    ],
    "test_input_required_result_multi_round": [
        {"step1": _asks("Step 1: What is your name?", "name")},
        {"step2": _asks("Step 2: What is your favorite color?", "color")},
    ],
}
_PROMPT_ROUNDS: Sequence[Round] = [{"user_context": _asks("What context should the prompt use?", "context")}]


def _still_asked(given: Ctx | GetPromptRequestParams, rounds: Sequence[Round]) -> InputRequiredResult | None:
    """What the client must still be asked; None when all rounds are answered. The state is how many of them are."""
    answered = int(given.request_state or 0)
    if rounds[answered].keys() <= (given.input_responses or {}).keys():
        answered += 1
    if answered == len(rounds):
        return None
    return InputRequiredResult(input_requests=rounds[answered], request_state=str(answered))


def _returning(content: list[ContentBlock]) -> Callable[[], Awaitable[CallToolResult]]:
    async def tool() -> CallToolResult:
        return CallToolResult(content=content)

    return tool


def _asking(rounds: Sequence[Round]) -> Callable[[Ctx], Awaitable[CallToolResult | InputRequiredResult]]:
    async def tool(ctx: Ctx) -> CallToolResult | InputRequiredResult:
        return _still_asked(ctx, rounds) or CallToolResult(content=[_text("state-ok")])

    return tool


async def test_input_required_result_capabilities(ctx: Ctx) -> InputRequiredResult:
    """Asks only for what the client says it can give."""
    can = ctx.client_capabilities
    asked: Round = {"sample": _samples("Say hello")} if can is not None and can.sampling is not None else {}
    if can is not None and can.elicitation is not None:
        asked["ask"] = _asks("What is your name?", "name")
    return InputRequiredResult(input_requests=asked, request_state="0")


async def test_missing_capability(ctx: Ctx) -> str:
    """Needs a client that lets servers sample."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "the client cannot sample", needed)
    return "the client can sample"


async def test_error_handling() -> str:
    """Always fails."""
    raise RuntimeError("This tool intentionally returns an error for testing")


async def test_tool_with_progress(ctx: Ctx) -> str:
    """Reports progress three times."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
    return "done"


class Answer(BaseModel):
    """What `test_elicitation` asks for."""

    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


async def test_elicitation(ctx: Ctx, message: str) -> str:
    """Asks while the call is running, as the revisions before 2026-07-28 have it."""
    answer = await ctx.elicit(message, Answer)
    return f"User response: {answer.action}"


async def test_x_mcp_header(
    region: Annotated[str, Field(description="Sent as a header too", json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """Has an argument that clients repeat in a header."""
    return f"region={region}"


_TOOLS: Sequence[Callable[..., Any]] = (
    test_input_required_result_capabilities,
    test_missing_capability,
    test_error_handling,
    test_tool_with_progress,
    test_elicitation,
    test_x_mcp_header,
)

_RESOURCES: dict[str, TextResourceContents | BlobResourceContents] = {
    "test://static-text": TextResourceContents(
        uri="test://static-text", mime_type="text/plain", text="This is the content of the static text resource."
    ),
    "test://static-binary": BlobResourceContents(uri="test://static-binary", mime_type="image/png", blob=_PNG),
    "test://template/123/data": TextResourceContents(
        uri="test://template/123/data",
        mime_type="application/json",
        text=json.dumps({"id": "123", "templateTest": True, "data": "Data for ID: 123"}),
    ),
}

_PROMPTS = [
    Prompt(name="test_simple_prompt", description="No arguments."),
    Prompt(
        name="test_prompt_with_arguments",
        description="Two arguments.",
        arguments=[PromptArgument(name="arg1", required=True), PromptArgument(name="arg2", required=True)],
    ),
    Prompt(
        name="test_prompt_with_embedded_resource",
        description="Embeds a resource.",
        arguments=[PromptArgument(name="resourceUri", required=True)],
    ),
    Prompt(name="test_prompt_with_image", description="Holds an image."),
    Prompt(name="test_input_required_result_prompt", description="Asks for more first."),
]


def _prompt(name: str, arguments: dict[str, str]) -> list[ContentBlock] | None:
    match name:
        case "test_simple_prompt":
            return [_text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            return [_text("Prompt with arguments: arg1='{arg1}', arg2='{arg2}'".format(**arguments))]
        case "test_prompt_with_embedded_resource":
            embedded = _embedded(arguments["resourceUri"], "text/plain", "Embedded resource content for testing.")
            return [embedded, _text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            return [_IMAGE, _text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            return [_text("the context was given")]
    return None


def add_fixtures(server: LedgerServer, store: ConversationStore, caller: Caller) -> None:
    """Add them to a server; whatever is not a fixture is answered as it was."""
    for name, content in _CONTENT.items():
        server.add_tool(_returning(content), name, description="A fixture.", structured_output=False)
    for name, rounds in _ROUNDS.items():
        server.add_tool(_asking(rounds), name, description="A fixture.", structured_output=False)
    for tool in _TOOLS:
        server.add_tool(tool, structured_output=False)
    server.reporting |= {test_tool_with_progress.__name__}

    resources, prompts = ConversationResources(store, caller), ConversationPrompts(store, caller)
    completions = Completions(store, caller)

    async def read(ctx: Ctx, params: ReadResourceRequestParams) -> ReadResourceResult:
        fixture = _RESOURCES.get(params.uri)
        return await resources.read(ctx, params) if fixture is None else ReadResourceResult(contents=[fixture])

    async def list_prompts(ctx: Ctx, params: PaginatedRequestParams) -> ListPromptsResult:
        real = await prompts.list_all(ctx, params)
        return ListPromptsResult(prompts=[*real.prompts, *_PROMPTS])

    async def get_prompt(ctx: Ctx, params: GetPromptRequestParams) -> Result:
        if params.name == "test_input_required_result_prompt" and (asked := _still_asked(params, _PROMPT_ROUNDS)):
            return asked
        fixture = _prompt(params.name, params.arguments or {})
        if fixture is None:
            return await prompts.get(ctx, params)
        return GetPromptResult(messages=[PromptMessage(role="user", content=block) for block in fixture])

    async def complete(ctx: Ctx, params: CompleteRequestParams) -> CompleteResult:
        if isinstance(params.ref, PromptReference) and params.ref.name == "test_prompt_with_arguments":
            return CompleteResult(completion=Completion(values=["testing"], total=1, has_more=False))
        return await completions.complete(ctx, params)

    server.answer("resources/read", ReadResourceRequestParams, read)
    server.answer("prompts/list", PaginatedRequestParams, list_prompts)
    server.answer("prompts/get", GetPromptRequestParams, get_prompt)
    server.answer("completion/complete", CompleteRequestParams, complete)
