"""Run by the Python of .venv-peers: quantize a model by AutoRound or llm-compressor. Of qlab nothing is imported here.

    .venv-peers/bin/python -I qlab/peers/at_work.py WORK PARENT

PARENT: the process that waits for it. WORK/request.json: {"library", "model": folder, "windows": [[token, ...], ...], "out": folder,
"device", "bits", "group_size", and, by library, "symmetric" and "iterations", or "smooth"}. Written are the checkpoint, in "out", and
WORK/cost.json: {"seconds", "peak_bytes"}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

AT_ONCE = 8  # windows, AutoRound's own number
SMOOTHING = 0.8  # of llm-compressor's published W8A8 recipe


def batches(windows: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """The windows as a model takes them, all of whose tokens count."""
    parts = torch.tensor(windows).split(AT_ONCE)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]


def auto_round(request: dict[str, Any]) -> None:
    """AutoRound (Cheng et al. 2023, SignRound) with its defaults but for the calibration text, in GPTQ's layout.

    On a CPU nothing is compiled: torch.compile wants a C++ compiler and Python's headers there, which not every machine has.
    """
    from auto_round import AutoRound

    out, windows = Path(request["out"]), request["windows"]
    tuned = AutoRound(
        request["model"], iters=request["iterations"], bits=request["bits"], group_size=request["group_size"], sym=request["symmetric"],
        dataset=batches(windows), nsamples=len(windows), seqlen=len(windows[0]), batch_size=AT_ONCE, device_map=request["device"],
        enable_torch_compile=request["device"] != "cpu", trust_remote_code=False,
    )  # fmt: skip
    _, folder = tuned.quantize_and_save(str(out), format="auto_gptq")
    for file in Path(folder).iterdir():  # it makes a folder of its own in there
        file.rename(out / file.name)
    Path(folder).rmdir()


def llm_compressor(request: dict[str, Any]) -> None:
    """llm-compressor's GPTQ with its defaults, of 4 bits in groups or, after SmoothQuant, of 8 bits a row and activations in 8 bits.

    On a CPU it computes in FP32, since half-precision products are emulated on most, and what it makes is stored in the model's own type.
    """
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from torch.utils.data import DataLoader

    stored: Any = AutoModelForCausalLM.from_pretrained(request["model"], dtype="auto", trust_remote_code=False, use_safetensors=True)
    dtype = stored.dtype
    model: Any = stored.float() if request["device"] == "cpu" else stored
    if request["device"] != "cpu":
        torch.cuda.set_device(torch.device(request["device"]).index or 0)
    grouped = {"num_bits": request["bits"], "type": "int", "symmetric": True, "strategy": "group", "group_size": request["group_size"]}
    if request["smooth"]:
        recipe = [SmoothQuantModifier(smoothing_strength=SMOOTHING), GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])]
    else:
        recipe = [GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": grouped}}, ignore=["lm_head"])]
    parts: Any = batches(request["windows"])  # a list has what a data set needs: a length, and items by number
    text: DataLoader[Any] = DataLoader(parts, batch_size=None)
    tokenizer = AutoTokenizer.from_pretrained(request["model"], trust_remote_code=False)
    oneshot(model=model, tokenizer=tokenizer, dataset=text, recipe=recipe)
    model.to(dtype).save_pretrained(request["out"])


LIBRARIES = {"AutoRound": ("auto_round", auto_round), "llm-compressor": ("llmcompressor", llm_compressor)}


def peak_bytes() -> int:
    """Most memory that this process held. Linux's getrusage begins with what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def end_with(parent: int) -> None:
    """End this process when its parent has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    try:
        print(f"the process {parent}, which waited for this one, has gone or is not its parent", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def main() -> None:
    work, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    request = json.loads((work / "request.json").read_text())
    module, quantize = LIBRARIES[request["library"]]
    import_module(module)
    started = time.perf_counter()
    quantize(request)
    cost = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    for file in Path(request["out"]).glob("*.py"):  # both copy what programs lie beside the model
        file.unlink()
    (work / "cost.json").write_text(json.dumps(cost))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a Python that has loaded PyTorch takes seconds to tear itself down


if __name__ == "__main__":
    main()
