"""HTML as the text that a reader sees: paragraphs, lists, tables and code keep their lines."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_UNSEEN = frozenset({"script", "style", "head", "template", "noscript"})
# Elements that begin and end a line; those of the second set are set apart by an empty one.
_LINES = frozenset({"div", "li", "tr", "dt", "dd", "section", "article", "header", "footer", "figcaption", "hr"})
_APART = frozenset({"p", "ul", "ol", "dl", "table", "pre", "blockquote", *(f"h{level}" for level in range(1, 7))})
_SPACE = re.compile(r"[ \t\r\n\f]+")


def html_text(html: str) -> str:
    """The text of a piece of HTML, entities decoded, without blank lines at its ends. Any input is read somehow."""
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:  # how html.parser refuses a declaration that it does not know, `<![x[`
        return html_text(html.replace("<!", "&lt;!"))
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._text: list[str] = []
        self._unseen = 0
        self._verbatim = 0
        self._lists: list[int | None] = []
        """The number of the last item of each list around; None where items have no number."""
        self._breaks = 2  # line ends that the text has by now, up to two
        self._cells = 0

    def text(self) -> str:
        return "".join(self._text).strip("\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        if tag == "br":
            self._write("\n")
        elif tag in _APART:
            self._break(1 if self._lists and tag in ("ul", "ol", "p") else 2)
        elif tag in _LINES:
            self._break(1)
        if tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._write("  " * (len(self._lists) - 1) + self._mark())
            self._breaks = 2  # a paragraph in it begins on the same line
        elif tag == "tr":
            self._cells = 0
        elif tag in ("td", "th"):
            if self._cells:
                self._write(" | ")
            self._cells += 1
        elif tag == "pre":
            self._verbatim += 1
            self._write("```\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        if tag == "pre" and self._verbatim:
            self._verbatim -= 1
            self._break(1)
            self._write("```")
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        if tag in _APART:
            self._break(1 if self._lists else 2)
        elif tag in _LINES:
            self._break(1)

    def handle_data(self, data: str) -> None:
        if not self._verbatim:
            data = _SPACE.sub(" ", data)
            if self._breaks:
                data = data.removeprefix(" ")
        self._write(data)

    def _mark(self) -> str:
        """What stands before an item of the innermost list."""
        if not self._lists or self._lists[-1] is None:
            return "- "
        self._lists[-1] += 1
        return f"{self._lists[-1]}. "

    def _break(self, lines: int) -> None:
        if self._breaks < lines:
            self._write("\n" * (lines - self._breaks))

    def _write(self, text: str) -> None:
        if text and not self._unseen:
            self._text.append(text)
            ends = len(text) - len(text.rstrip("\n"))
            self._breaks = min(2, ends + self._breaks if ends == len(text) else ends)
