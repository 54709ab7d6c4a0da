"""qlab's block formats against llama.cpp's own quantizer, a thread each: speed, and the error that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from qlab.formats.kquant_bytes import byte_tensor
from qlab.methods.kquant_kinds import KINDS
from qlab.methods.kquants import encode
from qlab.peers import llamacpp


def against_llamacpp(rows: int = 2048, columns: int = 4096, repetitions: int = 3) -> None:
    """Print, for each kind with and without importance, how many times as fast, and the error in parts of llama.cpp's."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(rows, columns, generator=generator)).half()
    importance = torch.rand(columns, generator=generator).pow(3) + 0.01
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"block formats on {rows} × {columns} weights, one thread, against llama.cpp's ggml_quantize_chunk:")
    try:
        for kind in KINDS:
            for label, channels in (("plain", None), ("importance", importance)):
                if channels is not None and kind == "Q8_0":
                    continue
                own_time, own = fastest(lambda k=kind, c=channels: byte_tensor(encode(weight, k, c)), repetitions)
                its_time, its = fastest(lambda k=kind, c=channels: llamacpp.encode_rows(weight, k, c), repetitions)
                errors = [weighted_error(found, kind, weight, channels) for found in (own, its)]
                print(
                    f"{kind:5} {label:10} {its_time / own_time:5.2f}× as fast ({weight.numel() / own_time / 1e6:5.0f} M weights/s), "
                    f"{errors[0] / errors[1]:.3f} of its error",
                    flush=True,
                )
    finally:
        torch.set_num_threads(threads)


def fastest(work: Callable[[], Tensor], repetitions: int) -> tuple[float, Tensor]:
    """Seconds of the fastest of several runs, and the result."""
    best, found = float("inf"), work()
    for _ in range(repetitions):
        started = time.perf_counter()
        found = work()
        best = min(best, time.perf_counter() - started)
    return best, found


def weighted_error(stored: Tensor, kind: str, weight: Tensor, importance: Tensor | None) -> float:
    """Mean squared error of the decoded weights, channels counting by their importance."""
    decoded = torch.from_numpy(dequantize(stored.numpy(), GGMLQuantizationType[kind]))
    error = (decoded - weight.float()).square()
    return float((error if importance is None else error * importance).mean())


if __name__ == "__main__":
    against_llamacpp()
