"""Folders for an embedded Postgres, and one that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatledger.storage.embedded import EmbeddedPostgres
from tests.postgres_processes import QUICK, copied_root, empty_root, ready_root


@pytest.fixture
def empty() -> Iterator[Path]:
    with empty_root() as root:
        yield root


@pytest.fixture
def root() -> Iterator[Path]:
    with ready_root() as root:
        yield root


@pytest.fixture
def copied() -> Iterator[Path]:
    with copied_root() as root:
        yield root


@pytest.fixture
def database(root: Path) -> Iterator[EmbeddedPostgres]:
    database = EmbeddedPostgres(root, linger=0, settings=QUICK)
    yield database
    database.release()
