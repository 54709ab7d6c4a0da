"""Each known fault is of the form that doctor needs, told for versions inside its range, and for none outside."""

from __future__ import annotations

import re

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from qlab.doctor.advisories import FAULTS, LLAMACPP, OLLAMA, OWN, Fault, environments, faults_in, within
from qlab.doctor.examine import check_advisories

NAMES = [f"{fault.id or 'together'}-{next(iter(fault.affected))}" for fault in FAULTS]


def inside(wanted: str) -> str:
    """A version that satisfies a specifier: one of its bounds, or just below its upper one."""
    bounds = [spec.version for spec in SpecifierSet(wanted)]
    lower = [f"{Version(bound).major}.{Version(bound).minor - 1}" for bound in bounds if Version(bound).minor]
    return next(version for version in [*bounds, *lower, "0.1", f"{Version(bounds[0]).major - 1}.0"] if within(version, wanted))


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_it_has_the_form(fault: Fault) -> None:
    assert fault.affected
    assert all(canonicalize_name(name) == name and str(SpecifierSet(wanted)) for name, wanted in fault.affected.items())
    assert re.fullmatch(r"CVE-20\d\d-\d{4,7}|GHSA(-[0-9a-z]{4}){3}|", fault.id)
    assert 20 < len(fault.happens) < 100
    assert fault.happens[-1] != "."
    assert fault.mended or not fault.id
    if fault.mended:
        assert not within(fault.mended, next(iter(fault.affected.values())))


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_it_is_told_inside_its_range_and_not_outside(fault: Fault) -> None:
    versions = {name: inside(wanted) for name, wanted in fault.affected.items()}
    assert fault in faults_in(versions)
    (line,) = (line for line in check_advisories({OWN: versions}) if fault.happens in line.detail)
    assert line.state == ("unsafe" if fault.id else "broken")
    assert fault.id in line.detail
    assert fault.mended in line.detail
    assert all(f"{name} {version}" in line.subject for name, version in versions.items())
    assert line.mend
    assert not line.optional
    for name in fault.affected:
        assert fault not in faults_in({other: version for other, version in versions.items() if other != name})
    first = next(iter(fault.affected))
    assert fault not in faults_in(versions | {first: fault.mended or "0.1"})


def test_known_ranges_by_hand() -> None:
    """By the advisories' own words, where a bound is easily set wrong by one."""
    told = lambda name, version: {fault.id for fault in faults_in({name: version})}  # noqa: E731
    assert "CVE-2025-32434" in told("torch", "2.5.1+cpu")
    assert "CVE-2025-32434" not in told("torch", "2.6.0+cu124")
    assert "CVE-2024-34359" in told("llama-cpp-python", "0.2.71")
    assert "CVE-2024-34359" not in told("llama-cpp-python", "0.2.29")
    assert told(LLAMACPP, "8145") == {"CVE-2026-27940"}
    assert told(LLAMACPP, "8146") == set()
    assert told(OLLAMA, "0.17.0") == {"CVE-2026-7482"}
    assert told("transformers", "not a version") == set()


def test_what_is_installed_here_has_none_and_is_read() -> None:
    found = environments()
    assert int(found[OWN][LLAMACPP]) > 10_000
    assert found[OWN]["torch"].startswith("2.")
    assert [line.state for line in check_advisories({OWN: found[OWN]})] == ["OK"]
