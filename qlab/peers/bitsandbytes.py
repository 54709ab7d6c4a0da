"""bitsandbytes: NF4, made on the fly as a model is loaded (Dettmers et al. 2023, QLoRA), through transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from qlab.models.layout import class_of
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.peers.families import check_experts
from qlab.recipes.fitting import left_alone


def quantize(source: OpenedModel, out: Path, kind: str, double_quantization: bool) -> None:
    """Load in 4 bits (`kind` nf4 or fp4) and save to `out`, as transformers saves it. No calibration is needed.

    What lies beside the decoder, such as an image encoder, stays as it is, as in qlab's artifacts; by itself it would be quantized, too.

    Raises:
        UserError: a model that bitsandbytes does not quantize.
    """
    check(source)
    apart = left_alone(source)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", *apart] if apart else None,  # its name in spite of four bits
    )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = class_of(source.configuration, source.name).from_pretrained(
        source.path, quantization_config=config, dtype=torch.float16, device_map=device, trust_remote_code=False, use_safetensors=True
    )
    model.save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)


def check(source: OpenedModel) -> None:
    """Raise the UserError of a model that bitsandbytes does not quantize."""
    check_experts("bitsandbytes", source)
