"""The three lists of versions agree with each other and with what is installed."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
import yaml

from qlab import ROOT

NAMED_BY_THE_USER = ("jupyterlab", "torch", "transformers", "autoawq", "auto-gptq", "bitsandbytes", "ipywidgets", "seaborn", "papermill")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    return {canonical(name): rest for name, _, rest in (line.split("#")[0].strip().partition("==") for line in lines) if rest}


@pytest.fixture(scope="module")
def project() -> dict[str, str]:
    return pins(re.findall(r'^\s+"([a-z0-9-]+==[^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M))


def test_lock_holds_every_pin_of_the_project(project: dict[str, str]) -> None:
    lock = pins((ROOT / "requirements.lock").read_text().splitlines())
    assert len(project) > 20
    assert {name: lock.get(name) for name in project} == project


def test_environment_yml_equals_the_project(project: dict[str, str]) -> None:
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in parts
    assert pins(parts[-1]["pip"]) == project


def test_what_the_user_named_is_pinned_and_installed(project: dict[str, str]) -> None:
    for name in NAMED_BY_THE_USER:
        assert version(name).split("+")[0] == project[name]


def test_installed_versions_are_the_locked_ones() -> None:
    lock = pins((ROOT / "requirements.lock").read_text().splitlines())
    differing = {name: (version(name), wanted) for name, wanted in lock.items() if version(name).split("+")[0] != wanted.split("+")[0]}
    assert not differing
