"""What an artifact holds once it is loaded, told from its files' headers: the planner for a model that is there already."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from qlab.formats.gguf.header import read_header
from qlab.formats.gguf.reading import gguf_files
from qlab.models.configuration import read_config
from qlab.models.gguf import gguf_sizes
from qlab.models.locating import kind_of, opened, weight_files
from qlab.plan.plan import CACHES, cache_bytes
from qlab.plan.shapes import config_shape

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
FLOATS = {"F32", "F16", "BF16"}
PARTS = (".qweight", ".weight.absmax", ".weight_packed", ".weight_scale")  # a quantized layer is known by one of these
REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")  # llama.cpp on x86 keeps these a second time, in the order of its AVX2 kernels
LLAMACPP = (
    16e6  # bytes of llama.cpp's code and buffers beside weights, cache and work space; measured on models of 11, 200 and 380 M weights
)
LLAMACPP_BATCH = 512  # tokens of a prompt that it computes at once, four rows of the MLP's width in FP32 for each (measured)
# bitsandbytes on a CPU that multiplies in BF16 packs every layer anew at its first use, with scales in BF16, while the file stays
# mapped: bytes a byte of codes, bytes a weight of the layer at hand, and of its own (see `make bench-runtimes`).
BITSANDBYTES_AGAIN, BITSANDBYTES_PACKING, BITSANDBYTES = 1.06, 9.0, 45e6
CUBLAS = (8 << 20, 32 << 20)  # bytes of work space that PyTorch gives cuBLAS: before Hopper, and from Hopper on
GGUF_CELLS = 256  # llama.cpp rounds a context up to so many tokens


@dataclass(frozen=True)
class Footprint:
    """Bytes: `weights` held in memory, `step` of them read for one token, `cache` a token of context, over `context` tokens.

    `overhead` is the runtime's own, where it is known (llama.cpp's with its work space); `pool` what it sets aside for the cache, where
    it does not go by the context; `work` what it takes beyond all that while it computes, None where that is not known. `largest`:
    weights of the MLP's widest layer; `codes`: bytes of all quantized layers' codes.
    """

    weights: float
    step: float
    cache: float
    context: int
    overhead: float = 0.0
    pool: float | None = None
    work: float | None = None
    largest: int = 0
    codes: int = 0

    @property
    def cached(self) -> float:
        """The cache of the whole context, or the pool for it."""
        return self.cache * self.context if self.pool is None else self.pool

    @property
    def total(self) -> float:
        """Weights, cache and overhead."""
        return self.weights + self.cached + self.overhead

    @property
    def peak(self) -> float | None:
        """The total, and what computing takes; None where that is not known."""
        return None if self.work is None else self.total + self.work


def footprint(folder: Path, context: int, float_bytes: int = 2, on_gpu: bool = False, cache_in: str = "f16") -> Footprint:
    """The memory of the artifact or model in `folder` with one sequence of `context` tokens.

    `float_bytes` is the size of a number in which the runtime computes: what is not quantized is held in it, and so is the cache
    (llama.cpp keeps both as the file has them, the cache in FP16), unless `cache_in` is another of qlab.plan.plan.CACHES. A step reads all
    but the input embedding, of which it needs a row.
    """
    if kind_of(folder) == "gguf":
        return gguf_footprint(gguf_files(folder), context, on_gpu, cache_in)
    tensors: dict[str, tuple[str, list[int]]] = {}
    for file in weight_files(folder):
        with opened(file) as stored:
            for name in stored.keys():  # noqa: SIM118  (no iterator)
                part = stored.get_slice(name)
                tensors[name] = (part.get_dtype(), part.get_shape())
    quantized = tuple({name[: -len(end)] + "." for name in tensors for end in PARTS if name.endswith(end)})
    config = read_config(folder)
    shape = replace(config_shape(config, folder.name), cache_bits=CACHES[cache_in])

    def held(name: str) -> int:
        dtype, sizes = tensors[name]
        computed = dtype in FLOATS and not name.startswith(quantized)
        return prod(sizes) * (float_bytes if computed else SIZES[dtype])

    tied = config.get("tie_word_embeddings", False)
    names = [name for name in tensors if not (tied and name == "lm_head.weight")]
    weights = sum(map(held, names))
    embedding = 0 if tied else sum(held(name) for name in names if name.endswith("embed_tokens.weight"))
    # Of experts, which are all in memory, a token reads those that it is given to.
    experts, spared = sum(held(name) for name in names if ".experts." in name), 1 - shape.read_parameters / shape.linear_parameters
    unread = min(experts, spared * sum(held(name) for name in names if ".layers." in name))
    cache = cache_bytes(shape, context) / context * (float_bytes / 2 if cache_in == "f16" else 1)
    fused = 2 if any("gate_up_proj" in name for name in names) else 1  # Phi's gate and up are one layer
    largest = fused * shape.hidden * shape.intermediate
    codes = sum(held(name) for name in names if name.startswith(quantized) and name.endswith(("weight", "weight_packed")))
    return Footprint(weights, int(weights - embedding - unread), cache, context, largest=largest, codes=codes)


def computing(model: Footprint, unpacked: float, capability: tuple[int, int] | None = None) -> Footprint:
    """With what PyTorch takes while it computes: the layer at hand as a library unpacks it, `unpacked` bytes a weight, and on a GPU
    cuBLAS's work space, by its compute capability."""
    return replace(model, work=(CUBLAS[capability >= (9, 0)] if capability else 0) + unpacked * model.largest)


def packed_by_bitsandbytes(model: Footprint) -> Footprint:
    """With what bitsandbytes makes of the weights on this CPU; of one without AVX512-BF16 it is not known."""
    from bitsandbytes.functional import has_avx512bf16  # its own word; the library is loaded where it is wanted only

    if not has_avx512bf16():
        return model
    return replace(model, work=BITSANDBYTES + BITSANDBYTES_AGAIN * model.codes + BITSANDBYTES_PACKING * model.largest)


def gguf_footprint(files: Sequence[Path], context: int, on_gpu: bool, cache_in: str) -> Footprint:
    """The same for llama.cpp, whose weights stay as they lie in the file, mapped, but for those that it packs anew for a CPU."""
    config: dict[str, Any] = gguf_sizes(files[0])  # first: it sees that the file is one of a whole model
    tensors = {name: tensor for file in files for name, tensor in read_header(file).tensors.items()}
    stored = sum(tensor.bytes for tensor in tensors.values())
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    again = [
        tensor.bytes for name, tensor in tensors.items()
        if tensor.kind in REPACKED and name != "token_embd.weight" and not on_gpu and platform.machine() in ("x86_64", "AMD64")
    ]  # fmt: skip
    embedding = tensors["token_embd.weight"].bytes if head == "output.weight" and "token_embd.weight" in tensors else 0
    rounded = -(-context // GGUF_CELLS) * GGUF_CELLS
    shape = replace(config_shape(config, files[0].stem), cache_bits=CACHES[cache_in])
    work = 0 if on_gpu else 4 * 4 * shape.intermediate * min(LLAMACPP_BATCH, context)
    return Footprint(
        stored + sum(again), stored - embedding, cache_bytes(shape, rounded) / rounded, rounded, LLAMACPP + work, work=None if on_gpu else 0
    )
