"""What a file is, by how it begins. Names lie, and many exports have none that says anything."""

from __future__ import annotations

import codecs
import json
import re

HEAD_BYTES = 4096  # chosen: a page of a disk; the marks of all kinds stand far before its end

JSON = "JSON"
ZIP = "a zip archive"
EMPTY = "an empty file"
HTML = "an HTML page"
TEXT = "plain text"

_KINDS = (
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),  # without entries
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"OggS", "a sound file"),
    (b"ID3", "a sound file"),
)
_JSON = re.compile(r'\s*(?:\{\s*(?:["}]|\Z)|\[\s*(?:["\[\]{\-\d]|true|false|null|NaN|\Z))')
_HTML = re.compile(r"\s*(?:<!doctype html|<html|<head|<body|<div|<!--)", re.IGNORECASE)


def kind_of(head: bytes) -> str:
    """What a file is that begins with `head`: `JSON`, or words such as `a PNG image` and `plain text`.

    `head` has HEAD_BYTES, or is the whole file. JSON lines are JSON even if their first line is none.
    """
    if not head:
        return EMPTY
    for mark, kind in _KINDS:
        if head.startswith(mark):
            return kind
    if head[4:8] == b"ftyp":
        return "a video or sound file"
    if head.startswith(b"RIFF"):
        return "an image in WebP" if head[8:12] == b"WEBP" else "a sound file"
    text = _decoded(head)
    if _JSON.match(text):
        return JSON
    if not text.strip():
        return "a file of white space"
    if _HTML.match(text):
        return HTML
    if _second_line_is_object(text):
        return JSON
    odd = sum(1 for char in text if not char.isprintable() and not char.isspace())
    return TEXT if odd * 20 < len(text) else "a file of unknown kind"


def _decoded(head: bytes) -> str:
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")("replace")
    return decoder.decode(head)  # not final: the head may end inside a character


def _second_line_is_object(text: str) -> bool:
    """A transcript whose first line is torn. More lines are not looked at: a text may have JSON in it."""
    lines = text.split("\n", 2)
    if len(lines) < 2 or not lines[1].startswith('{"'):
        return False
    if len(lines) == 2:
        return True  # cut by the end of the head, or of the file
    try:
        return isinstance(json.loads(lines[1], strict=False), dict)
    except (ValueError, RecursionError):
        return False
