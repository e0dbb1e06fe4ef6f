"""What a message of ChatGPT shows and what else it carries: its content types and its files."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from chatledger.transfer.blocks import without_ciphertext

# Types whose text stands in one field. Of those in _WITH_SOURCE the rest is worth keeping: an address, a title.
_TEXT_FIELD = {
    "code": "text",
    "execution_output": "text",
    "system_error": "text",
    "tether_quote": "text",
    "tether_browsing_display": "result",
}
_WITH_SOURCE = frozenset({"tether_quote", "tether_browsing_display"})
_MOST_FILES = 50  # chosen: a message takes at most some tens; the names go into its metadata, which is small


class Content(NamedTuple):
    text: str
    parts: list[Any]
    files: list[str]
    """The names of its files in the archive."""


class Assets:
    """The other entries of an archive, by the ids with which their names begin."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted((name.replace("\\", "/").rpartition("/")[2], name) for name in names)

    def matching(self, file_id: str) -> list[str]:
        """The entries of a file: `file-abc-photo.png` or `file_abc.dat` in whatever folder."""
        found: list[str] = []
        if not file_id:
            return found
        for base, name in self._names[bisect_left(self._names, (file_id, "")) :][:_MOST_FILES]:
            if not base.startswith(file_id):
                break
            if not base[len(file_id) :][:1].isalnum():  # another id that only begins alike
                found.append(name)
        return found


def read_content(content: Any, attachments: Any, assets: Assets) -> Content:
    """The text of `content`, its pieces joined by an empty line, and everything else verbatim.

    `attachments` are the files that the user added; those to which the content does not point are parts.
    """
    texts: list[str] = []
    parts: list[Any] = []
    files: dict[str, None] = {}
    if isinstance(content, dict):
        kind = content.get("content_type")
        field = _TEXT_FIELD.get(kind) if isinstance(kind, str) else None
        plain = kind in ("text", "multimodal_text") or (kind is None and "parts" in content)
        if field is not None and isinstance(content.get(field), str):
            texts.append(content[field])
        pieces = content.get("parts")
        for piece in pieces if isinstance(pieces, list) else [pieces]:
            if (text := _text_of(piece)) is not None:
                texts.append(text)
            elif piece is not None and (plain or field is not None):
                parts.append(without_ciphertext(piece))
            files |= dict.fromkeys(_file_ids(piece))
        if content and ((field is None and not plain) or kind in _WITH_SOURCE):
            parts.append(without_ciphertext(content))
    elif isinstance(content, str):  # not as ChatGPT has it, but other programs write its form too
        texts.append(content)
    elif content is not None:
        parts.append(content)
    for attachment in attachments if isinstance(attachments, list) else ():
        file_id = attachment.get("id") if isinstance(attachment, dict) else None
        if isinstance(file_id, str) and file_id in files:
            continue
        parts.append(attachment)
        if isinstance(file_id, str):
            files[file_id] = None
    names = dict.fromkeys(name for file_id in islice(files, _MOST_FILES) for name in assets.matching(file_id))
    return Content("\n\n".join(text for text in texts if text), parts, list(names)[:_MOST_FILES])


def _text_of(piece: Any) -> str | None:
    """What the user said counts as text, written or spoken."""
    if isinstance(piece, dict) and piece.get("content_type") == "audio_transcription":
        piece = piece.get("text")
    return piece if isinstance(piece, str) else None


def _file_ids(piece: Any) -> Iterator[str]:
    """The files to which a piece points, itself or one level below, as a recorded call with its sound and frames."""
    below = piece.values() if isinstance(piece, dict) else ()
    for each in (piece, *below):
        pointer = each.get("asset_pointer") if isinstance(each, dict) else None
        if isinstance(pointer, str):  # file-service://file-abc, sediment://file_abc#page
            yield pointer.rpartition("://")[2].partition("#")[0].partition("?")[0]
