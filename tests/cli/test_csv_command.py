"""``skep csv`` out of one hive and into a fresh one."""

from __future__ import annotations

from pathlib import Path

import pytest

from skep.namespaces.jobs.sheet import SHEET
from tests.daemons import queen

CONFIG = 'config.v1,document\r\nsystem,"[limits]\njobs = 5\n"\r\n'
NODES = (
    "nodes.v1,principal,role,tenants,duty,trust,labels,capacity,version\r\n"
    'w9,unix:nobody,drone-worker,,cordoned,yellow,"{""gpu"":""=1+1""}",4,\r\n'
)
JOBS = (
    f"{','.join(SHEET.header)}\r\n"
    "01HF7YAT000000000000000001,sum,default,succeeded,=1+1,,,,2023-11-14T22:13:20.000000000Z,unix:nobody"
    f"{',' * 3}5{',' * 3}0{',' * (len(SHEET.columns) - 16)}\r\n"
)


@pytest.mark.slow
def test_sheets_go_from_hive_to_hive_as_the_same_bytes(tmp_path: Path) -> None:
    sheets = {"nodes": NODES, "config": CONFIG, "jobs": JOBS}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with queen(tmp_path / name) as hive:
            for kind, sheet in sheets.items():
                file = tmp_path / f"{kind}.csv"
                if name == "one":
                    file.write_bytes(sheet.encode())
                done = hive.skep("csv", "import", kind, str(file))
                assert (0, "1 records") == (done.returncode, done.stderr.strip()), done
                assert 0 == hive.skep("csv", "export", kind, "-o", str(file)).returncode
                assert sheet.encode() == file.read_bytes()
            bad = tmp_path / "bad.csv"
            bad.write_bytes(NODES.replace("yellow", "blue").encode())
            refused = hive.skep("csv", "import", "nodes", str(bad))
            assert 1 == refused.returncode
            assert "line 2: expect: trust=blue: expected one of green yellow red" in refused.stderr
