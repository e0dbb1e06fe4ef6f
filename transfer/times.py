"""When something was made, from whatever a source writes for it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

# The smallest number taken for milliseconds (chosen): as seconds it lies in the year 5138, as milliseconds in 1973.
_MILLISECONDS = 100_000_000_000
_LAST_YEAR = 9_000
# Eight digits are a date without hyphens, 20240131; as seconds they would lie before 1973.
_NUMBER = re.compile(r"\d{9,}(\.\d+)?")


def parse_time(value: Any) -> datetime | None:
    """The time in UTC; None where the source gives none that can be believed.

    Understood are seconds and milliseconds since 1970, as numbers or in a string, and ISO 8601 with `Z`, an offset, or
    no zone, which is taken for UTC. Zero and what lies before 1970 are what programs write for "unknown",
    and so is the end of the calendar, which in zones further east is beyond it.
    """
    try:
        if isinstance(value, str):
            text = value.strip()
            if not _NUMBER.fullmatch(text):
                time = datetime.fromisoformat(text)
                time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
                return time if 1970 <= time.year < _LAST_YEAR else None
            value = float(text)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return None
        time = datetime.fromtimestamp(value / 1000 if value >= _MILLISECONDS else value, UTC)
        return time if time.year < _LAST_YEAR else None
    except (ValueError, OverflowError, OSError):  # no date, or one that is out of range, NaN and infinity included
        return None
