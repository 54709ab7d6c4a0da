"""AutoRound and llm-compressor, which quantizers' users pick today, in an environment of their own: .venv-peers (`make peers`).

They want other versions of transformers than qlab has, so nothing of them is imported here. A process of that environment runs
qlab/peers/at_work.py on the same model and the same calibration windows, and writes a checkpoint in the library's own format, which qlab
reads as it reads any other.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
from pathlib import Path
from typing import Any

from torch import Tensor

from qlab import ROOT
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.recipes import Details
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.versions import versions_below

FOLDER = ROOT / ".venv-peers"
INSTALL = "make peers"
SCRIPT = Path(__file__).with_name("at_work.py")
AUTO_ROUND, LLM_COMPRESSOR = "AutoRound", "llm-compressor"
PACKAGES = {AUTO_ROUND: "auto-round", LLM_COMPRESSOR: "llmcompressor"}
BESIDE = ("compressed-tensors", "torch", "transformers")  # what their bytes depend on, too
PAUSE, TAIL = 0.2, 2000  # seconds between two looks at whether a library has ended; bytes of what it said that are kept
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def present() -> bool:
    """Whether the environment is there, and whole."""
    return (FOLDER / ".ready").exists()


def versions(library: str) -> dict[str, str]:
    """Versions in the environment of what the bytes depend on that `library` writes."""
    found = versions_below(FOLDER)
    return {name: found.get(name, "absent") for name in (PACKAGES[library], *BESIDE)}


def check(library: str, source: OpenedModel) -> None:
    """See that `library` is here, and that this is a model which qlab has it quantize.

    Raises:
        UserError: it is not, with the command that installs it; or a model of another kind.
    """
    if not present():
        raise UserError(f"{library} is not installed: it needs other versions than qlab, so '{INSTALL}' gives it an environment of its own")
    if source.layout.pieces or source.layout.towers:
        raise UserError(
            f"{library} has its own way with mixtures of experts and with models that read images, which qlab has not tried: "
            "it is given dense language models"
        )


def quantize(library: str, source: OpenedModel, windows: Tensor, out: Path, device: str, **options: Any) -> Details:
    """Quantize by `library` with its `options`, as at_work.py names them, into the folder `out`; calibration int64 [windows, length].

    Time and memory are those of the library's process; its imports take no part of the time, as with qlab's own recipes.

    Raises:
        UserError: as `check`.
        RuntimeError: the library failed, with the last line of what it said; all of it is on standard error.
    """
    check(library, source)
    with Scratch(out.parent) as work:
        request = {"library": library, "model": str(source.path), "windows": windows.tolist(), "out": str(out), "device": device, **options}
        (work / "request.json").write_text(json.dumps(request))
        with subprocess.Popen(
            command(work), env=os.environ | settings(work), cwd=work, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as done:
            try:
                last = passed_on(done)
                done.wait()
            except BaseException:
                done.kill()
                raise
        if done.returncode:
            raise RuntimeError(f"{library} ended with exit code {done.returncode}: {last}")
        cost = json.loads((work / "cost.json").read_text())
    load_tokenizer(source).save_pretrained(out)
    return {"cost": cost}


def passed_on(program: subprocess.Popen[bytes]) -> str:
    """Write to standard error what a program writes there, as it does so, until it ends or closes it. Its last line is returned, as the
    reason of a failure, or that it said nothing."""
    assert program.stderr is not None
    tail = b""
    with selectors.DefaultSelector() as waiting, open(2, "wb", closefd=False) as ours:
        waiting.register(program.stderr, selectors.EVENT_READ)
        while True:
            ended = program.poll() is not None  # what it started may go on, and hold the same pipe
            if not waiting.select(0 if ended else PAUSE):
                if ended:
                    break
                continue
            part = os.read(program.stderr.fileno(), 1 << 16)
            if not part:
                break
            ours.write(part)
            ours.flush()
            tail = (tail + part)[-TAIL:]
    lines = [line.strip() for line in re.split(r"[\r\n]", tail.decode(errors="replace")) if line.strip()]
    return lines[-1] if lines else "it said nothing"


def command(work: Path) -> list[str]:
    """What runs the script on `work`/request.json: isolated, so that neither qlab nor this folder's modules are imported in its place."""
    return [str(FOLDER / "bin" / "python"), "-I", str(SCRIPT), str(work), str(os.getpid())]


def settings(work: Path) -> dict[str, str]:
    """Of the environment: no network, and whatever a library writes beside the checkpoint goes with `work`."""
    return OFFLINE | {"AR_WORK_SPACE": str(work), "HF_HOME": str(work), "TORCHINDUCTOR_CACHE_DIR": str(work)}
