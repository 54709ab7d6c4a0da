"""qlab's block formats against llama.cpp's own quantizer, a thread each: speed, and the error that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from qlab.formats.gguf.block_bytes import byte_tensor
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.peers import llamacpp


def against_llamacpp(rows: int = 2048, columns: int = 4096, repetitions: int = 7) -> None:
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
                ours, theirs = (partial(own_bytes, weight, kind, channels), partial(llamacpp.encode_rows, weight, kind, channels))
                (own_time, own), (its_time, its) = fastest_in_turns(ours, theirs, repetitions)
                errors = [weighted_error(found, kind, weight, channels) for found in (own, its)]
                print(
                    f"{kind:5} {label:10} {its_time / own_time:5.2f}× as fast ({weight.numel() / own_time / 1e6:5.0f} M weights/s), "
                    f"{errors[0] / errors[1]:.3f} of its error",
                    flush=True,
                )
    finally:
        torch.set_num_threads(threads)


def own_bytes(weight: Tensor, kind: str, importance: Tensor | None) -> Tensor:
    """What qlab writes into a GGUF file."""
    return byte_tensor(encode(weight, kind, importance))


def fastest_in_turns(first: Callable[[], Tensor], second: Callable[[], Tensor], repetitions: int) -> list[tuple[float, Tensor]]:
    """Of each, the seconds of its fastest run, and its result. They take turns, so that a machine's slow moments meet both."""
    found, best = [first(), second()], [float("inf")] * 2
    for _ in range(repetitions):
        for which, work in enumerate((first, second)):
            started = time.perf_counter()
            found[which] = work()
            best[which] = min(best[which], time.perf_counter() - started)
    return list(zip(best, found, strict=True))


def weighted_error(stored: Tensor, kind: str, weight: Tensor, importance: Tensor | None) -> float:
    """Mean squared error of the decoded weights, channels counting by their importance."""
    decoded = torch.from_numpy(dequantize(stored.numpy(), GGMLQuantizationType[kind]))
    error = (decoded - weight.float()).square()
    return float((error if importance is None else error * importance).mean())


if __name__ == "__main__":
    against_llamacpp()
