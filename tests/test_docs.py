"""The documentation says what the code says: its generated parts are compared, UPDATE=1 rewrites them."""

import asyncio
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from skep.boot.classes import CLASSES
from skep.fs.errors import E, FsError
from skep.fs.local import local
from skep.namespaces.jobs.record import MOVES, TERMINAL
from skep.native.kernels.page import sections

ROOT = Path(__file__).parent.parent
NOUNS = [
    "jobs", "dlq", "pools", "locks", "nodes", "artifacts", "config", "schemas",
    "tenants", "triggers", "sessions", "trust", "tokens", "policy", "log", "validator", "boot",
    "gpu",
]  # fmt: skip
MARK = "<!-- {} generated: {} -->"


def tree() -> str:
    parts = [import_module("skep.namespaces.tree").__doc__ or ""]
    parts += [import_module(f"skep.namespaces.{noun}.files").__doc__ or "" for noun in NOUNS]
    sections = []
    for part in parts:
        title, _, body = part.strip().partition("\n")
        heading = title.rstrip(".")
        sections.append(f"### {heading[0].upper()}{heading[1:]}\n\n```\n{body.strip(chr(10))}\n```\n")
    return "\n".join(sections)


def errors() -> str:
    rows = [f"| {e.name} | `{e.value.text}` | {e.value.errno} | {e.value.http} |" for e in E]
    return "\n".join(["| class | text begins | errno | HTTP |", "|---|---|---|---|", *rows]) + "\n"


def life() -> str:
    """The jobs' state machine, as a picture and as a table."""
    arrows = [f"    {of} --> {to}: {why}" for of, moves in MOVES.items() for to, why in moves.items()]
    ends = [f"    {state} --> [*]" for state in sorted(TERMINAL)]
    picture = "\n".join(["stateDiagram-v2", "    [*] --> queued: submit", *arrows, *ends])
    head = f"| from, to | {' | '.join(MOVES)} |"
    rows = [f"| **{of}** | {' | '.join(moves.get(to, '') for to in MOVES)} |" for of, moves in MOVES.items()]
    table = "\n".join([head, "|---" * (len(MOVES) + 1) + "|", *rows])
    return f"```mermaid\n{picture}\n```\n\n{table}\n"


def generated(path: Path, name: str, content: str) -> None:
    """Assert that ``path`` holds ``content`` between the marks called ``name``."""
    begin, end = MARK.format("begin", name), MARK.format("end", name)
    text = path.read_text()
    whole = f"{begin}\n{content}{end}\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n", re.DOTALL)
    found = pattern.search(text)
    if os.environ.get("UPDATE"):
        path.write_text(pattern.sub(lambda _: whole, text) if found else f"{text.rstrip()}\n\n{whole}")
        return
    assert found is not None, f"{path} has no part called {name}; UPDATE=1 adds it"
    assert whole == found.group(), f"{path} is not what the code says; UPDATE=1 rewrites it"


def test_the_errors_are_those_of_the_code() -> None:
    generated(ROOT / "docs" / "NAMESPACE.md", "errors", errors())


def test_the_tree_is_that_of_the_code() -> None:
    generated(ROOT / "docs" / "NAMESPACE.md", "tree", tree())


def test_the_life_of_a_job_is_that_of_the_table() -> None:
    generated(ROOT / "docs" / "JOBS.md", "life", life())


def test_the_causes_are_those_of_the_table() -> None:
    rows = [f"| {row.status} | `{cause.value}` | {row.meaning} |\n" for cause, row in CLASSES.items()]
    head = "| status | cause | |\n|---|---|---|\n"
    generated(ROOT / "docs" / "BOOT.md", "causes", head + "".join(rows))


def test_the_kernels_are_those_of_the_table() -> None:
    generated(ROOT / "docs" / "KERNELS.md", "catalogue", sections())


def test_the_ten_line_program_is_the_example() -> None:
    program = (ROOT / "examples" / "hello.py").read_text()
    generated(ROOT / "README.md", "hello", f"```python\n{program}```\n")


def test_the_control_file_of_the_guide_works() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "SERVING.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)

    async def story() -> bytes:
        async with await local(names["TREE"]) as client:
            lamp = await client.open("lamp", "rw")
            await lamp.write(0, b"blink times=3\n")
            with pytest.raises(FsError):
                await client.write_file("lamp", b"blnk\n")
            return await lamp.read(0, 100)

    assert b"blinked 3\n" == asyncio.run(story())


def test_every_test_that_the_security_page_names_is_there() -> None:
    named = set(re.findall(r"`([a-z_]+/test_\w+\.py)::(\w+)`", (ROOT / "docs" / "SECURITY.md").read_text()))
    assert len(named) > 40
    for module, name in sorted(named):
        code = (ROOT / "tests" / module).read_text()
        assert re.search(rf"^(async )?def {name}\(|^{name} = ", code, re.MULTILINE), f"{module}::{name}"
