"""SECURITY.md names files, commands and options that exist, and promises what a test holds."""

from __future__ import annotations

import re

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


def test_readme_links_it() -> None:
    assert "SECURITY.md" in (ROOT / "README.md").read_text()
