"""Histories of the real store under faults keep the contract's guarantees. `python -m tests.reliability` makes more."""

from __future__ import annotations

import pytest

from tests.reliability import real
from tests.reliability.checker import violations

WANTED_UNKNOWN = 20  # a history with fewer unknown outcomes tested nothing


@pytest.mark.parametrize("seed", [1, 2])
async def test_instances_of_the_store_that_are_cut_off_and_cancelled_keep_every_guarantee(
    database_url: str, seed: int
) -> None:
    history = await real.history_of_instances(database_url, seed)
    assert violations(history) == []
    assert history.count("unknown") > WANTED_UNKNOWN


async def test_server_processes_that_are_killed_and_cut_off_keep_every_guarantee(database_url: str) -> None:
    async with real.processes(database_url) as processes:
        history = await processes.history(3)
    assert violations(history) == []
    assert history.count("unknown") > WANTED_UNKNOWN
