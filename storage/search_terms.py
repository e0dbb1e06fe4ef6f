"""What people type into a search -> what the statement looks for: pure functions, for which no query is malformed.

A word is found anywhere in a text, in any case; one of fewer than three letters, and a phrase in quotes, only as whole
words. `-word` and `-"a phrase"` leave out the messages that have it as whole words. Scripts that write no spaces have
no whole words: there a term is found wherever its characters stand.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from chatledger.storage import limits
from chatledger.storage.errors import InvalidArgument
from chatledger.storage.search_text import SPACELESS, indexed

DRIVERS: Final = 4  # words that the index is asked for; the rest is compared in what it finds (chosen: few by then)
_TRIGRAM: Final = 3  # letters in a row that a trigram takes

# An optional minus, then a phrase in straight or typographic quotes, or whatever stands up to the next space.
_TOKEN: Final = re.compile(r'(-?)(?:"([^"]*)"|[\u201c\u201d\u201e]([^\u201c\u201d\u201e]*)[\u201c\u201d]|(\S+))')
_AROUND: Final = re.compile(
    # What a sentence puts around a word. A plus, a number sign or a dollar stays: `C++`, `C#`, `$HOME`.
    "["
    + re.escape(".,;:!?'\"`()[]{}<>\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u2026")
    + "\u00a1\u00bf\u060c\u061b\u061f\u06d4\u0964\u0965\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01\uff08\uff09\uff0c"
    + "\uff0e\uff1a\uff1b\uff1f\uff3b\uff3d\uff5b\uff5d\uff61-\uff65]+"
)
_SPACELESS: Final = re.compile(f"[{SPACELESS}]")
_GAP: Final = "[^[:alnum:]]+"  # between the words of a phrase: space, punctuation, the underscore of an identifier
_EDGE: Final = f"[^[:alnum:]]|[{SPACELESS}]"
_LIKE_ESCAPES: Final = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\"})
_REGEX_ESCAPES: Final = str.maketrans(
    {chr(code): f"\\{chr(code)}" for code in range(33, 127) if not chr(code).isalnum()}
)


class Term(NamedTuple):
    """A word, or a phrase of several, as it was typed; what stands between its words is of no account."""

    words: tuple[str, ...]
    quoted: bool = False

    @property
    def whole_only(self) -> bool:
        """Whether it counts as whole words only: in quotes, or too short to be looked up inside others."""
        return self.quoted or not self.has_trigram

    @property
    def has_trigram(self) -> bool:
        """Whether the index can be asked for any of its words."""
        return any(map(_has_trigram, self.words))

    def part(self) -> str:
        """An ILIKE pattern for its words in their order, with anything around and between them."""
        return f"%{'%'.join(word.translate(_LIKE_ESCAPES) for word in self.words)}%"

    def whole(self) -> str:
        """A regular expression for it as whole words, next to each other."""
        between = _GAP.join(word.translate(_REGEX_ESCAPES) for word in self.words)
        before = f"(?:^|{_EDGE})" if _is_edged(self.words[0][0]) else ""
        after = f"(?:$|{_EDGE})" if _is_edged(self.words[-1][-1]) else ""
        return f"(?:{before}{between}{after})"


class Search(NamedTuple):
    """What one statement compares, as its arguments; patterns of ILIKE and regular expressions, all in any case."""

    parts: list[str]
    """Each must be in the text."""
    required: list[str]
    """Regular expressions, each of which must match too: terms that count as whole words only."""
    excluded: str | None
    """A regular expression that must not match."""
    drivers: list[str]
    """Patterns that the index is asked for; none where it cannot be asked."""
    shown: str
    """A regular expression for what a snippet shows: any of the terms."""


def parse(query: str) -> tuple[list[Term], list[Term]]:
    """The terms that must be there and those that must not, each once, in their order.

    Punctuation around a word is dropped, and a word of nothing else; a phrase in quotes is kept as it stands.

    Raises:
        InvalidArgument: more than 32 terms.
    """
    wanted: dict[Term, None] = {}
    unwanted: dict[Term, None] = {}
    for minus, straight, curved, word in _TOKEN.findall(query):
        phrase = (straight or curved).split()
        term = Term(tuple(phrase), quoted=True) if phrase else Term(tuple(_bare(word)))
        if term.words:
            (unwanted if minus and not word.startswith("-") else wanted)[term] = None
    if len(wanted) + len(unwanted) > limits.SEARCH_TERMS:
        raise InvalidArgument(
            f"query has {len(wanted) + len(unwanted)} terms; it may have {limits.SEARCH_TERMS}: "
            "put words that belong together in quotes, or search for fewer"
        )
    return list(wanted), list(unwanted)


def search_for(wanted: list[Term], unwanted: list[Term]) -> Search:
    """What a statement looks for; `wanted` must not be empty."""
    bound = [term for term in wanted if term.whole_only]
    # By the word, not the phrase: what the index names and a pattern of several words then refuses would not count, and
    # nothing would bound it.
    words = {indexed(word).translate(_LIKE_ESCAPES) for term in wanted for word in term.words if _has_trigram(word)}
    return Search(
        parts=[term.part() for term in wanted],
        required=[term.whole() for term in bound],
        excluded="|".join(term.whole() for term in unwanted) or None,
        drivers=[f"%{word}%" for word in sorted(words, key=lambda word: (-len(word), word))[:DRIVERS]],
        shown="|".join(
            term.whole() if term.whole_only else _GAP.join(word.translate(_REGEX_ESCAPES) for word in term.words)
            for term in wanted
        ),
    )


def _bare(word: str) -> list[str]:
    """The word without the punctuation around it; nothing where that is all of it."""
    while (found := _AROUND.match(word)) is not None:
        word = word[found.end() :]
    while word and _AROUND.match(word[-1]):
        word = word[:-1]
    return (
        [word]
        if any(unicodedata.category(char)[0] in "LNM" or unicodedata.category(char) == "So" for char in word)
        else []
    )


def _is_edged(char: str) -> bool:
    """Whether a whole word that begins or ends with this character must not go on."""
    return unicodedata.category(char)[0] in "LNM" and not _SPACELESS.match(char)


def _has_trigram(word: str) -> bool:
    """Whether three letters or digits stand in a row, or one character that the index spreads over three.

    Marks end a row, as they do for the trigrams.
    """
    row = 0
    for char in word:
        row = row + 1 if unicodedata.category(char)[0] in "LN" else 0
        if row == _TRIGRAM or _SPACELESS.match(char):
            return True
    return False
