"""bitsandbytes: NF4, made on the fly as a model is loaded (Dettmers et al. 2023, QLoRA), through transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel


def quantize(source: OpenedModel, out: Path, kind: str, double_quantization: bool) -> None:
    """Load in 4 bits (`kind` nf4 or fp4) and save to `out`, as transformers saves it. No calibration is needed."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=torch.float32,
    )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        source.path, quantization_config=config, dtype=torch.float16, device_map=device, trust_remote_code=False, use_safetensors=True
    )
    model.save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)
