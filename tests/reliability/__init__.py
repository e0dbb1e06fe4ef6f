"""Never lose, never double, never leak: histories, a checker of them, and faults that are injected for real.

`uv run python -m tests.reliability` is the long form; the suite runs a quick one of each part.
"""
