"""AutoAWQ 0.2.9, the reference AWQ library (deprecated 2025-05; its successor is llm-compressor).

It quantizes under transformers 5, but not rightly on a CPU: before it tries scales on a layer it keeps the weights by
`.cpu()`, which there is no copy, and so its first trial stays in the weights for good (`weights_really_kept` mends that;
on the embedded model the difference is one between a working model and noise). Its loader wants Intel's IPEX on a CPU and
takes Triton's presence for a GPU's; both are told otherwise while a checkpoint is run here, which leaves its plain PyTorch path.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.peers.families import check_family
from qlab.peers.patching import patched, silent
from qlab.support.precision import quick_products

CPU = torch.device("cpu")
# What `families` says, written down: `check` then needs no import of the library, which takes seconds.
KNOWN = (
    "mpt", "llama", "opt", "RefinedWeb", "RefinedWebModel", "exaone", "falcon", "bloom", "gptj", "gpt_bigcode", "mistral", "mixtral",
    "gpt_neox", "aquila", "Yi", "qwen", "baichuan", "llava", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "stablelm", "starcoder2",
    "llava_next", "phi3", "phi3_v", "cohere", "deepseek_v2", "deepseek_v3", "minicpm", "internlm2", "minicpm3", "qwen2_vl", "qwen2_5_vl",
    "qwen2_5_omni",
)  # fmt: skip


def quantize(source: OpenedModel, windows: Tensor, out: Path, group_size: int) -> None:
    """Quantize to 4 bits with AutoAWQ's own recipe and save to `out`; calibration windows int64 [windows, length].

    Raises:
        UserError: a model that AutoAWQ does not quantize.
    """
    check(source)
    with imported() as awq:
        AutoAWQForCausalLM = awq.AutoAWQForCausalLM
    # Without a GPU weights and sums are in FP32: half-precision products are emulated on most CPUs, tens of times slower.
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = AutoAWQForCausalLM.from_pretrained(
        str(source.path), safetensors=True, device_map=None, trust_remote_code=False, torch_dtype=dtype
    )
    tokenizer = load_tokenizer(source)
    with weights_really_kept(), clipping_from_the_hessian(), quick_trials():
        _quantize(model, tokenizer, windows, group_size)
    model.model.half()  # what stays unquantized is stored as it came: in FP16
    model.save_quantized(str(out), safetensors=True)
    tokenizer.save_pretrained(out)


def families() -> list[str]:
    """The model types that AutoAWQ has classes for."""
    with silent(), imported() as awq:
        return list(awq.models.auto.AWQ_CAUSAL_LM_MODEL_MAP)


def check(source: OpenedModel) -> None:
    """Raise the UserError of a model that AutoAWQ does not quantize."""
    check_family("AutoAWQ", source, KNOWN)


def _quantize(model: Any, tokenizer: PreTrainedTokenizerBase, windows: Tensor, group_size: int) -> None:
    # It tokenizes texts itself and drops those longer than max_calib_seq_len, so it gets token lists, one a window.
    model.quantize(
        tokenizer,
        quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "GEMM"},
        calib_data=windows.tolist(),
        max_calib_samples=len(windows),
        max_calib_seq_len=windows.shape[1],
    )


@contextmanager
def weights_really_kept() -> Iterator[None]:
    """Within the context, the scale search of AutoAWQ puts back the weights that it found, on a CPU too."""
    from awq.quantize.quantizer import AwqQuantizer

    search = AwqQuantizer._compute_best_scale

    def kept(self: Any, x: Tensor, w_mean: Tensor, x_mean: Tensor, module: nn.Module, *rest: Any) -> Tensor:
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with patched((module, "state_dict", lambda: state)):
            return search(self, x, w_mean, x_mean, module, *rest)

    with patched((AwqQuantizer, "_compute_best_scale", kept)):
        yield


@contextmanager
def quick_trials() -> Iterator[None]:
    """Within the context, what AutoAWQ computes to try scales multiplies on a CPU as a walk of qlab's does (qlab.support.precision)."""
    from awq.quantize.quantizer import AwqQuantizer

    computed = AwqQuantizer._module_forward

    def quick(quantizer: Any, x: Tensor, module: nn.Module, arguments: dict[str, Any]) -> Tensor:
        with quick_products(CPU):
            return computed(quantizer, x, module, arguments).to(x.dtype)

    with patched((AwqQuantizer, "_module_forward", quick)):
        yield


@contextmanager
def clipping_from_the_hessian() -> Iterator[None]:
    """Within the context, the clipping search of AutoAWQ takes each error from the Hessian of its inputs.

    Its own goes through each product of a weight and an input (out × in × 512 tokens, ten times), which takes most of the time where
    there is no GPU, and takes only layers whose number of outputs 64 divides. The mean of (x·d)² over the inputs x is d'Hd: the bounds
    are the same but for ties.
    """
    from awq.quantize.quantizer import AwqQuantizer

    with patched((AwqQuantizer, "_compute_best_clip", best_clip)):
        yield


@torch.no_grad()
def best_clip(
    quantizer: Any, weight: Tensor, features: Tensor, n_grid: int = 20, max_shrink: float = 0.5, n_sample_token: int = 512
) -> Tensor:
    """The bound of each group, [out, groups, 1], of weights [out, in] and inputs [.., in], as AwqQuantizer._compute_best_clip finds it."""
    size = quantizer.group_size if quantizer.group_size > 0 else weight.shape[1]
    features = features.flatten(0, -2)
    features = features[:: max(1, len(features) // n_sample_token)].float()
    by_group = features.view(len(features), -1, size).transpose(0, 1)  # [groups, tokens, size]
    hessian = by_group.transpose(1, 2) @ by_group / len(features)
    groups = weight.view(len(weight), -1, size)
    largest = groups.abs().amax(-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, 1e9, dtype=torch.float32)
    for step in range(int(max_shrink * n_grid)):
        bound = largest * (1 - step / n_grid)
        rounded = quantizer.pseudo_quantize_tensor(groups.clamp(-bound, bound).view_as(weight))[0].view_as(groups)
        change = (rounded - groups).float().transpose(0, 1)  # [groups, out, size]
        error = (change @ hessian).mul_(change).sum(-1).T.unsqueeze(-1)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, bound, best)
    return best


@contextmanager
def imported() -> Iterator[Any]:
    """awq, imported without its own deprecation notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import awq
        import awq.models.auto
        import awq.models.base
        import awq.modules.linear.gemm
    yield awq


@contextmanager
def running(folder: Path) -> Iterator[PreTrainedModel]:
    """The checkpoint in AutoAWQ's own layers, for measuring its speed; plain PyTorch where no GPU is."""
    with imported() as awq:
        base, gemm, AutoAWQForCausalLM = awq.models.base, awq.modules.linear.gemm, awq.AutoAWQForCausalLM
    on_gpu = torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    changes = [] if on_gpu else [(gemm, "TRITON_AVAILABLE", False), (base, "get_best_device", lambda: "plain")]
    with patched(*changes):
        loaded = AutoAWQForCausalLM.from_quantized(
            str(folder), fuse_layers=False, device_map={"": device}, trust_remote_code=False, safetensors=True
        )
        yield loaded.model.eval()
