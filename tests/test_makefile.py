"""Where the Makefile takes Python 3.11 from, on machines that this one is made to look like."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlab import ROOT

SCRIPT = ROOT / "tools" / "find-python.sh"
TOOLS = ("sh", "cat", "env")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs that is all of PATH: a shell, and no Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (programs / tool).symlink_to(found)
    return programs


def put(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def find(programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script in a folder of its own, with these programs alone."""
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments],
        env={"PATH": str(programs), "HOME": os.devnull},
        cwd=programs.parent,
        capture_output=True,
        text=True,
    )


BROUGHT = f"""[ "$2" = install ] && echo Installed >&2 && exit 0
[ "$2" = find ] && echo '{sys.executable}'"""


def test_a_python_3_11_is_taken_as_it_is(machine: Path) -> None:
    (machine / "python3.11").symlink_to(sys.executable)
    put(machine, "uv", "echo uv was called; exit 1")
    found = find(machine, "python3.11", "--bring")
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, str(machine / "python3.11"), "")


def test_where_there_is_none_uv_brings_it(machine: Path) -> None:
    put(machine, "python3.11", "exit 1")  # it calls itself so and is another
    put(machine, "uv", BROUGHT)
    found = find(machine, "python3.11", "--bring")
    assert (found.returncode, found.stdout.strip()) == (0, sys.executable)
    assert "uv brings one" in found.stderr


def test_where_there_is_no_uv_pip_brings_that(machine: Path) -> None:
    """python3 is one that makes an environment whose pip writes a uv, as the real one does."""
    pip = (
        'for word; do last=$word; done; echo "$last" > asked\n'
        f"cat > build/uv/bin/uv <<'E'\n#!/bin/sh\n{BROUGHT}\nE\nchmod +x build/uv/bin/uv"
    )
    for tool in ("mkdir", "chmod"):
        (machine / tool).symlink_to(str(shutil.which(tool)))
    put(machine, "python3", f"mkdir -p build/uv/bin; cat > build/uv/bin/pip <<'P'\n#!/bin/sh\n{pip}\nP\nchmod +x build/uv/bin/pip")
    found = find(machine, "python3.11", "--bring")
    assert (found.returncode, found.stdout.strip()) == (0, sys.executable), found.stderr
    assert (machine.parent / "asked").read_text().startswith("uv==")


@pytest.mark.parametrize("uv", ["exit 1", None])
def test_without_any_the_message_says_what_to_do(machine: Path, uv: str | None) -> None:
    put(machine, "python3", "exit 1")
    if uv:
        put(machine, "uv", uv)
    found = find(machine, "python3.11", "--bring")
    assert found.returncode == 1
    assert found.stdout == ""
    assert "qlab needs Python 3.11" in found.stderr
    assert "'python3.11' is not one" in found.stderr


def test_a_python_that_the_user_names_is_taken_or_refused(machine: Path) -> None:
    put(machine, "uv", BROUGHT)
    assert find(machine, "/usr/bin/python9").returncode == 1
    for named, brings in ((["PYTHON=python3.12"], False), ([], True)):
        printed = subprocess.run(
            ["make", "--dry-run", "--always-make", "environment", *named], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        line = next(line for line in printed.splitlines() if "find-python" in line)
        assert ("--bring" in line) == brings
        assert (named or ["PYTHON=python3.11"])[0].partition("=")[2] in line
