"""What runs jobs on a machine of a cluster: which machines cannot take part, and what it costs there."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from qlab import ROOT
from qlab.sweep.jobs import versions
from qlab.sweep.workers.remote import elsewhere, unlike


def test_a_machine_without_the_folder_says_so(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert f"does not see the folder {tmp_path}" in elsewhere(lock, "owner")
    lock.write_text("somebody else")
    assert f"does not see the folder {tmp_path}" in elsewhere(lock, "owner")
    lock.write_text("owner")
    assert elsewhere(lock, "owner") == ""


def test_a_machine_with_other_versions_says_which() -> None:
    here = versions()
    assert unlike(here) == ""
    assert unlike(here | {"torch": f"{here['torch'].partition('+')[0]}+cu130"}) == ""  # built for a GPU
    said = unlike(here | {"torch": "1.0", "no-such-package": "2.0"})
    assert said.startswith(f"{socket.gethostname()} has torch {here['torch']} in place of 1.0, no-such-package absent in place of 2.0: ")


def test_what_starts_a_job_does_not_load_what_the_job_will() -> None:
    """Else each core of a machine holds PyTorch a second time, which no prediction counts."""
    script = "import qlab.sweep.workers.remote, sys; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
