"""Content blocks of any provider: the visible text, the calls, the results, and everything else as parts.

A source's content is a string, one block, or a list of both. Nothing here raises, whatever a source holds: what is not
understood is kept verbatim in parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Types of blocks whose `text` a reader saw. Blocks without a type that have a `text` are Gemini's.
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
# What a text block may carry besides its text that is lost with the block: sources that it cites.
_CITING = ("annotations", "citations")
_OPEN_CALLS = 256  # chosen: calls made and not yet answered at one time; parallel calls are a few dozen at most

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "gemini": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}


class Result(NamedTuple):
    """What a tool answered."""

    call_id: str | None
    text: str
    parts: list[Any] | None
    is_error: bool


class Blocks(NamedTuple):
    """What a content holds, each in its order. None means that there is none."""

    text: str
    parts: list[Any] | None = None
    calls: list[Any] | None = None
    results: tuple[Result, ...] = ()


def role_of(name: Any) -> str | None:
    """user, assistant, system or tool for what a source calls it, in any case; None for a name that nobody knows."""
    return _ROLES.get(name.lower()) if isinstance(name, str) else None


def identifier(value: Any) -> str | None:
    """An id as text; None where there is none. Some sources number their messages."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def text_or_none(value: Any) -> str | None:
    """`value` where it is a string with something to see in it."""
    return value if isinstance(value, str) and value.strip() else None


def json_text(value: Any) -> str:
    """`value` as the text of a call's arguments: a string stays as it is, nothing is an empty object."""
    if isinstance(value, str):
        return value
    if value is None:
        return "{}"
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # parsed with a little more stack left than there is here
        return "[nested too deeply]"


def without_ciphertext(block: Any) -> Any:
    """The block without `encrypted_content`, its own and that of the blocks in its `content`: only the provider that
    sealed it can read it."""
    if not isinstance(block, dict):
        return block
    kept = {key: value for key, value in block.items() if key != "encrypted_content"}
    if isinstance(inner := kept.get("content"), list):
        kept["content"] = [
            {key: value for key, value in each.items() if key != "encrypted_content"}
            if isinstance(each, dict) and "encrypted_content" in each
            else each
            for each in inner
        ]
    return kept


def visible_text(block: Any) -> str | None:
    """The text that a reader saw; None for a block that is something else. A refusal is what the model said."""
    if isinstance(block, str):
        return block
    if not isinstance(block, dict):
        return None
    kind = block.get("type")
    if kind == "refusal" and isinstance(block.get("refusal"), str):
        return str(block["refusal"])
    if (isinstance(kind, str) and kind in _TEXT_TYPES) or (kind is None and not block.get("thought")):
        text = block.get("text")
        if isinstance(text, dict):  # OpenAI's Assistants: {"value": …, "annotations": […]}
            text = text.get("value")
        if isinstance(text, str):
            return text
        return "" if text is None and kind is not None else None
    return None


class Calls:
    """The calls of one conversation in its order: gives an id to those without one, so that results pair."""

    def __init__(self) -> None:
        self._made = 0
        self._ids: set[str] = set()
        self._open: list[tuple[str, Any]] = []

    def made(self, call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
        """A call in the one shape that all formats have here; `arguments` as `json_text` has them."""
        found = self._opened(call_id, name)
        function = {"name": name if isinstance(name, str) else "", "arguments": json_text(arguments)}
        return {"id": found, "type": "function", "function": function}

    def kept(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call that has OpenAI's shape already: verbatim, but for an id that lacks and arguments that are no text."""
        function = call.get("function")
        kept = dict(call)
        kept["id"] = self._opened(call.get("id"), function.get("name") if isinstance(function, dict) else None)
        if isinstance(function, dict) and not isinstance(function.get("arguments"), str):
            kept["function"] = {**function, "arguments": json_text(function.get("arguments"))}
        return kept

    def answered(self, call_id: Any, name: Any = None) -> str | None:
        """The id of the call that a result answers: its own, else that of the earliest call without a result, one of
        this name if there is one; None where no call waits."""
        found = identifier(call_id)
        if found is None:
            named = [each for each, of in self._open if name is not None and of == name]
            found = named[0] if named else self._open[0][0] if self._open else None
        self._open = [(each, of) for each, of in self._open if each != found]
        return found

    def _opened(self, call_id: Any, name: Any) -> str:
        self._made += 1
        found = identifier(call_id)
        if found is None:
            found = f"call_{self._made}"
            while found in self._ids:
                found += "_"
        self._ids.add(found)
        self._open = [*self._open[-_OPEN_CALLS + 1 :], (found, name)]
        return found


def read_blocks(content: Any, calls: Calls, *, calling: bool = False, answering: bool = True) -> Blocks:
    """The text of `content`, its blocks joined by an empty line and never trimmed, and the rest.

    `calling`: its author may call tools, which only an assistant does; elsewhere a call is a part. `answering`: it may
    hold results, which a result itself does not.
    """
    texts: list[str] = []
    parts: list[Any] = []
    made: list[Any] = []
    results: list[Result] = []
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else None
        if block is None:
            continue
        if kind == "tool_use" and calling:
            made.append(calls.made(block.get("id"), block.get("name"), block.get("input")))
        elif kind == "tool_result" and answering:
            results.append(read_result(block, block.get("content"), calls))
        elif (text := visible_text(block)) is not None:
            if text:
                texts.append(text)
            if isinstance(block, dict) and any(block.get(key) for key in _CITING):
                parts.append(without_ciphertext(block))  # with its text: the places it cites count characters in it
        else:
            parts.append(without_ciphertext(block))
    return Blocks("\n\n".join(texts), parts or None, made or None, tuple(results))


def read_result(block: dict[str, Any], content: Any, calls: Calls, call_id: Any = None, name: Any = None) -> Result:
    """The result that `block` is, whose `content` stands where its format has it. One without anything to read keeps
    the block in parts: without a result its call would look unanswered."""
    found = calls.answered(call_id if call_id is not None else block.get("tool_use_id"), name)
    inner = read_blocks(content, calls, answering=False)
    parts = inner.parts
    if parts is None and not inner.text.strip():
        parts = [without_ciphertext(block)]
    return Result(found, inner.text, parts, block.get("is_error") is True)
