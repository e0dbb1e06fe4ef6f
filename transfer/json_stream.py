"""JSON of any size as a stream of records: the elements of an array, lines, or documents one after another.

One record is in memory at a time. A record that is no JSON costs itself, never what follows. ijson was rejected for
both: one malformed element ends its stream, and it alters lone surrogates without a word, which the importer has to
replace and count. The parser itself finds where a record ends: a scanner of brackets and strings before it was tried,
and the two took twice the time. Such a scanner only finds the way out of what is malformed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

from chatledger.transfer.records import Malformed, Record

# Chosen: elements of an export have 10 kB to some MB, and the one that the end of the buffer cuts is parsed twice.
BUFFER_BYTES = 1024 * 1024
# Chosen: a hundred messages of the greatest length that is stored. Parsed, a record takes about five times its text.
RECORD_CHARS = 128 * 1024 * 1024

_SPACE = re.compile(r"[ \t\r\n]*+")
_SPACE_AND_COMMAS = re.compile(r"[ \t\r\n,]*+")
_REST_OF_LINE = re.compile(r"[^\n]*+")
_NO_STRUCTURE = re.compile(r'[^"\[\]{},]*+')
_IN_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

# Control characters in strings are accepted, and NaN as its name: the one is harmless, the other cannot be stored.
_DECODER = json.JSONDecoder(strict=False, parse_constant=str)
# How near to the end of the buffer an error lies that more text may cure: within `-Infinity` or two `\uXXXX`.
_CUT = 12

TRUNCATED = Malformed("is cut off: the file is incomplete")


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_json(
    stream: ByteStream, *, record_chars: int = RECORD_CHARS, buffer_bytes: int = BUFFER_BYTES
) -> Iterator[Record]:
    """The records of a file in its order, parsed one by one as they are asked for.

    Places count from 1: `element 3` of a top-level array, `line 3` of JSON lines (empty lines count and yield nothing),
    `document` for a single value, `document 3` for values that follow each other in any other way. A record that is no
    JSON or has over `record_chars` characters is `Malformed`; so is a last one that is cut off. Bytes are UTF-8, or
    UTF-16 with a byte order mark; what is neither becomes U+FFFD. Lone surrogates stay as they are.
    """
    text = _Text(stream, record_chars, buffer_bytes)
    lines = text.skip(_SPACE)
    if text.next() == "[":
        yield from _elements(text)
    elif _is_lines(text):
        yield from _one_by_itself(_lines(text, lines + 1))
    else:
        yield from _one_by_itself(_documents(text))


class _Text:
    """The decoded file from `at` on. What lies before `at` is forgotten whenever more is read."""

    def __init__(self, stream: ByteStream, limit: int, buffer_bytes: int) -> None:
        self._stream = stream
        self._buffer_bytes = buffer_bytes
        self._limit = limit
        self.at = 0
        self.ended = False
        head = b""
        while len(head) < 3 and (data := stream.read(buffer_bytes)):
            head += data
        encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        self._decode = codecs.getincrementaldecoder(encoding)("replace").decode
        self.held = self._decode(head)

    def more(self) -> bool:
        """Read as much again as is held, so that a record that takes many reads is looked at in linear time."""
        if not self.ended:
            data = self._stream.read(max(self._buffer_bytes, len(self.held) - self.at))
            self.ended = not data
            self.held = self.held[self.at :] + self._decode(data, self.ended)
            self.at = 0
        return not self.ended

    def skip(self, pattern: re.Pattern[str]) -> int:
        """Move behind what matches, however long it is; how many lines ended in it."""
        lines = 0
        while True:
            found = pattern.match(self.held, self.at)
            assert found is not None  # it may be empty
            lines += self.held.count("\n", self.at, found.end())
            self.at = found.end()
            if self.at < len(self.held) or not self.more():
                return lines

    def next(self) -> str:
        """The next character, empty at the end of the file; to be asked after `skip`."""
        return self.held[self.at : self.at + 1]

    def value(self) -> Any:
        """The value at `at`, and `at` moved behind it; `Malformed`, and `at` unmoved, where there is none."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.held, self.at)
            except json.JSONDecodeError as error:
                place = error.pos - self.at + 1
                if error.msg.startswith("Unterminated string") or error.pos >= len(self.held) - _CUT:
                    if not self.may_grow():
                        return self.too_long()
                    if self.more():
                        continue
                return Malformed(f"is not valid JSON: {error.msg} at its character {place:,}")
            except (RecursionError, ValueError) as error:
                return _unparsed(error)
            size = end - self.at
            if end < len(self.held) - _CUT or not self.more():  # a number may go on
                self.at += size
                return value

    def line(self) -> str | Malformed:
        """The text up to the end of the line, and `at` moved behind it; one that is too long is not held."""
        searched = self.at
        while (end := self.held.find("\n", searched)) < 0:
            searched = len(self.held) - self.at
            if not self.may_grow():
                self.skip(_REST_OF_LINE)
                self.at += 1
                return self.too_long()
            if not self.more():
                end = len(self.held)
                break
        line, self.at = self.held[self.at : end], end + 1
        return line

    def skip_value(self, *, in_array: bool) -> bool:
        """Move behind a value that could not be parsed, without holding it; False where the file ends before that.

        Only strings and the balance of brackets count. In an array it ends at the comma or bracket after it, so that a
        stray brace does no harm; elsewhere at the bracket that closes it.
        """
        depth, in_string = 0, False
        while True:
            pattern = _IN_STRING if in_string else _NO_STRUCTURE
            found = pattern.match(self.held, self.at)
            assert found is not None  # it may be empty
            self.at = found.end()
            mark = self.next()
            if mark == "" or (mark == "\\" and self.at + 1 == len(self.held)):
                if not self.more():
                    return False
                continue
            if in_string or mark == '"':
                in_string = not in_string
            elif mark in "[{":
                depth += 1
            elif depth == 0 and in_array and mark in ",]":
                return True
            elif depth > 0 and mark in "]}":
                depth -= 1
                if depth == 0 and not in_array:
                    self.at += 1
                    return True
            self.at += 1

    def may_grow(self) -> bool:
        return len(self.held) - self.at <= self._limit

    def too_long(self) -> Malformed:
        return Malformed(f"is longer than {self._limit:,} characters")


