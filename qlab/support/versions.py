"""Versions of installed packages: what figures and artifacts depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """An installed version by whichever way its name is spelt (auto_gptq is auto-gptq), or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
