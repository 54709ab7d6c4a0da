"""What figures depend on beside what they were measured under: the model's files, versions, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from typing import Any

from qlab import ROOT
from qlab.models.opening import locate
from qlab.support.versions import version_of


def provenance(model: str) -> dict[str, Any]:
    """What figures depend on beside the parameters: model, versions, machine. No path and no name of the machine."""
    source = locate(model)
    names = ("torch", "transformers", "autoawq", "auto-gptq", "bitsandbytes", "gguf", "xllamacpp", "qlab")
    versions = {name: version_of(name) for name in names}
    return {
        "model": {"name": source.name, "fingerprint": source.fingerprint},
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": commit(),
        "versions": versions,
        "machine": machine(),
    }


def commit() -> str:
    """The commit that qlab stands at, marked where files differ from it; "no commit" outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "no commit"


def machine() -> dict[str, Any]:
    """What speeds depend on; nothing that names the machine or its owner."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "python": platform.python_version(),
    }
