"""What the code host runs: only actions that cannot change, with no more rights than reading, on branches that are named."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlab import ROOT
from qlab.cli.sweep import sweep
from qlab.show.site.sweep_place import PAGE
from qlab.sweep.accepted import accepted_file, read_accepted
from qlab.sweep.plan import ORIGINAL, read_sweep

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def parsed(file: Path) -> dict[Any, Any]:
    """A workflow; its key `on` reads as True, since YAML 1.1 takes that word for a truth value."""
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_action_is_a_commit_with_its_tag_beside(file: Path) -> None:
    uses = [line.strip().removeprefix("- ") for line in file.read_text().splitlines() if "uses:" in line]
    assert uses
    assert [line for line in uses if not PINNED.fullmatch(line)] == []


def test_one_action_is_one_commit_everywhere() -> None:
    found = {tuple(use.rsplit("@", 1)) for file in FILES for use in re.findall(r"uses: (\S+)", file.read_text())}
    assert len({name for name, _ in found}) == len(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_jobs_may_read_the_repository_and_one_may_publish_the_report(file: Path) -> None:
    workflow = parsed(file)
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job for name, job in workflow["jobs"].items() if "permissions" in job}
    assert set(more) <= {"pages"}
    for job in more.values():  # it may publish, and runs no code of the repository
        assert job["permissions"] == {"pages": "write", "id-token": "write"}
        assert [step.get("uses", "").partition("@")[0] for step in job["steps"]] == ["actions/deploy-pages"]
        assert job["if"] == "github.event_name == 'push'"
    checkouts = [step for job in workflow["jobs"].values() for step in job["steps"] if "actions/checkout" in step.get("uses", "")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_changes_start_it_on_named_branches_only(file: Path) -> None:
    events = parsed(file)[True]
    assert "push" in events
    assert "pull_request_target" not in events  # it would run others' changes with this repository's rights
    assert all(events[name]["branches"] == ["main"] for name in ("push", "pull_request") if name in events)


def test_the_lock_is_audited_weekly_and_when_it_changes() -> None:
    audit = parsed(ROOT / ".github" / "workflows" / "audit.yml")
    commands = [step["run"] for step in audit["jobs"]["audit"]["steps"] if "run" in step]
    assert any("pip-audit" in command and "--requirement requirements.lock" in command for command in commands)
    assert audit[True]["schedule"]
    assert "requirements.lock" in audit[True]["push"]["paths"]


def test_a_small_sweep_is_run_and_checked_and_its_page_kept() -> None:
    steps = parsed(ROOT / ".github" / "workflows" / "workbook.yml")["jobs"]["sweep"]["steps"]
    (command,) = [step["run"] for step in steps if "qlab sweep" in step.get("run", "")]
    *_, name, option = command.split()
    file = ROOT / name
    sweep_file = read_sweep(file)
    assert sweep_file.models == ["embedded"]  # nothing is downloaded
    assert option == "--check"
    (figures,) = read_accepted(accepted_file(file)).figures.values()  # of one model
    assert figures.keys() == {ORIGINAL, *sweep_file.recipes}
    (kept,) = [step for step in steps if "actions/upload-artifact" in step.get("uses", "")]
    assert kept["if"] == "always()"
    assert f"build/sweep/{PAGE}" in kept["with"]["path"]
    assert inspect.signature(sweep).parameters["out"].default == Path("build/sweep")


def test_ray_is_installed_before_its_tests_which_are_skipped_without_it() -> None:
    steps = parsed(ROOT / ".github" / "workflows" / "workbook.yml")["jobs"]["cluster"]["steps"]
    *before, tests = [step["run"].split() for step in steps if "run" in step]
    assert ["make", "cluster"] in before
    assert tests[-2] == "pytest"
    assert 'importorskip("ray"' in (ROOT / tests[-1]).read_text()
