"""Gemini's activity in Google Takeout, as JSON: rows with a prompt and, mostly, the answer as HTML, newest first.

No row says which conversation it belongs to, so each is one of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import Blocks, text_or_none
from chatledger.transfer.draft import Draft, malformed, told
from chatledger.transfer.html_text import html_text
from chatledger.transfer.records import Origin, Outcome, Record, Rejected
from chatledger.transfer.times import parse_time

NAME = "gemini-takeout"
TITLE = "Gemini's activity from Google Takeout"

# What the account's language puts before a prompt, as seen in exports; in other languages the title is kept whole.
_PREFIXES = (
    "Prompted ",  # English
    "Eingegebener Prompt: ",  # German
)
# Two names of the product, which no language translates.
_PRODUCTS = ("gemini", "bard")
# What a row has besides the prompt and the answer that belongs to the prompt: files, and what Takeout says of them.
_PART_KEYS = ("subtitles", "attachedFiles", "imageFile", "audioFiles", "details")


def recognises(value: Any) -> bool:
    """Whether it is a row of Gemini's activity, in any language. Rows of other products have the same form."""
    if not isinstance(value, dict) or not isinstance(value.get("title"), str) or "time" not in value:
        return False
    if not (isinstance(value.get("products"), list) or isinstance(value.get("header"), str)):
        return False
    return _is_gemini(value) or isinstance(value.get("safeHtmlItem"), list)


def _is_gemini(row: dict[str, Any]) -> bool:
    products = row.get("products")
    names = [row.get("header"), *(products if isinstance(products, list) else ())]
    return any(isinstance(name, str) and product in name.lower() for name in names for product in _PRODUCTS)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per row, in the file's order. Rows about something else than a prompt are rejected, no failure."""
    for record in records:
        yield _conversation(record.place, record.value) if isinstance(record.value, dict) else malformed(record)


def _conversation(place: str, row: dict[str, Any]) -> Outcome:
    title, answered = row.get("title"), row.get("safeHtmlItem")
    prefix = next((each for each in _PREFIXES if isinstance(title, str) and title.startswith(each)), None)
    if not isinstance(title, str) or (prefix is None and not isinstance(answered, list)):
        return Rejected(place=place, reason="no prompt", failed=False, title=text_or_none(title))
    at = parse_time(row.get("time"))
    draft = Draft()
    parts = [{key: row[key]} for key in _PART_KEYS if row.get(key)]
    draft.add(None, told("user", Blocks(title.removeprefix(prefix or ""), parts or None), created_at=at))
    texts, others = [], []
    for item in answered if isinstance(answered, list) else []:
        html = item.get("html") if isinstance(item, dict) else None
        if isinstance(html, str):
            texts.append(html_text(html))
        else:
            others.append(item)
    found = Blocks("\n\n".join(filter(None, texts)), others or None)
    if answered:
        draft.add(None, told("assistant", found, created_at=at))
    digest = hashlib.sha256(f"{row.get('time')}\n{title}".encode("utf-8", "surrogatepass")).hexdigest()
    return draft.outcome(place, external_id=digest[:32], created_at=at)  # 128 bits: more than can meet by chance
