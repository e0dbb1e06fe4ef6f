"""The text that search looks at, as SQL for the index and in Python for what people type: one rule, told twice.

Trigrams need three letters, and words of two are the rule in scripts that write no spaces. So each character of such a
script is followed by a filler letter, and each run of them begins with one: in `ǂ你ǂ好ǂ` a single character is the
trigram `ǂ你ǂ`, and two neighbours are `你ǂ好`. Runs get spaces around them, so that a word of another script beside
them keeps its edges. Text in other scripts stays as it is. Changing any of this is a migration: the index holds it.
"""

from __future__ import annotations

import re
from typing import Final

# The beginning of a message that is searched. Chosen: the longest text that a tool takes unless the installation says
# otherwise, so that there all of it is found; a bound, as unpacking and comparing a megabyte costs each search 30 ms.
SEARCHED_CHARS: Final = 10_000

# A letter, or trigrams would drop it, that no text holds but one about click languages.
FILLER: Final = "\u01c2"

# Thai and Lao, Burmese, Khmer, then from the CJK radicals over kana and ideographs to the compatibility forms; Hangul
# too, whose particles are written onto the word. Postgres and Python read these escapes alike.
SPACELESS: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3031-\u3035\u3041-\u318f\u31a0-\u31bf"
    r"\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    r"\U00020000-\U0003ffff"
)

SEARCHED: Final = f"left(content, {SEARCHED_CHARS})"
INDEXED: Final = (
    f"regexp_replace(regexp_replace({SEARCHED}, '([{SPACELESS}]+)', ' {FILLER}\\1 ', 'g'), "
    f"'([{SPACELESS}])', '\\1{FILLER}', 'g')"
)
"""The expression of the index `messages_search`; a statement must repeat it to the letter to be served by it."""

_RUN: Final = re.compile(f"[{SPACELESS}]+")


def indexed(term: str) -> str:
    """What `INDEXED` makes of a term, wherever in a text it stands: without the spaces at its own ends."""
    made = _RUN.sub(lambda run: f" {FILLER}{FILLER.join(run[0])}{FILLER} ", term)
    if _RUN.match(term):
        made = made[1:]
    return made[:-1] if term and _RUN.match(term[-1]) else made
