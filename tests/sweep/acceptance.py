"""Whole sweeps on this machine and on a Ray cluster of three nodes of it: the same bytes, nothing lost, nothing done twice.

`python -m tests.sweep.acceptance` (half an hour on two cores; needs Ray, and root for the last two parts), or with the names of parts:
same, lost, memory, disk, folder. `lost` compares with what `same` made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from qlab import ROOT
from qlab.artifacts.manifest import COST
from qlab.sweep.drive import Patience, Progress, drive
from qlab.sweep.jobs import Job
from qlab.sweep.results import Store
from qlab.sweep.workers.local import Local
from tests.sweep.workers.nodes import Node, ray_nodes
from tests.sweep.workers.test_local import until
from tests.sweep.workers.watching import children, jobs_below, watching, words

WIKI = ROOT.parent / "shared" / "models" / "wiki-qwen2-14m"
RECIPES = "awq-w4g128, gptq-w4g128, awq-gptq-w4g128, gptq-w4g128-ct, smooth-gptq-w8a8, rtn-fp8, nf4, q4_k_m"
PLAN = """models: [embedded, {model}]
recipes: [{recipes}]
calibration: {{windows: 8, length: 128}}
evaluation: {{window: 128, tokens: 2048}}
limits: {{tries: 4}}
"""
SMALL = """models: [embedded]
recipes: [nf4, q8_0]
calibration: {windows: 2, length: 64}
evaluation: {window: 64, tokens: 256}
limits: {tries: 3}
"""
HEAD, OTHER = Node(1_600_000_000), Node(2_600_000_000)  # less than all jobs together
LOOK = 0.3  # seconds between two looks at the nodes
PATIENCE = 1500  # seconds for a sweep


def sweep(plan: Path, out: Path, *words: str) -> tuple[float, str]:
    """Run a sweep: the seconds that it took, and what it said."""
    started = time.monotonic()
    done = subprocess.run(command(plan, out, *words), capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - started, done.stdout + done.stderr


def command(plan: Path, out: Path, *words: str) -> list[str]:
    """The words that run a sweep."""
    return [sys.executable, "-m", "qlab", "sweep", str(plan), "--out", str(out), *words]


def hashes(out: Path) -> dict[str, str]:
    """Of every file below the artifacts of a sweep but what they cost and the locks, by its path."""
    found = [file for file in sorted((out / "artifacts").rglob("*")) if file.is_file() and file.name != COST and file.suffix != ".lock"]
    return {str(file.relative_to(out)): hashlib.file_digest(file.open("rb"), "sha256").hexdigest() for file in found}


def check_same(out: Path, expected: Path) -> None:
    """See that two sweeps made the same bytes, nothing else, and the same table."""
    made, wanted = hashes(out), hashes(expected)
    assert made == wanted, sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name))[:10]
    assert pd.read_csv(out / "table.csv").equals(pd.read_csv(expected / "table.csv"))


def results(out: Path) -> dict[str, dict[str, Any]]:
    """The results of a sweep by their keys, each with the time at which it was written."""
    return {file.stem: json.loads(file.read_bytes()) | {"written": file.stat().st_mtime_ns} for file in (out / "jobs").glob("*.json")}


def same(work: Path, plan: Path) -> None:
    """Two models by eight recipes, by processes and by three nodes: the same bytes and table; once more: nothing is done."""
    seconds, _ = sweep(plan, work / "local")
    print(f"by processes: {seconds:.0f} s, {len(results(work / 'local'))} results", flush=True)
    with ray_nodes(HEAD, OTHER, OTHER) as nodes:
        with watching(nodes) as watch:
            seconds, _ = sweep(plan, work / "ray", "--ray", nodes.address)
        check_same(work / "ray", work / "local")
        print(f"by three nodes: {seconds:.0f} s, the same {len(hashes(work / 'ray'))} files and the same table", flush=True)
        for number, node in enumerate((HEAD, OTHER, OTHER)):
            held = watch.bytes[number] / 1e9
            print(f"  node {number}: {node.memory / 1e9:.1f} GB, at most {watch.jobs[number]} jobs and {held:.2f} GB at once", flush=True)
            assert watch.bytes[number] <= node.memory
        before = results(work / "ray")
        seconds, said = sweep(plan, work / "ray", "--ray", nodes.address)
        assert ", 0 to do" in said
        assert results(work / "ray") == before
        print(f"once more: nothing to do, {seconds:.1f} s", flush=True)


def lost(work: Path, plan: Path) -> None:
    """A node killed in mid-walk, then the driver killed and started again: the same bytes and table, nothing done twice."""
    out = work / "lost"
    with ray_nodes(HEAD, OTHER, OTHER) as nodes:
        driver = subprocess.Popen(
            command(plan, out, "--ray", nodes.address), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        others = nodes.raylets()[1:]
        until(lambda: any(walks_below(raylet, out) for raylet in others), PATIENCE)
        killed = next(raylet for raylet in others if walks_below(raylet, out))
        killed.kill()
        print("a node is killed in mid-walk", flush=True)
        until(lambda: len(results(out)) >= 5, PATIENCE)
        driver.kill()
        driver.wait()
        before = results(out)
        print(f"the driver is killed after {len(before)} results", flush=True)
        until(lambda: not any(jobs_below(raylet) for raylet in nodes.raylets()), PATIENCE)
        seconds, _ = sweep(plan, out, "--ray", nodes.address)
    after = results(out)
    assert {key: after[key] for key in before} == before
    check_same(out, work / "local")
    tries = {result["job"]: result["tries"] for result in after.values() if result["tries"] > 1}
    print(f"the second driver took {seconds:.0f} s; tried more than once: {tries}", flush=True)


def walks_below(raylet: psutil.Process, out: Path) -> bool:
    """Whether a walk of a sweep has begun to write, and works on this node."""
    begun = any((out / "artifacts").glob("*/.walk*/*"))
    return begun and any("quantize" in words(process) for process in jobs_below(raylet))


def memory(work: Path, plan: Path) -> None:
    """A walk for which far too little memory is set aside, on a machine that kills whoever takes more than that: tried again with more."""
    out, store = work / "memory", Store(work / "memory-jobs")
    store.folder.mkdir()
    recipe = ["quantize", "--model", "embedded", "--recipe", "gptq-w4g128", "--windows", "8", "--length", "128", "--device", "cpu"]
    job = Job("quantize", "embedded", "gptq", (*recipe, "--wait", "--out", str(out)), "walk", (), 1e8, 60.0)
    workers, kills = Local(store.folder, 8e9, 1, 1), list[str]()

    def kill_who_takes_more(_: Progress) -> None:
        for key, kept in workers.jobs.items():
            for process in children(psutil.Process(kept.process.pid)):
                held = process.memory_info().rss if process.is_running() else 0
                if "quantize" in words(process) and held > workers.held[key]:
                    kills.append(f"{held / 1e9:.2f} of {workers.held[key] / 1e9:.1f} GB")
                    process.kill()
        time.sleep(0.05)

    end = drive([job], store, workers, Patience(8, 600), kill_who_takes_more)
    assert [each.key for each in end.done] == ["walk"]
    assert (out / "gptq-w4g128" / "qlab.json").is_file()
    print(f"killed for holding {', '.join(kills)}; done at the {store.read('walk').tries}th try", flush=True)


def disk(work: Path, plan: Path) -> None:
    """A node whose own disk is full: what it was given is done by the others, and the table is complete."""
    full, out = work / "full", work / "disk"
    with tmpfs(full, "1m"):
        (full / "filling").write_bytes(bytes(1 << 20))
        with ray_nodes(HEAD, Node(8_000_000_000, variables={"TMPDIR": str(full)}), OTHER) as nodes:  # the largest is asked first
            seconds, _ = sweep(small_plan(work), out, "--ray", nodes.address)
    tried = {result["job"]: result["tries"] for result in results(out).values()}
    assert max(tried.values()) > 1, tried
    print(f"one full disk of three: {seconds:.0f} s, complete; tries {tried}", flush=True)


def folder(work: Path, plan: Path) -> None:
    """A node that does not see the sweep's folder: it is told by that, gets no more jobs, and nobody's try is lost."""
    out = work / "folder"
    out.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{out}" && exec "$@"', "sh"]
    with ray_nodes(HEAD, Node(8_000_000_000, hidden), OTHER) as nodes:
        seconds, said = sweep(small_plan(work), out, "--ray", nodes.address)
    (remark,) = [line for line in said.splitlines() if "does not see the folder" in line]
    assert {result["tries"] for result in results(out).values()} == {1}
    print(f"one of three nodes without the folder: {seconds:.0f} s, complete, every job at its first try. It said: {remark}", flush=True)


def small_plan(work: Path) -> Path:
    """A sweep of few seconds."""
    file = work / "small.yaml"
    file.write_text(SMALL)
    return file


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[None]:
    """A disk of its own at `place`, in memory."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


PARTS: dict[str, Callable[[Path, Path], None]] = {"same": same, "lost": lost, "memory": memory, "disk": disk, "folder": folder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART")
    parser.add_argument("--model", default=str(WIKI) if WIKI.exists() else "smollm2", help="the second model")
    parser.add_argument("--work", type=Path, help="an empty folder; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qlab-sweeps-") as temporary:
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        plan = work / "plan.yaml"
        plan.write_text(PLAN.format(model=options.model, recipes=RECIPES))
        for name in options.parts or PARTS:
            print(f"{name}, load {os.getloadavg()[0]:.0f}: {PARTS[name].__doc__}", flush=True)
            PARTS[name](work, plan)


if __name__ == "__main__":
    main()
