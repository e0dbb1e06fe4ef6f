"""The page on reliability says what the runs said."""

from __future__ import annotations

from tests.reliability.page import PAGE, with_tables


def test_the_tables_of_the_page_are_those_of_the_results_beside_the_benchmarks() -> None:
    page = PAGE.read_text()
    assert with_tables(page) == page
