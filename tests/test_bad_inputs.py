"""Whatever is sent for an argument, the answer is the contract's, and repeats nothing of it."""

from __future__ import annotations

import pytest

from tests.bad_inputs import attack
from tests.conftest import OpenClient


@pytest.mark.parametrize("seed", [1, 2])
async def test_bad_values_are_refused_by_a_code_of_the_contract_or_stored_as_they_are(
    client_of: OpenClient, seed: int
) -> None:
    async with client_of("alice") as alice:
        await alice.call_tool("create_conversation", {})
        ended = await attack(alice, 300, seed)
        assert len(ended) >= 6, "of every kind"
        assert ended["ok"] > 10
