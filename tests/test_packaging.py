"""The wheel: all of the four folders, under one name, and it runs from there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.patience import PATIENCE

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("server", "storage", "transfer", "migrations")
BUILD_SECONDS = 180  # with an empty cache it fetches setuptools; from the cache it takes two seconds


def uv(*arguments: str | Path, cwd: Path) -> None:
    """Run uv with the cache of the person who runs the tests: their HOME is hidden from the tests."""
    found = shutil.which("uv")
    assert found is not None, "pip install uv"
    cache = os.environ.get("UV_CACHE_DIR") or f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/uv"
    command = [found, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"UV_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy of what a clone holds: in the checkout, files of an earlier build would get into it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / file, copy)
    uv("build", "--wheel", "--quiet", "--python", sys.executable, "--out-dir", out, cwd=copy)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it, and nothing else; what it depends on is lent by the present one."""
    environment = tmp_path_factory.mktemp("fresh") / "venv"
    uv("venv", "--quiet", "--python", sys.executable, environment, cwd=environment.parent)
    assert wheel.filename
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--no-deps", "--python", python, wheel.filename, cwd=environment.parent)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    lent = [path for path in Path(find_location("mcp")).parent.iterdir() if not ours(path)]
    for path in lent:
        if not (site_packages / path.name).exists():
            (site_packages / path.name).symlink_to(path)
    return environment


def find_location(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def ours(path: Path) -> bool:
    """Whether it is part of the present, editable installation."""
    return "chatledger" in path.name or path.suffix == ".pth"


def test_the_wheel_holds_every_module_of_the_tree_and_no_other(wheel: zipfile.ZipFile) -> None:
    in_tree = {
        f"chatledger/{path.relative_to(CHECKOUT).as_posix()}"
        for folder in FOLDERS
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree
    assert {name for name in in_wheel if not name.endswith(".py")} == {
        "chatledger/migrations/script.py.mako",
        *(f"chatledger/{folder}/py.typed" for folder in FOLDERS),
    }
    assert len(in_wheel) > 30


def test_the_wheel_has_one_top_level_name_and_one_command(wheel: zipfile.ZipFile) -> None:
    info = f"chatledger-{version('chatledger')}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"chatledger", info}
    assert wheel.read(f"{info}/top_level.txt") == b"chatledger\n"
    commands = "[console_scripts]\nchatledger = chatledger.server.cli:main\n"
    assert wheel.read(f"{info}/entry_points.txt").decode() == commands
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_wheel_runs_in_an_environment_of_its_own(installed: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        program = [str(installed / "bin" / command[0]), *command[1:]]
        done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("chatledger", "--version") == f"chatledger {version('chatledger')}\n"
    where = "import chatledger.server.cli, chatledger.storage as s; print(s.__file__)"
    assert run("python", "-c", where).startswith(str(installed))
    assert "CREATE TABLE chatledger.messages" in run("chatledger", "migrate", "--sql")


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_can_be_imported_by_its_bare_name(installed: Path, tmp_path: Path, name: str) -> None:
    for python in (installed / "bin" / "python", Path(sys.executable)):
        command = [str(python), "-c", f"import {name}"]
        done = subprocess.run(
            command, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 1
        assert f"No module named '{name}'" in done.stderr
