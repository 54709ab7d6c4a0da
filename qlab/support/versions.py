"""Versions of installed packages, and qlab's own code: what figures and artifacts depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.utils import canonicalize_name

from qlab import ROOT


def version_of(package: str) -> str:
    """An installed version by whichever way its name is spelt (auto_gptq is auto-gptq), or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@cache
def code_hash() -> str:
    """A hash of qlab's code as it lies on the disk: between two versions a developer's figures change with it."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "qlab").rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def named(found: Iterable[Distribution]) -> dict[str, str]:
    """The versions of distributions by their canonical names."""
    return {canonicalize_name(one.metadata["Name"] or ""): one.version for one in found}


def versions_below(environment: Path) -> dict[str, str]:
    """The versions of all packages in a virtual environment, by their canonical names; none where there is no such folder."""
    return named(distributions(path=[str(folder) for folder in environment.glob("lib/python*/site-packages")]))