def _elements(text: _Text) -> Iterator[Record]:
    """The elements of the array at `at`, and of arrays that follow it, as when files are put together."""
    number = 0
    while text.next() == "[":
        text.at += 1
        while True:
            text.skip(_SPACE_AND_COMMAS)
            if text.next() == "":
                yield Record("the end", TRUNCATED)
                return
            if text.next() == "]":
                text.at += 1
                break
            number += 1
            value = text.value()
            if isinstance(value, Malformed) and not text.skip_value(in_array=True):
                yield Record(f"element {number}", TRUNCATED)
                return
            yield Record(f"element {number}", value)
        text.skip(_SPACE)
    if text.next():
        yield Record("after the array", Malformed("stands text that belongs to nothing"))


def _is_lines(text: _Text) -> bool:
    """Whether the first line is a value by itself. Moves nothing."""
    while not (0 <= (end := text.held.find("\n", text.at)) < len(text.held) - 1):
        if not text.may_grow() or not text.more():
            break
    if end < 0:
        return False
    if not isinstance(_parsed(text.held[text.at : end]), Malformed):
        return True
    # Or torn: what a second line begins with can go on with no document that is laid out.
    return text.held.startswith("{", end + 1)


def _lines(text: _Text, number: int) -> Iterator[Record]:
    while text.next() or text.more():
        line = text.line()
        if isinstance(line, Malformed):
            yield Record(f"line {number}", line)
        elif line and not line.isspace():
            yield Record(f"line {number}", _parsed(line))
        number += 1


def _documents(text: _Text) -> Iterator[Record]:
    number = 0
    while text.next():
        number += 1
        value = text.value()
        if isinstance(value, Malformed) and not text.skip_value(in_array=False):
            value = TRUNCATED
        yield Record(f"document {number}", value)
        text.skip(_SPACE)


def _one_by_itself(records: Iterator[Record]) -> Iterator[Record]:
    """The records; if there is only one, in place `document`."""
    first = next(records, None)
    if first is None:
        return
    second = next(records, None)
    if second is None:
        yield first._replace(place="document")
        return
    yield first
    yield second
    yield from records


def _parsed(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return Malformed(f"is not valid JSON: {error.msg} at its character {error.pos + 1:,}")
    except (RecursionError, ValueError) as error:
        return _unparsed(error)


def _unparsed(error: RecursionError | ValueError) -> Malformed:
    """Not JSON's fault: what Python refuses to build."""
    return Malformed("is nested too deeply" if isinstance(error, RecursionError) else "has a number of too many digits")
