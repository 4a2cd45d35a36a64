"""Scenarios and BootInfo of a boot: what must be there is checked, and what is not is told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lab import manifest

from skep.__main__ import run
from skep.boot.classes import Class, Fault, Verdict
from skep.boot.manifest import ManifestError, parse
from skep.boot.scenario import Expected, Interrupt, Scenario, manifest_of, read, unmet

BOTH = ("x86_64", "aarch64")
PAGE = '[bootinfo]\nsymbol = "bootinfo"\nelf = "rootserver"\n'
HEAD = 'name = "g"\narch = "x86_64"\nkernel = "kernel"\n[[milestone]]\nname = "root"\nentry = "rootserver"\n'


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Path:
    """The images, to be changed."""
    shutil.copytree(images, tmp_path / "images")
    return tmp_path / "images"


def test_a_scenario_changes_the_manifest() -> None:
    scenario = Scenario("a", "do=this", "reset", forbid=("no",))
    made = manifest_of(parse('cmdline = "do=that"\nforbid = ["never"]\n' + HEAD + PAGE), scenario)
    assert (made.cmdline, made.expect, made.forbid, made.bootinfo) == (
        "do=this",
        "reset",
        ("never", "no"),
        None,
    )
    assert manifest_of(parse('cmdline = "do=that"\n' + HEAD), Scenario("a")).cmdline == "do=that"


ENDED = Verdict(Class.USER_FAULT, "", fault=Fault("vm data", 0x10, 0x400080, where="root+0x80"))


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        (Scenario("a", fault=Expected("vm data", 0x10, "root"), demand=("^two$",)), []),
        (Scenario("a", demand=("^ONE", "^two", "3")), ["no line of '^ONE' was", "no line of '3'"]),
        (Scenario("a", fault=Expected("vm code")), ["the fault is vm data, expected vm code"]),
        (Scenario("a", fault=Expected(address=0)), ["the fault is at 0x10, expected 0x0"]),
        (Scenario("a", fault=Expected(function="main")), ["the fault is in root+0x80, expected main"]),
        (Scenario("a", interrupts=(Interrupt(0x20, 3, 3), Interrupt(least=4))), []),
        (Scenario("a", interrupts=(Interrupt(0x21),)), ["0 interrupts of vector 0x21, expected at least 1"]),
        (Scenario("a", interrupts=(Interrupt(most=2),)), ["4 interrupts, expected at most 2"]),
    ],
)  # fmt: skip
def test_what_was_demanded_and_did_not_come_is_told(scenario: Scenario, told: list[str]) -> None:
    found = unmet(scenario, b"one\r\ntwo", ENDED, {0x20: 3, 0x9D: 1})
    assert len(found) == len(told)
    assert all(each.startswith(begin) for each, begin in zip(found, told, strict=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "about"),
        ("about = ", "Invalid value"),
        ('about = "a"\nexpect = "doom"\n', "expect = 'doom': expected one of reached, qemu_start_failed"),
        ('about = "a"\n[fault]\nkind = "vm data"\n', "expected expect = 'user_fault' with it"),
        ('about = "a"\ndemand = ["("]\n', "'(':"),
        ('about = "a"\n[[interrupt]]\nvector = 3\n', ">= 32"),
        ('about = "a"\n[[interrupt]]\nvector = 32\n', "aarch64 has one for all, expected none"),
        ('about = "a"\ncolour = 1\n', "unknown field `colour`"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "a.toml").write_text(text)
    with pytest.raises(ManifestError, match=re.escape(told)):
        read(tmp_path, "a", "aarch64")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[bootinfo]\n", "expected one of symbol, address, physical"),
        ('[bootinfo]\nsymbol = "a"\n', "symbol without elf"),
        ('[bootinfo]\nsymbol = "a"\nelf = "b"\naddress = 1\n', "expected one of"),
    ],
)
def test_what_is_wrong_with_the_place_of_bootinfo_is_told(text: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        parse(HEAD + text)


@pytest.mark.slow
@pytest.mark.parametrize("arch", BOTH)
def test_bootinfo_is_read_from_the_guest(
    own: Path, arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, arch, tail=PAGE)
    out = tmp_path / "out"
    assert run(["boot", "run", "--boots", "0", "--json", "--out", str(out), str(path)]) == 0
    said = json.loads(capsys.readouterr().out)["bootinfo"]
    assert said["regions"]["empty"][1] == 4096
    assert [each["bits"] for each in said["untyped"]] == [24, 12]
    dump, root = out / "bootinfo.bin", own / arch / "rootserver"
    assert dump.stat().st_size == 4096
    assert run(["boot", "bootinfo", "--elf", str(root), str(dump)]) == 0
    # The same page, by its place in the machine.
    virtual = said["words"]["ipcBuffer"] + 0x1000
    physical = virtual - 0x400000 + (0x1000000 if arch == "x86_64" else 0x41000000)
    path = manifest(own, arch, tail=f"[bootinfo]\nphysical = {physical}\n")
    assert run(["boot", "run", "--boots", "0", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bootinfo"] == said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("address = 0x400000", "bootinfo: "),
        ("address = 0x7f0000000000", "bootinfo: memsave: "),
        ('symbol = "nothing"\nelf = "rootserver"', "bootinfo: rootserver has no nothing"),
        ('symbol = "bootinfo"\nelf = "rootserver"\nmcs = true', "expected"),
    ],
)
def test_a_bootinfo_that_does_not_hold_is_a_cause(
    own: Path, page: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(own, "aarch64", tail=f"[bootinfo]\n{page}\n")
    assert run(["boot", "run", "--boots", "0", str(path)]) == Class.LAYOUT_INVALID.row.status
    assert told in capsys.readouterr().err


def requiring(own: Path, arch: str, *names: str, seconds: float = 30) -> Path:
    path = manifest(own, arch, more=f"scenario = {json.dumps(names)}", seconds=seconds)
    # Wall boots alone: what is counted is not of interest here.
    text = path.read_text().partition("[[milestone]]")[0]
    path.write_text(text + '[[milestone]]\nname = "said"\nline = "^ROOT: ready"\n')
    return path


@pytest.mark.slow
@pytest.mark.parametrize("arch", BOTH)
def test_the_scenarios_of_the_guests_end_as_they_must(
    own: Path, arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.stem for path in (own / arch / "scenarios").iterdir())
    assert "null-read" in names
    path = requiring(own, arch, *names, seconds=2)
    assert run(["boot", "run", "--out", str(tmp_path / "out"), str(path)]) == 0
    assert "scenario null-read: as it must" in capsys.readouterr().out
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert [case.get("name") for case in suite] == ["boot", *names]


@pytest.mark.slow
def test_a_scenario_that_ends_otherwise_is_named_and_the_others_are_played(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "elsewhere": 'about = "a"\ncmdline = "do=vm-read"\nexpect = "user_fault"\n[fault]\naddress = 0x20\n',
        "well": 'about = "b"\nforbid = ["fault"]\n',
        "unheard": 'about = "c"\ndemand = ["hello"]\n',
    }.items():
        (own / "aarch64" / "scenarios" / f"{name}.toml").write_text(text)
    path = requiring(own, "aarch64", "elsewhere", "well", "unheard", seconds=2)
    assert run(["boot", "run", "--json", "--out", str(tmp_path / "out"), str(path)]) == 45
    out, err = capsys.readouterr()
    assert "user_fault: scenario elsewhere: the fault is at 0x10, expected 0x20" in err
    played = json.loads(out)["scenarios"]
    assert [each.get("verdict", {}).get("cause") for each in played] == ["user_fault", None, "test_timeout"]
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert [len(case) for case in suite] == [0, 1, 0, 1]


@pytest.mark.slow
def test_a_scenario_waits_for_the_lines_that_it_demands(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the manifest has no milestone that is a line."""
    path = requiring(own, "aarch64", "timer", "null-capability")
    text = path.read_text().partition("[[milestone]]")[0]
    path.write_text(text + '[[milestone]]\nname = "ready"\nsymbol = "ready"\nelf = "rootserver"\n')
    assert run(["boot", "run", "--boots", "0", str(path)]) == 0
    out = capsys.readouterr().out
    assert "scenario timer: as it must" in out
    assert "scenario null-capability: as it must" in out
