"""A boot manifest says what it means, or where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from skep.boot.manifest import ManifestError, files_of, parse, read

HEAD = 'name = "g"\narch = "x86_64"\nkernel = "kernel"\n'
ROOT = '[[milestone]]\nname = "root"\nentry = "rootserver"\n'


def test_what_is_not_said_is_as_the_architecture_needs_it() -> None:
    manifest = parse(HEAD + ROOT)
    assert (manifest.machine, manifest.cpu, manifest.shift) == ("pc", "qemu64,+pdpe1gb", 4)
    arm = parse(HEAD.replace("x86_64", "aarch64") + ROOT)
    assert (arm.machine, arm.cpu) == ("virt", "cortex-a53")


def test_its_files_are_each_named_once() -> None:
    manifest = parse(HEAD + 'modules = ["rootserver", "data"]\n' + ROOT)
    assert files_of(manifest) == ("kernel", "rootserver", "data")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD, "missing required field `milestone`"),
        ("name = ", "Invalid value"),
        (HEAD + "shift = 11\n" + ROOT, "shift: Expected `int` <= 10"),
        (HEAD + "colour = 1\n" + ROOT, "unknown field `colour`"),
        (HEAD + ROOT + ROOT, "milestone root: there are two"),
        (HEAD + '[[milestone]]\nname = "a"\n', "expected one of line, symbol, entry"),
        (HEAD + '[[milestone]]\nname = "a"\nsymbol = "main"\n', "symbol without elf"),
        (HEAD + '[[milestone]]\nname = "a"\nline = "("\n', "milestone a: line = '('"),
        (HEAD + '[[milestone]]\nname = "a"\nline = "x"\nmax_ms = 3\n', "a line is not exact"),
        (
            HEAD + ROOT + '[[wait]]\nname = "w"\nfrom = "root"\nto = "there"\n',
            "wait w: there: expected a milestone",
        ),
        (
            HEAD + ROOT + '[[wait]]\nname = "w"\nfrom = "root"\nto = "root"\n',
            "wait w: root comes before root",
        ),
        (HEAD.replace('"kernel"', '"../kernel"') + ROOT, "../kernel: expected a name below"),
        (HEAD.replace('"kernel"', '"/kernel"') + ROOT, "/kernel: expected a name below"),
        (HEAD.replace('"kernel"', '"a,readonly=on"') + ROOT, "without a comma"),
        (HEAD + 'forbid = ["["]\n' + ROOT, "forbid = '['"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ManifestError) as error:
        parse(text)
    assert told in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "boot.toml"
    path.write_text(HEAD + ROOT)
    with pytest.raises(ManifestError, match="kernel: there is no such file beside it"):
        read(path)
