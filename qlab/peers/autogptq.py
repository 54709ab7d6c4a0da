"""AutoGPTQ 0.7.1, the reference GPTQ library (unmaintained; its successor is GPTQModel), made to work once more.

transformers, huggingface_hub and peft have moved since its last release, and it insists on CUDA. What it misses is put
back, and what it takes for granted is mended, inside one context that undoes itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qlab.formats.dynamic import all_settings
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.peers.families import check_family
from qlab.peers.patching import patched, silent
from qlab.support.errors import UserError
from qlab.support.precision import quick_products

CPU = torch.device("cpu")
# What `families` says, written down: `check` then needs no import of the library, which takes seconds.
KNOWN = (
    "bloom", "gpt_neox", "gptj", "gpt2", "llama", "opt", "moss", "gpt_bigcode", "codegen", "RefinedWebModel", "RefinedWeb", "falcon",
    "baichuan", "internlm", "qwen", "mistral", "Yi", "xverse", "deci", "stablelm_epoch", "mixtral", "qwen2", "longllama", "gemma",
)  # fmt: skip


@contextmanager
def revived() -> Iterator[Any]:
    """auto_gptq, importable and usable: on CUDA where there is a GPU, else on the CPU."""
    import huggingface_hub
    import peft.mapping
    import peft.peft_model
    import transformers.initialization
    import transformers.modeling_utils
    import transformers.utils.hub as hub
    from transformers.initialization import no_init_weights

    restored: list[tuple[Any, str, Any]] = [
        (transformers.modeling_utils, "no_init_weights", no_init_weights),
        (peft.peft_model, "PEFT_TYPE_TO_MODEL_MAPPING", peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING),
        *((hub, name, getattr(huggingface_hub, name)) for name in ("CommitOperationAdd", "create_commit", "create_repo")),
    ]
    with ExitStack() as stack:
        stack.enter_context(patched(*restored))
        import auto_gptq
        import auto_gptq.modeling._base as base

        if not torch.cuda.is_available():
            device = torch.device("cpu")
            stack.enter_context(patched((base, "CUDA_0", device), (torch.cuda, "synchronize", lambda device=None: None)))
        yield auto_gptq


def quantize(source: OpenedModel, windows: Tensor, out: Path, bits: int, group_size: int, symmetric: bool, act_order: bool) -> None:
    """Quantize to 4 bits with AutoGPTQ and save to `out`; calibration windows int64 [windows, length].

    A head that is tied to the embedding is in its file a second time: AutoGPTQ's save_quantized copies every entry of the state dict.

    Raises:
        UserError: a model that AutoGPTQ does not quantize.
    """
    check(source)
    with revived() as auto_gptq:
        from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

        config = auto_gptq.BaseQuantizeConfig(
            bits=bits, group_size=group_size, sym=symmetric, desc_act=act_order, damp_percent=0.01, model_name_or_path=source.name
        )
        inner = load(source, device="cuda:0" if torch.cuda.is_available() else "cpu")
        model = GPTQ_CAUSAL_LM_MODEL_MAP[source.config["model_type"]](inner, False, config)
        examples = [{"input_ids": window[None], "attention_mask": torch.ones_like(window[None])} for window in windows]
        blocks = inner.get_submodule(source.layout.blocks)
        with tuple_outputs(blocks), quick_blocks(blocks):
            model.quantize(examples)
        inner.half()  # what stays unquantized is stored as it came: in FP16
        model.save_quantized(str(out), use_safetensors=True)
        load_tokenizer(source).save_pretrained(out)
    # It names its file after the recipe, which transformers does not look for.
    (written,) = out.glob("*.safetensors")
    written.rename(out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(source.config | {"quantization_config": quantization_entry(out)}, indent=2) + "\n")


def families() -> list[str]:
    """The model types that AutoGPTQ has classes for."""
    with silent(), revived():
        from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

        return list(GPTQ_CAUSAL_LM_MODEL_MAP)


def check(source: OpenedModel) -> None:
    """Raise the UserError of a model that AutoGPTQ does not quantize."""
    check_family("AutoGPTQ", source, KNOWN)


def quantization_entry(out: Path) -> dict[str, Any]:
    """`quantization_config` for config.json, from the file that AutoGPTQ writes beside the weights."""
    written = json.loads((out / "quantize_config.json").read_text())
    keys = ("bits", "group_size", "desc_act", "sym", "damp_percent")
    return {"quant_method": "gptq", "checkpoint_format": "gptq"} | {key: written[key] for key in keys}


@contextmanager
def tuple_outputs(blocks: nn.Module) -> Iterator[None]:
    """The `blocks` of a decoder answer with a tuple, as they did when AutoGPTQ was written (it takes [0] of the answer)."""
    hooks = [
        block.register_forward_hook(lambda _, __, output: output if isinstance(output, tuple) else (output,)) for block in blocks.children()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quick_blocks(blocks: nn.Module) -> Iterator[None]:
    """Within the context the `blocks` multiply on a CPU as a walk of qlab's does (qlab.support.precision); H and all else in FP32."""
    from auto_gptq.quantization.gptq import GPTQ

    added = GPTQ.add_batch

    def add_batch(gptq: Any, inputs: Tensor, outputs: Tensor) -> None:
        with quick_products(CPU, False):
            added(gptq, inputs.float(), outputs)

    def quick(forward: Callable[..., Any]) -> Callable[..., Any]:
        def multiplied(*arguments: Any, **named: Any) -> Any:
            with quick_products(CPU):
                return forward(*arguments, **named)

        return multiplied

    with patched((GPTQ, "add_batch", add_batch), *((block, "forward", quick(block.forward)) for block in blocks.children())):
        yield


@contextmanager
def running(folder: Path) -> Iterator[PreTrainedModel]:
    """The checkpoint in AutoGPTQ's own layers, for measuring its speed; plain PyTorch where no GPU is.

    Made without memory for weights, which then are copies of the file's: what is not quantized in FP32 on a CPU, FP16 on a GPU.

    Raises:
        UserError: layers that are quantized otherwise than the rest.
    """
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    if any(quantization[key] != settings[key] for settings in all_settings(quantization) for key in ("bits", "group_size", "desc_act")):
        raise UserError("AutoGPTQ knows one width, group size and order for all layers, and dynamic gives some layers others")
    with revived():
        from auto_gptq.modeling._utils import make_quant

        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        state = load_file(folder / "model.safetensors", device)
        names = [name.removesuffix(".qweight") for name in state if name.endswith(".qweight")]
        make_quant(model, names, quantization["bits"], quantization["group_size"], desc_act=quantization["desc_act"], use_cuda_fp16=False)
        # Copied, also where nothing changes: a view would keep the file's mapping, and come into memory when it is first used.
        state = {name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True) for name, tensor in state.items()}
        model.load_state_dict(state, strict=False, assign=True)
        for name in [name for name in names if f"{name}.bias" not in state]:
            model.get_submodule(name).bias = None  # its layers are all made with one
        del state
        if config.tie_word_embeddings:
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        yield model.eval().to(device)
