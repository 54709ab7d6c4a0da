"""AutoAWQ 0.2.9, the reference AWQ library (deprecated 2025-05; its successor is llm-compressor).

It quantizes under transformers 5 unchanged. Its loader wants Intel's IPEX on a CPU and takes Triton's presence for a
GPU's; both are told otherwise while a checkpoint is run here, which leaves its plain PyTorch path.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qlab.errors import UserError
from qlab.model import Source, load_tokenizer
from qlab.peers.patching import patched


def quantize(source: Source, windows: Tensor, out: Path, group_size: int) -> None:
    """Quantize to 4 bits with AutoAWQ's own recipe and save to `out`; calibration windows int64 [windows, length].

    Raises:
        UserError: a model type that AutoAWQ has no class for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecation notice, on import
        from awq import AutoAWQForCausalLM
        from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    if source.config["model_type"] not in AWQ_CAUSAL_LM_MODEL_MAP:
        raise UserError(f"AutoAWQ does not know the model type {source.config['model_type']!r}")
    # Without a GPU the search runs in FP32: half-precision products are emulated on most CPUs, tens of times slower.
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = AutoAWQForCausalLM.from_pretrained(
        str(source.path), safetensors=True, device_map=None, trust_remote_code=False, torch_dtype=dtype
    )
    tokenizer = load_tokenizer(source)
    # It tokenizes texts itself and drops those longer than max_calib_seq_len, so it gets token lists, one a window.
    model.quantize(
        tokenizer,
        quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "GEMM"},
        calib_data=windows.tolist(),
        max_calib_samples=len(windows),
        max_calib_seq_len=windows.shape[1],
    )
    model.model.half()  # what stays unquantized is stored as it came: in FP16
    model.save_quantized(str(out), safetensors=True)
    tokenizer.save_pretrained(out)


@contextmanager
def running(folder: Path) -> Iterator[PreTrainedModel]:
    """The checkpoint in AutoAWQ's own layers, for measuring its speed; plain PyTorch where no GPU is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import awq.models.base as base
        import awq.modules.linear.gemm as gemm
        from awq import AutoAWQForCausalLM
    on_gpu = torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    changes = [] if on_gpu else [(gemm, "TRITON_AVAILABLE", False), (base, "get_best_device", lambda: "plain")]
    with patched(*changes):
        loaded = AutoAWQForCausalLM.from_quantized(
            str(folder), fuse_layers=False, device_map={"": device}, trust_remote_code=False, safetensors=True
        )
        yield loaded.model.eval()
