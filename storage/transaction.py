"""Several statements as one atomic step, for bulk work; the limits on the time of a call do not apply in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from chatledger.storage import row_security
from chatledger.storage.errors import translate
from chatledger.storage.query import Query

# A batch with a conversation of 100,000 messages takes longer than any call may; an export waits for whoever reads it.
# A plan for any arguments does not know how many keys there are, and looks through all that a user has (measured: 7 x
# for 500 keys of 10,000); to plan anew is nothing here.
_WITHOUT_HURRY: Final = (
    "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; "
    "SET LOCAL lock_timeout = '60s'; SET LOCAL plan_cache_mode = force_custom_plan"
)


class Transaction:
    """An open transaction on the driver's connection. Its methods raise StorageErrors only."""

    def __init__(self, driver: Any, *, fenced: bool = False) -> None:
        self._driver, self._fenced = driver, fenced
        self._scope: tuple[str, str, str] | None = None

    async def fetch(self, query: Query) -> list[Any]:
        """The rows of a statement."""
        try:
            if self._fenced and self._scope != row_security.scope(query):
                await row_security.enter(self._fetch, query)
                self._scope = row_security.scope(query)
            rows = await self._fetch(query)
        except Exception as exc:
            raise translate(exc) from exc
        return rows

    async def _fetch(self, query: Query) -> list[Any]:
        rows: list[Any] = await self._driver.fetch(query.sql, *query.args, timeout=None)
        return rows

    async def copy(self, table: str, columns: Sequence[str], records: Iterable[tuple[Any, ...]]) -> None:
        """Add rows to a table of ours by COPY, the fastest way in; jsonb values are given as text.

        Under row security, which knows no COPY, by INSERT: they must be of the user whom the last statement was about.
        """
        schema, name = table.split(".")
        try:
            if self._fenced:
                values = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
                added = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608  # of our own names
                await self._driver.executemany(added, records, timeout=None)
                return
            await self._driver.copy_records_to_table(
                name, schema_name=schema, columns=columns, records=records, timeout=None
            )
        except Exception as exc:
            raise translate(exc) from exc


@contextlib.asynccontextmanager
async def transaction(driver: Any, *, snapshot: bool, fenced: bool = False) -> AsyncIterator[Transaction]:
    """Committed when the block ends, undone when it raises. `snapshot`: reads only, all from one moment."""
    begun = driver.transaction(isolation="repeatable_read" if snapshot else None, readonly=snapshot)
    try:
        await begun.start()
        await driver.execute(_WITHOUT_HURRY)
    except Exception as exc:
        raise translate(exc) from exc
    try:
        yield Transaction(driver, fenced=fenced)
    except BaseException:
        with contextlib.suppress(Exception):  # a connection that is gone undoes it as well
            await begun.rollback()
        raise
    try:
        await begun.commit()
    except Exception as exc:
        raise translate(exc) from exc
