"""Whole sweeps on this machine and on a Ray cluster of three nodes of it: the same bytes, nothing lost, nothing done twice.

`python -m tests.sweep.acceptance` (long on two cores; needs Ray, and root for `disk` and `folder`), or with the names of parts:
same, lost, memory, disk, folder, overhead, many, lessons. `lost` compares with what `same` made, so that both need the same --work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from qlab import ROOT
from qlab.artifacts.manifest import MANIFEST
from qlab.sweep.drive import Patience, Progress, drive
from qlab.sweep.jobs import Job
from qlab.sweep.results import Store
from qlab.sweep.workers.local import Local
from tests.sweep.costs import LARGE, many, overhead
from tests.sweep.together import lessons
from tests.sweep.whole import PATIENCE, check_same, command, hashes, results, sweep
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
ENOUGH = 5  # evaluations that are done when the driver is killed
LITTLE = 300_000_000  # bytes of memory: no job fits where there is more elsewhere


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
    with ray_nodes(Node(LITTLE), OTHER, OTHER) as nodes:  # the first has the cluster's own state, and the driver: it gets no job
        driver = subprocess.Popen(
            command(plan, out, "--ray", nodes.address), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        others, walking = nodes.raylets()[1:], list[psutil.Process]()

        def walks() -> bool:
            assert driver.poll() is None
            walking.extend(raylet for raylet in others if walks_below(raylet, out))
            return bool(walking)

        until(walks, PATIENCE)
        walking[0].kill()
        print("a node is killed in mid-walk", flush=True)
        until(lambda: driver.poll() is not None or len(measured(out)) >= ENOUGH, PATIENCE)
        assert driver.poll() is None
        driver.kill()
        driver.wait()
        before, made = measured(out), manifests(out)
        print(f"the driver is killed after {len(before)} evaluations, with {len(made)} artifacts", flush=True)
        until(lambda: not any(jobs_below(raylet) for raylet in nodes.raylets()), PATIENCE)
        seconds, _ = sweep(plan, out, "--ray", nodes.address)
    after = results(out)
    assert {key: after[key] for key in before} == before
    assert {name: when for name, when in manifests(out).items() if name in made} == made
    check_same(out, work / "local")
    tries = {result["job"]: result["tries"] for result in after.values() if result["tries"] > 1}
    print(f"the second driver took {seconds:.0f} s; tried more than once by it: {tries}", flush=True)


def measured(out: Path) -> dict[str, dict[str, Any]]:
    """The results of a sweep but those of walks: a walk is gone over again, in seconds, for what still needs its artifacts."""
    return {key: result for key, result in results(out).items() if result["job"].startswith("evaluate ")}


def manifests(out: Path) -> dict[str, int]:
    """When each artifact of a sweep was finished."""
    return {str(file.relative_to(out)): file.stat().st_mtime_ns for file in (out / "artifacts").glob(f"*/[!.]*/{MANIFEST}")}


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
                with suppress(psutil.Error):  # it has ended meanwhile
                    held = process.memory_info().rss
                    if "quantize" in words(process) and held > workers.held[key]:
                        process.kill()
                        kills.append(f"{held / 1e9:.2f} of {workers.held[key] / 1e9:.1f} GB")
        time.sleep(0.05)

    end = drive([job], store, workers, Patience(8, 600), kill_who_takes_more)
    assert [each.key for each in end.done] == ["walk"]
    assert (out / "gptq-w4g128" / "qlab.json").is_file()
    print(f"killed for holding {', '.join(kills)}; done at the {store.read('walk').tries}th try", flush=True)


def disk(work: Path, plan: Path) -> None:
    """A node whose own disk is full: what it was given is done by the others, and the table is complete."""
    full, out = work / "full", work / "disk"
    with tmpfs(full, "size=1m,nr_inodes=2"), ray_nodes(Node(LITTLE), Node(LARGE, variables={"TMPDIR": str(full)}), Node(LITTLE)) as nodes:
        seconds, _ = sweep(small_plan(work), out, "--ray", nodes.address)  # there is room for one file or folder
    tried = {result["job"]: result["tries"] for result in results(out).values()}
    assert set(tried.values()) == {2}, tried
    check_small(work, out)
    print(f"one full disk of three: {seconds:.0f} s, complete, the same bytes; tries {tried}", flush=True)


def folder(work: Path, plan: Path) -> None:
    """A node that does not see the sweep's folder: it is told by that, gets no more jobs, and nobody's try is lost."""
    out = work / "folder"
    out.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{out}" && exec "$@"', "sh"]
    with ray_nodes(Node(LITTLE), Node(LARGE, hidden), Node(LITTLE)) as nodes:
        seconds, said = sweep(small_plan(work), out, "--ray", nodes.address)
    (remark,) = [line for line in said.splitlines() if "does not see the folder" in line]
    assert {result["tries"] for result in results(out).values()} == {1}
    check_small(work, out)
    print(f"one of three nodes without the folder: {seconds:.0f} s, complete, every job at its first try. It said: {remark}", flush=True)


def check_small(work: Path, out: Path) -> None:
    """See that a small sweep is as processes of this machine make it."""
    if not (work / "small").exists():
        sweep(small_plan(work), work / "small")
    check_same(out, work / "small")


def small_plan(work: Path) -> Path:
    """A sweep of few seconds."""
    file = work / "small.yaml"
    file.write_text(SMALL)
    return file


@contextmanager
def tmpfs(place: Path, options: str) -> Iterator[None]:
    """A disk of its own at `place`, in memory."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


PARTS: dict[str, Callable[[Path, Path], None]] = {
    part.__name__: part for part in (same, lost, memory, disk, folder, overhead, many, lessons)
}  # fmt: skip


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
