"""System calls have the numbers of generated headers; of a header with others, what differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.__main__ import run
from skep.boot.syscalls import CALLS, differences, kind_of, numbers, read_header

# As measured on generated headers.
MEASURED = {
    "master": {
        "Call": -1, "ReplyRecv": -2, "Send": -3, "NBSend": -4, "Recv": -5, "Reply": -6, "Yield": -7,
        "NBRecv": -8, "DebugPutChar": -9, "DebugDumpScheduler": -10, "DebugHalt": -11,
        "DebugCapIdentify": -12, "DebugSnapshot": -13, "DebugNameThread": -14, "DebugSendIPI": -15,
        "DebugGetThreadAffinity": -16,
        "DebugRun": -17, "BenchmarkFlushCaches": -18, "BenchmarkResetAllThreadsUtilisation": -26,
        "X86DangerousWRMSR": -27, "X86DangerousRDMSR": -28, "VMEnter": -29, "SetTLSBase": -30,
    },
    "mcs": {
        "Call": -1, "ReplyRecv": -2, "NBSendRecv": -3, "NBSendWait": -4, "Send": -5, "NBSend": -6, "Recv": -7,
        "NBRecv": -8, "Wait": -9, "NBWait": -10, "Yield": -11, "DebugPutChar": -12, "DebugHalt": -14,
        "SetTLSBase": -33,
    },
}  # fmt: skip
KINDS = sorted(CALLS)


def enum(kind: str, prefix: str = "seL4_Sys") -> str:
    rows = "".join(f"    {prefix}{name} = {number},\n" for name, number in numbers(kind).items())
    return f"/* seL4_SysOld = -7, is gone */\ntypedef enum {{\n{rows}}} seL4_Syscall_ID;\n"


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_generated_headers(kind: str) -> None:
    known = numbers(kind)
    assert MEASURED[kind] == {name: known[name] for name in MEASURED[kind]}
    assert list(known.values()) == list(range(-1, -len(known) - 1, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["seL4_Sys", "Sys"])
def test_a_header_of_a_kind_is_known_as_such(kind: str, prefix: str) -> None:
    found = read_header(enum(kind, prefix))
    assert kind_of(found) == kind
    assert differences(found, kind) == []


def test_macros_are_read_too() -> None:
    assert read_header("#define SysCall -1\n# define seL4_SysSend (-3)\n#define SYSTEM 4\n") == {
        "Call": -1,
        "Send": -3,
    }


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "syscall.h"
    path.write_text(enum("master"))
    assert run(["boot", "syscalls", "--against", str(path)]) == 0
    assert "30 calls, compared with master: no differences" in capsys.readouterr().out
    path.write_text(enum("master").replace("Yield = -7", "Yield = -8").replace("NBRecv = -8", "Poll = -7"))
    assert run(["boot", "syscalls", "--json", "--against", str(path)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["differences"] == [
        {"name": "Yield", "found": -8, "expected": -7},
        {"name": "Poll", "found": -7},
    ]
    assert "Yield is -8, expected -7" in err
    assert "Poll is -7, a call that is not known" in err
    assert run(["boot", "syscalls", "--kind", "mcs", "--against", str(path)]) == 1
    assert "Send is -3, expected -5" in capsys.readouterr().err
    path.write_text("int x;\n")
    assert run(["boot", "syscalls", "--against", str(path)]) == 1
    assert "numbers no system call" in capsys.readouterr().err


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["boot", "syscalls", "--kind", "mcs"]) == 0
    assert "  -3 NBSendRecv\n" in capsys.readouterr().out
    assert run(["boot", "syscalls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers("master")


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_header_of_some_calls_or_of_none(text: str) -> None:
    found = read_header(text + enum("mcs"))
    assert isinstance(differences(found, kind_of(found)), list)
