"""What is installed, what works on this machine, and the command that mends what does not: a line each."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qlab.doctor.advisories import BESIDE, FAULTS, OLLAMA, OWN, Fault, environments, faults_in
from qlab.models.named import WHEELS, WheelModel
from qlab.peers import elsewhere
from qlab.peers.patching import silent
from qlab.serve.runtimes.registry import RUNTIMES
from qlab.support.errors import UserError

MEND = "rm -rf .venv && make environment"
REMEDIES = {
    "memory": "a larger machine",
    "embedded model": "git checkout data/embedded",
    "Python": "install Python 3.11, then make environment",
}


@dataclass(frozen=True)
class Finding:
    """A line: `state` is OK, missing, broken or unsafe; `mend` the command that helps; qlab works without what is `optional`."""

    subject: str
    state: str
    detail: str
    mend: str = ""
    optional: bool = False


def examine() -> list[Finding]:
    """Look at Python, the machine, the embedded model, the models to fetch, each library (imported for real) and each runtime."""
    checks = [
        ("Python", check_python),
        ("device", check_device),
        ("memory", check_memory),
        ("CPU", check_cpu),
        ("embedded model", check_embedded),
    ]
    findings = [_finding(name, check) for name, check in checks]
    findings += [check_fetched(model) for model in WHEELS.values()]
    libraries = (
        "torch",
        "transformers",
        "jupyterlab",
        "ipywidgets",
        "seaborn",
        "papermill",
        "xllamacpp",
        "lm-eval",
    )
    findings += [_finding(name, partial(check_library, name)) for name in libraries]
    peers = [("autoawq", check_autoawq), ("auto-gptq", check_autogptq), ("bitsandbytes", check_bitsandbytes), ("gguf", check_gguf)]
    findings += [_finding(name, check) for name, check in peers]
    findings += [check_elsewhere(library) for library in elsewhere.PACKAGES]
    for runtime in RUNTIMES.values():
        state = "OK" if runtime.present() else "missing"
        detail = f"serves {', '.join(runtime.kinds)}"
        findings.append(Finding(f"runtime {runtime.label}", state, detail, "" if runtime.present() else runtime.install, optional=True))
    return findings + check_advisories(environments())


def check_python() -> str:
    if sys.version_info[:2] != (3, 11):
        raise UserError(f"{platform.python_version()}; auto-gptq has wheels up to 3.11 only")
    return platform.python_version()


def check_device() -> str:
    import torch

    from qlab.methods import kernels

    if torch.cuda.is_available():
        with warnings.catch_warnings(action="ignore"):  # what is amiss stands in the line
            reason = kernels.obstacle(None)
        quick = f"no kernels for GPTQ: {reason}" if reason else "kernels for GPTQ"
        return f"CUDA: {torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB; {quick}"
    with warnings.catch_warnings(action="ignore"):
        slow = "" if kernels.compiled() else "; numba does not compile here, so quantizing takes longer"
    return f"CPU only (every lesson runs; a GPU makes it faster{slow})"


def check_memory() -> str:
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(Path.cwd()))
    if memory.total < 6e9:
        raise UserError(f"{memory.total / 1e9:.0f} GB of RAM; the workbook wants 6")
    return f"{memory.total / 1e9:.0f} GB of RAM, {memory.available / 1e9:.0f} free; {disk.free / 1e9:.0f} GB of disk free"


def check_cpu() -> str:
    listing = Path("/proc/cpuinfo")
    flags = set(listing.read_text().split()) if listing.exists() else set()
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16") if name in flags]
    return f"{os.cpu_count()} cores; {', '.join(features) or 'features unknown'}"


def check_advisories(places: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """A line for each known fault of the packages in these environments, or one that there is none."""
    found = [(place, versions, fault) for place, versions in places.items() for fault in faults_in(versions)]
    if not found:
        return [Finding("known faults", "OK", f"none of {len(FAULTS)} in what is installed")]
    return [fault_found(place, versions, fault) for place, versions, fault in found]


def fault_found(place: str, versions: Mapping[str, str], fault: Fault) -> Finding:
    """The line of one fault: which versions have it, what happens, where it is described, and what mends it."""
    packages = " with ".join(f"{name} {versions[name]}" for name in fault.affected)
    first = next(iter(fault.affected))
    mended = f"; {first} {fault.mended} is free of it" if fault.mended else ""
    told = f"{fault.happens}{f' ({fault.id})' if fault.id else ''}{mended}"
    mend = MEND if place == OWN else f"rm -rf {place} && {BESIDE[place]}"
    return Finding(packages, "unsafe" if fault.id else "broken", told, "a newer Ollama: https://ollama.com" if first == OLLAMA else mend)


def check_embedded() -> str:
    from qlab.models.opening import locate

    return f"whole, {locate('embedded').fingerprint}"


def check_fetched(model: WheelModel) -> Finding:
    """Whether a model that `qlab fetch` brings is here; it was whole when it came, so its size is enough."""
    subject, mend = f"model {model.name}", f"qlab fetch {model.name}"
    if not model.file.is_file():
        return Finding(subject, "missing", f"{model.summary}; {model.wheel_bytes / 1e6:.0f} MB to download", mend, optional=True)
    if (size := model.file.stat().st_size) != model.bytes:
        return Finding(subject, "broken", f"{model.file} has {size} bytes instead of {model.bytes}", mend, optional=True)
    return Finding(subject, "OK", f"{model.folder}, {model.bytes / 1e6:.0f} MB", optional=True)


def check_library(name: str) -> str:
    import_module({"lm-eval": "lm_eval"}.get(name, name))
    return version(name)


def check_autoawq() -> str:
    from qlab.doctor.families import beside_qlab
    from qlab.peers.autoawq import families

    return f"{version('autoawq')}; {beside_qlab(families())}"


def check_autogptq() -> str:
    from qlab.doctor.families import beside_qlab
    from qlab.peers.autogptq import families

    return f"{version('auto-gptq')}, through qlab's shim; {beside_qlab(families())}"


def check_bitsandbytes() -> str:
    return f"{check_library('bitsandbytes')}; of mixtures of experts it leaves the experts as they are, which qlab's nf4 quantizes"


def check_elsewhere(library: str) -> Finding:
    """Whether a library is here that has an environment of its own; `make peers` has imported it there."""
    if not elsewhere.present():
        left = "missing" if not elsewhere.FOLDER.exists() else "broken"
        reason = "not installed" if left == "missing" else f"{elsewhere.FOLDER.name} was not made to its end"
        return Finding(library, left, f"{reason}; lesson 3 and make bench-quantize then go without", elsewhere.INSTALL, optional=True)
    found = elsewhere.versions(library)
    with_it = ", ".join(f"{name} {version}" for name, version in found.items() if name != elsewhere.PACKAGES[library])
    return Finding(library, "OK", f"{found[elsewhere.PACKAGES[library]]} in {elsewhere.FOLDER.name}, with {with_it}", optional=True)


def check_gguf() -> str:
    from qlab.doctor.families import gguf_files

    return f"{check_library('gguf')}; {gguf_files()}"


def _finding(subject: str, check: Callable[[], str]) -> Finding:
    try:
        with silent():
            return Finding(subject, "OK", check())
    except (PackageNotFoundError, ModuleNotFoundError) as error:
        return Finding(subject, "missing", str(error), REMEDIES.get(subject, MEND))
    except Exception as error:  # whatever a broken library raises, the report goes on
        return Finding(subject, "broken", f"{type(error).__name__}: {error}".splitlines()[0], REMEDIES.get(subject, MEND))
