"""The house rules that a machine can check: who imports whom, what the protocol core keeps out, what is not
used, what the pages promise."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from skep.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = ("native", "trace", "fs", "boot", "namespaces", "validator", "roles", "sim", "cli", "__main__")
LOOSE = {"bench": "cli", "worker": "roles"}  # modules beside the rooms, and the room they may import like
CORE = ("wire", "session", "client", "messages", "idiom")
CORE_KEEPS_OUT = {"asyncio", "ssl", "socket", "time", "random", "select", "threading"}
DRAWERS = {"utils", "util", "helpers", "common", "managers", "models", "types", "misc"}
MODULES = sorted((ROOT / "skep").rglob("*.py"))


def tracked() -> list[Path]:
    """The files under version control, or all that look like it where there is none."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    names = done.stdout.decode().split("\0")[:-1]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the full name of every import, also those within functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, node.module or ""


def room_of(module: str) -> str:
    """``skep.fs.wire`` -> fs."""
    name = module.split(".")[1]
    return LOOSE.get(name, name)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_an_import_points_left_or_stays_in_its_room() -> None:
    for path in MODULES:
        if path.name != "__init__.py":
            here = ROOMS.index(room_of(module_of(path)))
            for line, name in imports(path):
                left = not name.startswith("skep.") or ROOMS.index(room_of(name)) <= here
                assert left, f"{path}:{line}: {name}"


def test_the_nouns_do_not_import_each_other() -> None:
    nouns = {path.name for path in (ROOT / "skep" / "namespaces").iterdir() if (path / "core.py").exists()}
    assert len(nouns) >= 4
    for noun in nouns:
        for path in (ROOT / "skep" / "namespaces" / noun).glob("*.py"):
            for line, name in imports(path):
                parts = name.split(".")
                if parts[:2] == ["skep", "namespaces"] and len(parts) > 2:
                    assert parts[2] == noun or parts[2] not in nouns, f"{path}:{line}: {name}"


@pytest.mark.parametrize("name", CORE)
def test_the_protocol_core_is_a_machine_fed_with_bytes(name: str) -> None:
    path = ROOT / "skep" / "fs" / f"{name}.py"
    for line, imported in imports(path):
        assert imported.split(".")[0] not in CORE_KEEPS_OUT, f"{path}:{line}: {imported}"


def test_time_and_chance_come_from_the_clock() -> None:
    for path in MODULES:
        text = path.read_text()
        if path.name != "clock.py":
            assert not re.search(r"\btime\.time(_ns)?\(|\bimport random\b|datetime\.now\(", text), path


def test_every_module_says_what_it_is() -> None:
    for path in [*MODULES, *(ROOT / "examples").glob("*.py")]:
        assert ast.get_docstring(parsed(path)), path


def test_a_room_is_entered_by_its_modules() -> None:
    """``__init__.py`` holds a docstring and nothing else."""
    for path in (ROOT / "skep").rglob("__init__.py"):
        assert 1 == len(parsed(path).body), path


def test_no_module_is_a_drawer() -> None:
    assert not {path.stem for path in MODULES} & DRAWERS


def defined(path: Path) -> Iterator[str]:
    """The public names that a module defines: functions, classes, constants, and methods."""
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_nothing_stands_there_that_nothing_uses() -> None:
    """A name used by tests alone counts as used: it is then what is tested."""
    words: dict[str, int] = {}
    for folder in ("skep", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for word in re.findall(r"[A-Za-z_]\w*", path.read_text()):
                words[word] = words.get(word, 0) + 1
    unused = [
        f"{module_of(path)}.{name}"
        for path in MODULES
        for name in defined(path)
        if words[name] == 1 and not name.startswith("__") and not name.endswith("_command")
    ]
    assert [] == unused


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    for path in tracked():
        text = path.read_text(errors="ignore")
        assert str(ROOT) not in text, path
        assert not re.search(r"(?<![\w.])/(home|Users)/\w+", text), path


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code(page: Path) -> Iterator[str]:
    """What a page shows as code: indented or fenced blocks, and words in backticks."""
    text = page.read_text()
    yield from re.findall(r"`([^`\n]+)`", text)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_a_page_shows_exist(page: Path) -> None:
    for line in code(page):
        said = re.match(r"(?:\$ )?(?:sudo )?(skep|make) ([a-z]+)\b", line)
        if said is not None:
            assert said[2] in (COMMANDS if said[1] == "skep" else TARGETS), f"{page}: {line}"
