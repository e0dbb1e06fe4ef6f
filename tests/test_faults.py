"""Faults, injected for real: each call ends in time, an unknown outcome is settled by repeating, nothing leaks.

Each is met a few times here; `python -m tests.reliability` runs the same ones many times.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatledger.storage import ConversationStore
from chatledger.storage.embedded import EmbeddedPostgres
from tests.driver import connect
from tests.lock_waits import until_waiting
from tests.patience import PATIENCE
from tests.postgres_processes import QUICK, ready_root
from tests.reliability import faults, full_disk, kills
from tests.reliability.checker import violations
from tests.reliability.crowd import crowd
from tests.reliability.doors import HttpDoor, StdioDoor
from tests.reliability.server_processes import http_servers

RECOVERY_SECONDS = 5.0  # the contract, C10


@pytest.fixture
def root() -> Iterator[Path]:
    """The folder of an embedded Postgres that runs."""
    with ready_root() as ready:
        server = EmbeddedPostgres(ready, linger=0, settings=QUICK)
        server.start()
        yield ready
        server.release()


# ---- killed ----------------------------------------------------------------------------------------------------------


async def test_killed_postmasters_and_backends_lose_and_double_nothing_and_are_back_within_5_seconds(
    root: Path,
) -> None:
    async with kills.instances(root) as ground:
        campaign = kills.Campaign(ground, seed=1)
        history = await campaign.run({"postmaster": 3, "backend": 2}, messages=1_000)
    assert violations(history) == []
    assert campaign.figures.kills == {"postmaster": 3, "backend": 2}
    assert statistics.median(campaign.figures.recovery["postmaster"]) < RECOVERY_SECONDS  # others use the machine, too


async def test_servers_over_http_killed_in_mid_append_lose_and_double_nothing(root: Path) -> None:
    async with kills.over_http(root) as ground:
        campaign = kills.Campaign(ground, seed=2)
        history = await campaign.run({"server": 2}, messages=500)
    assert violations(history) == []
    assert campaign.figures.unknown > 0


async def test_servers_over_stdio_killed_in_mid_append_lose_and_double_nothing(root: Path) -> None:
    async with kills.over_stdio(root, kills.names_of(3, 1)) as ground:
        campaign = kills.Campaign(ground, seed=3, users=1)
        history = await campaign.run({"server": 2}, messages=200)
    assert violations(history) == []


# ---- stopped, cut, absent, full --------------------------------------------------------------------------------------


async def test_while_postgres_is_stopped_each_call_ends_by_its_deadline_and_then_all_is_well(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.CALL_SECONDS", 1.5)
    await faults.stopped(root, 4, 2, deadline=1.5, longest=None)


async def test_an_append_whose_connection_breaks_before_or_after_commit_is_stored_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.PAUSES", (0.01, 0.02))
    figures = await faults.cuts(database_url, 5, 60)
    assert figures["told unknown"] > 0


async def test_calls_wait_for_a_database_that_is_starting_up_and_write_once(database_url: str) -> None:
    await faults.cold_starts(database_url, 6, 4, longest=0.8)


async def test_when_all_connections_are_stuck_callers_are_told_soon_and_served_as_soon_as_one_is_free(
    database_url: str,
) -> None:
    await faults.exhausted(database_url)


@pytest.mark.parametrize("case", full_disk.CASES)
def test_a_full_disk_loses_nothing_and_is_forgotten_when_there_is_room_again(case: str) -> None:
    figures = full_disk.run(case)
    assert figures["recovery"] < full_disk.SECONDS / 4
    if case == "data":
        assert "no space left" in figures["refusal"]
        assert figures["loads while full"] is True


async def test_clock_jumps_change_no_order_and_no_time_goes_back(database_url: str) -> None:
    await faults.clock_jumps(database_url, 7, 20)


async def test_an_append_that_waits_behind_a_slow_one_is_sent_when_that_has_ended(
    store: ConversationStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.append_batcher.PLACE_SECONDS", 0.02)
    conversation, _ = await store.create_conversation("alice")
    blocker: Any = await connect(database_url)
    try:
        await blocker.execute("BEGIN; SELECT FROM chatledger.conversations WHERE user_id = 'alice' FOR NO KEY UPDATE")
        calls = [asyncio.create_task(store.append_message("alice", conversation.id, faults.keyed("1")))]
        await until_waiting(database_url, 1)
        calls.append(asyncio.create_task(store.append_message("alice", conversation.id, faults.keyed("2"))))
        done, _ = await asyncio.wait(calls, timeout=0.1)
        assert not done
    finally:
        await blocker.close()
    receipts = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
    assert [receipt.seq for receipt in receipts] == [1, 2]


# ---- callers ---------------------------------------------------------------------------------------------------------


async def test_a_storm_of_cancels_mixes_no_answers_up_and_loses_no_connection(database_url: str) -> None:
    await faults.cancel_storm(database_url, 8, 1_000)


async def test_callers_over_http_that_go_away_and_one_key_through_two_processes(database_url: str) -> None:
    async with http_servers(2, DATABASE_URL=database_url) as servers:
        doors = [HttpDoor(server) for server in servers]
        await faults.callers_gone(doors[0], "alice", database_url, 9, 100)
        await faults.same_key(doors, "alice", 9, 50)


async def test_callers_over_stdio_that_give_up_or_end_the_input(database_url: str) -> None:
    door = StdioDoor("alice", DATABASE_URL=database_url)
    try:
        await faults.callers_gone(door, "alice", database_url, 10, 100)
    finally:
        await door.aclose()
    await faults.client_leaves(database_url, 10, 1)


async def test_500_conversations_at_once_are_served_without_an_error(database_url: str) -> None:
    figures = await crowd(database_url, 500)
    assert figures["errors"] == {}
    assert figures["calls"] == 500 * 5
