"""One lesson on a made-up model of 8B in shape, cell after cell in this process: what it holds of the device, predicted and measured.

`python -m tests.bench.lesson_memory --device cuda --lesson 1`, on a machine with a GPU; `--blocks 8` where time is short, `--shape tiny
--device cpu` anywhere. Cells that need a library, a runtime or a cell that is not here are left out and named, as are recipes of libraries
that are not here. `--room`: GB of the device that are to be there at most. It needs no Jupyter: pictures are drawn, and shown to nobody.
`--work` keeps model and artifacts for another call; an earlier lesson's artifacts are taken. `-p name=value` sets a lesson's parameter.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import MagicMock, patch

import psutil
import torch

SHAPES = {
    "8B": {"layers": 32, "hidden": 4096, "mlp": 14336, "heads": 32, "kv_heads": 8, "rows": 128256},
    "1B": {"layers": 16, "hidden": 2048, "mlp": 8192, "heads": 32, "kv_heads": 8, "rows": 128256},
    "tiny": {"layers": 2, "hidden": 256, "mlp": 512, "heads": 4, "kv_heads": 2, "rows": 5000},
}
PAUSE = 0.02  # seconds between two looks at the device
END = re.compile(r"^## (Exercises|What was measured|Recap)", re.MULTILINE)  # what follows asks a reader
# By the recipes that need them; those of .venv-peers say themselves that it is not there.
LIBRARIES = {"AutoAWQ": "awq", "AutoGPTQ": "auto_gptq", "BitsAndBytes": "bitsandbytes", "LlamaCpp": "xllamacpp"}
UNASKED = re.compile(r"lesson\.artifact\(LlamaCpp\(\)\)")  # a library beside ours, which no list of recipes names
BESIDE_IT = re.compile(r"\"llama\.cpp's q4_k_m\"\)")  # a cell that holds others against it
LEFT_OUT = re.compile(r"\b(serving|serve_in_turn)\(|row\.figures")  # cells that start a runtime, or show how fast one was


def unshown() -> None:
    """Have nothing shown, and stand in for what shows a lesson to people where it is not installed."""
    for name in ("IPython", "ipywidgets", "nbformat"):
        if find_spec(name) is None:
            sys.modules[name] = MagicMock(version_info=(9, 0))  # what Matplotlib asks of IPython
            sys.modules[f"{name}.display"] = sys.modules[f"{name}.v4"] = MagicMock()
    display = import_module("IPython.display")
    display.display = lambda *_, **__: MagicMock()  # type: ignore[attr-defined]


def cells_of(lesson: str) -> Iterator[str]:
    """A lesson's code but for its parameters, up to its exercises."""
    from qlab import ROOT

    for cell in json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and END.search(source):
            return
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            yield source


def parameters_in(lesson: str) -> dict[str, Any]:
    """A lesson's parameters as its cell has them."""
    from qlab import ROOT

    cells = json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        assert isinstance(node, ast.Assign)
        found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return found


def imports_of(source: str) -> CodeType:
    """A cell's imports alone."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return compile(ast.Module(found, []), "<imports>", "exec")


class Watch:
    """What is held of the device at the most: by this process's tensors, and by all processes; bytes."""

    def __init__(self, device: str) -> None:
        self.device, self.gpu = device, torch.device(device).type == "cuda"
        self.before = self.everyone = 0
        if self.gpu:
            torch.zeros(1, device=device)
            self.before = self.used() - torch.cuda.memory_reserved(device)  # what a process has before any tensor, and what others have
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def used(self) -> int:
        """What all hold of a GPU now; on a CPU, what this process holds."""
        if not self.gpu:
            return psutil.Process().memory_info().rss
        free, whole = torch.cuda.mem_get_info(self.device)
        return whole - free

    def _look(self) -> None:
        while not self._done.wait(PAUSE):
            self.everyone = max(self.everyone, self.used())

    def start(self) -> None:
        """Measure from here on."""
        self.everyone = self.used()
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def own(self) -> int:
        """This process's peak since `start`."""
        return self.before + torch.cuda.max_memory_allocated(self.device) if self.gpu else self.everyone

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def present(things: Mapping[str, Any]) -> dict[str, Any]:
    """Recipes but for those of libraries that are not here."""
    return {name: recipe for name, recipe in things.items() if is_here(LIBRARIES.get(type(recipe).__name__, "qlab"))}


def is_here(library: str) -> bool:
    """Whether a package can be imported here."""
    return find_spec(library) is not None


@contextmanager
def in_a_room(device: str, room: float) -> Iterator[None]:
    """Within the context the device has `room` bytes for this process and no more."""
    from qlab.models.resting import choosing
    from qlab.workbook.lesson import Lesson

    real, allowed = choosing.free_on, Lesson.able

    def free(asked: str) -> float:
        held = torch.cuda.memory_allocated(asked) if torch.device(asked).type == "cuda" else 0
        return min(real(asked), room - held)

    if torch.device(device).type == "cuda":
        whole = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / whole), torch.device(device).index or 0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(choosing, "free_on", free))
        stack.enter_context(patch.object(Lesson, "able", lambda self, recipes: allowed(self, present(recipes))))
        yield


