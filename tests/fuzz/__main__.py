"""Fuzzing what strangers can send: ``python -m tests.fuzz --seconds 60 [--target wire]``.

Each target is a module here with ``one(data)``, which raises when something that must hold does not,
``seeds()`` and ``LENGTH_MAX``. It is run in a process of its own, since its imports are instrumented, on the
seeds and on what earlier runs found worth keeping in corpus/<target>/. What breaks a target is left in a
file; how to play it again is printed. ``--keep`` adds what was found to the corpus, and drops what adds
nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CORPUS = HERE / "corpus"
TARGETS = ("wire", "handshake", "lines", "manifests", "papers", "tokens", "bundles", "elves", "logs")
MEMORY_MIB = 768  # of the process, OpenSSL's and Cedar's libraries in it
ONE_S = 10  # that one input may take
KEPT_MAX = 8 << 10  # bytes of a corpus: it is for starting from, coverage is found again in seconds


def fuzz(target: str, seconds: int, keep: bool = False, seed: int = 0) -> int:
    """Run a target on a fresh copy of its corpus; its exit status, 0 when nothing was found. ``seed``: of the
    search; 0: another each time."""
    with tempfile.TemporaryDirectory(prefix="skep-fuzz-") as folder:
        work = Path(folder)
        found = work / "found"
        found.mkdir()
        for place in (_seeds(target, work / "seeds"), CORPUS / target):
            if place.is_dir():
                shutil.copytree(place, found, dirs_exist_ok=True)
        # Kept when something is found: then it is what the reader wants.
        remains = Path(tempfile.mkdtemp(prefix=f"skep-fuzz-{target}-"))
        status = _run(
            target, f"-max_total_time={seconds}", f"-artifact_prefix={remains}/", f"-seed={seed}", str(found)
        )
        if status:
            for path in sorted(remains.iterdir()):
                print(f"{target}: python -m tests.fuzz.child {target} {path}", flush=True)
        else:
            remains.rmdir()
            if keep:
                _keep(target, found, work)
        return status


def _seeds(target: str, place: Path) -> Path:
    place.mkdir()
    for number, seed in enumerate(import_module(f"tests.fuzz.{target}").seeds()):
        (place / f"seed-{number:03}").write_bytes(seed)
    return place


def _keep(target: str, found: Path, work: Path) -> None:
    """The smallest inputs that together go everywhere the found ones do, but for what the seeds reach."""
    least = work / "least"
    least.mkdir()
    program = work / "again"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.child {target} "$@"\n')
    program.chmod(0o700)
    if _run(target, f"--as={program}", "-set_cover_merge=1", str(least), str(work / "seeds"), str(found)):
        return
    seeds = {path.read_bytes() for path in (work / "seeds").iterdir()}
    kept = CORPUS / target
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    room = KEPT_MAX
    for path in sorted(least.iterdir(), key=lambda path: path.stat().st_size):
        data = path.read_bytes()
        room -= len(data)
        if room < 0:
            break
        if data not in seeds:
            (kept / path.name[:12]).write_bytes(data)


def _run(target: str, *args: str) -> int:
    limits = (f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={ONE_S}", "-print_final_stats=1")
    command = [sys.executable, "-m", "tests.fuzz.child", target, *args, *limits]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    # The last state of the search, or what broke.
    print(target, "\n".join(lines[-60:] if done.returncode else lines[-12:]), sep="\n", flush=True)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", choices=TARGETS, help="all, if none is named")
    parser.add_argument("--keep", action="store_true", help="keep in the corpus what was found")
    args = parser.parse_args()
    # All of them, whatever the first one finds.
    return max([fuzz(target, args.seconds, args.keep) for target in args.target or TARGETS])


if __name__ == "__main__":
    sys.exit(main())
