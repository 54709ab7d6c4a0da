"""What sweeps cost beside their jobs: parts of tests/sweep/acceptance.py."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import closing
from pathlib import Path

from qlab import ROOT
from qlab.sweep.drive import Patience, drive
from qlab.sweep.jobs import Job
from qlab.sweep.results import Store
from qlab.sweep.workers.connecting import connect
from qlab.sweep.workers.local import Local
from tests.sweep.whole import PATIENCE, sweep
from tests.sweep.workers.nodes import Node, ray_nodes
from tests.sweep.workers.test_local import until

NOTHING = 200  # jobs that do nothing
LARGE = 8_000_000_000  # bytes of memory: all jobs fit


def overhead(work: Path, plan: Path) -> None:
    """Jobs that do nothing, by processes and by three nodes: what each costs beside its process, and all together."""
    jobs = [Job("nothing", "m", "", ("--version",), f"n{number:03}", (), 1e8, 1.0) for number in range(NOTHING)]
    with ray_nodes(*[Node(LARGE, cores=1)] * 3) as nodes:
        lock = work / ".lock"
        lock.write_text("owner")
        for name, make in {
            "processes": lambda logs: Local(logs, LARGE, 2, 1), "nodes": lambda logs: connect(nodes.address, logs, lock, 1, "cpu")
        }.items():  # fmt: skip
            store = Store(work / f"nothing-{name}")
            store.folder.mkdir()
            with closing(make(store.folder)) as workers:
                until(lambda workers=workers: workers.at_once >= 2, PATIENCE)
                began, computed = time.monotonic(), time.process_time()
                end = drive(jobs, store, workers, Patience(2, 600), lambda _: None)
                took, computed, slots = time.monotonic() - began, time.process_time() - computed, workers.at_once
            assert len(end.done) == len(jobs)
            inside = sum(result["seconds"] for result in (json.loads(file.read_bytes()) for file in store.folder.glob("*.json")))
            beside = (took * slots - inside) / len(jobs)
            print(
                f"{len(jobs)} jobs that do nothing by {name}, {slots} at a time: {took:.1f} s, {inside / len(jobs):.2f} s a process, "
                f"{beside:.2f} s beside it; the driver computed {computed:.1f} s",
                flush=True,
            )  # fmt: skip
            assert beside < 2


def many(work: Path, plan: Path) -> None:
    """Ten thousand jobs: fifty models by two hundred recipes are expanded and shown."""
    embedded, file = ROOT / "data" / "embedded", work / "many.yaml"
    models = [work / "models" / f"m{number:02}" for number in range(50)]
    for number, model in enumerate(models):
        model.mkdir(parents=True)
        for source in embedded.glob("*.[js]*"):
            (model / source.name).symlink_to(source)
        (model / "config.json").unlink()
        (model / "config.json").write_text(json.dumps(json.loads((embedded / "config.json").read_bytes()) | {"copy": number}))
    methods, signs = ("rtn", "gptq", "awq", "awq-gptq"), ("-sym", "-asym")
    ends = [
        f"w{bits}g{size}{sign}{layout}" for bits in (2, 3, 4, 8) for size in (16, 32, 64, 128) for sign in signs for layout in ("", "-ct")
    ]
    recipes = [f"{each}-{end}" for each in methods for end in ends]
    file.write_text(f"models: [{', '.join(map(str, models))}]\nrecipes: [{', '.join(recipes[:200])}]\n")
    children_before, began = os.times().children_user + os.times().children_system, time.monotonic()
    _, said = sweep(file, work / "many", "--dry-run")
    computed = os.times().children_user + os.times().children_system - children_before
    jobs = next(line for line in said.splitlines() if " jobs, " in line)
    assert int(re.sub(r"\D", "", jobs.partition(" jobs")[0])) >= 10_000
    print(f"{jobs.partition(' jobs')[0]} jobs: {time.monotonic() - began:.1f} s, of which {computed:.1f} s of computing", flush=True)