@contextmanager
def untimed() -> Iterator[None]:
    """Lesson 7 without the speeds: they are other processes'."""
    from qlab.evaluate.rounds import Measured
    from qlab.workbook import benchmark

    def none(folders: Mapping[str, Path], *_: Any) -> list[Measured]:
        return [Measured(name, "none", None, "not timed here") for name in folders]

    with patch.object(benchmark, "measure_in_turns", none):
        yield


def first_only(draw: Callable[..., Any], **choices: Sequence[Any]) -> None:
    """In place of a control: its first picture."""
    draw(**{name: values[0] for name, values in choices.items()})


def run(lesson: str, values: dict[str, Any], watch: Watch, budget: float) -> tuple[int, int, list[str]]:
    """Run the cells; this process's peak, everybody's, and what failed. No cell starts once `budget` seconds are over."""
    from qlab.show import widgets

    names: dict[str, Any] = dict(values)
    own = everyone = 0
    failed, started, llamacpp = list[str](), time.monotonic(), is_here(LIBRARIES["LlamaCpp"])
    with patch.object(widgets, "explore", first_only):
        for number, source in enumerate(cells_of(lesson), 1):
            title = next((line for line in source.splitlines() if line and not line.startswith(("from ", "import ", "#"))), "")[:60]
            if time.monotonic() - started > budget:
                print(f"cell {number:2}: not run, {budget:.0f} s are over: {title}", flush=True)
                continue
            if LEFT_OUT.search(source) or (BESIDE_IT.search(source) and not llamacpp):
                print(f"cell {number:2}: left out, of a runtime or library: {title}", flush=True)
                exec(imports_of(source), names)  # later cells count on them
                continue
            if UNASKED.search(source) and not llamacpp:
                source = "\n".join(line for line in source.splitlines() if not UNASKED.search(line))
            watch.start()
            begun, said = time.monotonic(), "done"
            try:
                with redirect_stdout(StringIO()):
                    exec(compile(source, f"<{lesson}, cell {number}>", "exec"), names)
            except (ImportError, NameError) as error:
                said = f"left out: {error}"
            except Exception as error:  # a figure of what was left out, mostly
                said = f"FAILED: {type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
                failed.append(f"cell {number}: {''.join(traceback.format_exception(error)[-4:])}")
            gc.collect()
            own, everyone = max(own, watch.own()), max(everyone, watch.everyone)
            took = time.monotonic() - begun
            print(
                f"cell {number:2}: {watch.own() / 1e9:6.2f} GB own, {watch.everyone / 1e9:6.2f} all, {took:6.1f} s, {said}: {title}",
                flush=True,
            )
    return own, everyone, failed


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesson", type=int, required=True, choices=range(1, 8))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--blocks", type=int, default=0, help="0: as many as the shape has")
    parser.add_argument("--room", type=float, default=24.0, help="GB")
    parser.add_argument("--seconds", type=float, default=480.0, help="no cell starts later")
    parser.add_argument("--work", type=Path, help="folder of the model and of what is made of it; else a temporary one")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one lesson; 1 where a cell failed."""
    options = options_of(arguments)
    unshown()
    from qlab import ROOT
    from qlab.models.opening import locate
    from qlab.models.resting import choosing
    from qlab.workbook.batch.costs import CONTEXT, cost_of
    from tests.bench.made_up import make_checkpoint

    shape = SHAPES[options.shape] | ({"layers": options.blocks} if options.blocks else {})
    with ExitStack() as stack:
        work: Path = (options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qlab-bench-")))).resolve()
        model = work / f"made-up-{options.shape}-{shape['layers']}"
        if not (model / "config.json").exists():
            make_checkpoint(model, **shape, dtype=torch.bfloat16, alike=True)
        lesson = next(file.stem for file in sorted((ROOT / "notebooks").glob(f"{options.lesson:02}_*.ipynb")))
        values = parameters_in(lesson) | {"model": str(model), "work": str(work / "artifacts"), "device": options.device}
        for text in options.p:
            name, _, value = text.partition("=")
            values[name] = type(values[name])(value)
        on_gpu = torch.device(options.device).type == "cuda"
        watch = Watch(options.device)
        stack.callback(watch.close)
        stack.enter_context(in_a_room(options.device, options.room * 1e9))
        stack.enter_context(untimed())
        source = locate(str(model))
        holding = choosing.held_on(source, options.device)
        predicted = cost_of(lesson, source, values, holding, on_gpu, choosing.free_on(options.device) + CONTEXT * on_gpu)
        card = torch.cuda.get_device_name(options.device) if on_gpu else "CPU"
        print(f"{lesson}, {options.shape} shape, {shape['layers']} blocks, {source.layout.weights / 1e9:.2f} G weights, {card}")
        print(f"{holding}: {choosing.resting_bytes(source) / 1e9:.2f} GB; {watch.before / 1e9:.2f} GB before any tensor", flush=True)
        own, everyone, failed = run(lesson, values, watch, options.seconds)
        foreseen = predicted.gpu if on_gpu else predicted.memory
        print(*failed, sep="\n")
        print(
            f"{lesson}: predicted {foreseen / 1e9:.2f} GB, measured {own / 1e9:.2f} GB ({own / foreseen - 1:+.0%}); all processes at the "
            f"most {everyone / 1e9:.2f} GB; {len(failed)} cells failed"
        )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
