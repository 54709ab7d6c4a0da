"""SECURITY.md names files, commands and options that exist, and promises what a test holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlab import ROOT
from qlab.cli import call

TEXT = (ROOT / "SECURITY.md").read_text()
NAMED = re.findall(r"`([^`]+)`", TEXT)


def test_what_it_names_exists() -> None:
    paths = [name for name in NAMED if "/" in name or name.endswith(".lock")]
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []
    commands = {name.split()[1] for name in NAMED if name.startswith("qlab ")}
    assert commands >= {"doctor", "fetch", "serve"}
    assert [command for command in commands if call([command, "--help"]) != 0] == []


def test_no_source_of_ours_opens_pickle_or_runs_others_code() -> None:
    sources = {file: file.read_text() for file in (ROOT / "qlab").rglob("*.py")}
    assert [file.name for file, text in sources.items() if re.search(r"torch\.load\(|pickle\.load|trust_remote_code=True", text)] == []


def test_chat_templates_are_rendered_in_one_place_alone() -> None:
    sources = {file: file.read_text() for file in (ROOT / "qlab").rglob("*.py")}
    found = [file.name for file, text in sources.items() if re.search(r"apply_chat_template\(|render_jinja_template\(|import jinja2", text)]
    assert found == ["templates.py"]


# A process that is a copy of one which imported something; that this be torch and transformers takes ten seconds, and no other path.
COPY = "from qlab.support.processes import process, starting; starting.PRELOADED = ('json',); process.run_isolated(len, ())"


@pytest.mark.parametrize("start", [COPY, "-m qlab.serve.supervisor true"], ids=["a copy", "a supervisor"])
def test_code_in_the_current_folder_is_not_imported_by_processes_that_are_started(start: str, tmp_path: Path) -> None:
    """As the console script does, whose own path is not the current folder but that of the program."""
    for module in ("multiprocessing", "qlab"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    inner = start if not start.startswith("-m") else f"import subprocess, sys; subprocess.run([sys.executable, *{start.split()!r}])"
    program = tmp_path / "bin" / "program.py"
    program.parent.mkdir()
    program.write_text(
        f"import sys, qlab.cli\n\ndef call(words):\n    {inner}\n\n"
        "if __name__ == '__main__':\n    qlab.cli.call = call\n    qlab.cli.main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, program], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, []), ({"NO_PROXY": "a.example"}, ["a.example"]), ({"no_proxy": "b", "NO_PROXY": "c"}, ["b"]), ({"no_proxy": "*"}, ["*"])],
)
def test_servers_on_this_machine_are_reached_without_a_proxy(given: dict[str, str], kept: list[str]) -> None:
    code = "import qlab, os, urllib.request; print(os.environ['no_proxy'], urllib.request.proxy_bypass('127.0.0.1:8000'))"
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= {"PYTHONPATH": str(ROOT), "HTTP_PROXY": "http://proxy.example:3128", **given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    found, bypassed = done.stdout.split()
    assert bypassed in ("True", "1"), done.stderr
    assert found.split(",")[: len(kept)] == kept


def test_readme_links_it() -> None:
    assert "SECURITY.md" in (ROOT / "README.md").read_text()
