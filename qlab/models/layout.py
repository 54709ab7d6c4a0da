"""What a decoder consists of: where its blocks lie, which of their layers are linear, embedding, head and norm, by transformers' names.

The model is built by its transformers class without memory for weights (on the "meta" device) and looked at, so no family is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MoeModelOutputWithPast

from qlab.models.experts import Piece, check_separated, gates_of, separate_experts
from qlab.support.errors import UserError

Shape = tuple[int, ...]
REASON = 240  # characters of a library's own message that a user is shown


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a decoder with `count` blocks.

    `blocks`: the name of their list, "model.layers"; `backbone`: of the module around it, "model". `hidden`: the width of the hidden
    states. `embedding`, `head`: names of these weights, the same where they are tied.
    `shapes`: every tensor that a checkpoint of it holds, a tied head but once. `linear`: the weights [out, in] of linear layers in blocks
    that are quantized; each expert of a mixture has its own. `gates`: modules that choose experts or weigh them, which are not.
    `towers`: modules beside the decoder with linear layers, such as an image encoder. `pieces`: where an expert's tensors lie in those of
    transformers' class, and `fused`, the shapes of these.
    """

    blocks: str
    count: int
    hidden: int
    embedding: str
    head: str
    shapes: dict[str, Shape]
    linear: dict[str, Shape]
    gates: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    pieces: dict[str, Piece] = field(default_factory=dict)
    fused: dict[str, Shape] = field(default_factory=dict)

    @property
    def backbone(self) -> str:
        return self.blocks.rpartition(".")[0]

    @property
    def weights(self) -> int:
        """How many numbers the `shapes` hold."""
        return sum(map(prod, self.shapes.values()))

    def block(self, index: int) -> str:
        """What the names of block `index` begin with."""
        return f"{self.blocks}.{index}."

    def inside(self, name: str) -> bool:
        """Whether a tensor lies in a decoder block."""
        return name.startswith(f"{self.blocks}.")

    def within_block(self, name: str) -> str:
        """A name without its block's: model.layers.3.mlp.up_proj → mlp.up_proj."""
        return name.removeprefix(f"{self.blocks}.").partition(".")[2]

    def beside(self, name: str) -> bool:
        """Whether a tensor belongs to what lies beside the language model, such as an image encoder and what joins it on."""
        ends = {self.embedding.rpartition(".")[0], self.head.rpartition(".")[0]}
        return not name.startswith(f"{self.backbone}.".lstrip(".")) and name.rpartition(".")[0] not in ends

    @property
    def rest(self) -> list[str]:
        """Tensors outside the blocks."""
        return [name for name in self.shapes if not self.inside(name)]


def class_of(configuration: PreTrainedConfig, name: str) -> Any:
    """The transformers class that opens a configuration: a language model, alone or with towers for images around it.

    Of some (Llama 4, Qwen 3.5) the class of a language model would open the part that reads text alone: it is taken where `architectures`
    names it, else the whole.

    Raises:
        UserError: neither.
    """
    found: dict[Any, set[str]] = {}
    for automatic, known in (
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    ):
        if type(configuration) in known:
            kinds = known[type(configuration)]
            each: Any = kinds if isinstance(kinds, (list, tuple)) else (kinds,)
            found[automatic] = {kind.__name__ for kind in each}
    said = configuration.architectures
    named = {name for name in said if isinstance(name, str)} if isinstance(said, list) else set()
    if order := [*(automatic for automatic, kinds in found.items() if kinds & named), *found]:
        return order[0]
    raise UserError(
        f"{name} is of type {configuration.model_type}, which transformers opens neither as a language model nor as one that reads images: "
        "qlab quantizes only those"
    )


def empty_model(configuration: PreTrainedConfig, name: str) -> PreTrainedModel:
    """The model of a configuration, in evaluation mode, its weights float32 on the "meta" device: shapes without memory.

    Raises:
        UserError: transformers does not know its kind, or not as a language model.
    """
    kind = class_of(configuration, name)
    try:
        with torch.device("meta"):
            return kind.from_config(configuration, dtype=torch.float32, trust_remote_code=False).eval()
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(name, error)) from error


def cannot_open(name: str, error: Exception) -> str:
    """One sentence of what transformers said."""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"transformers cannot open {name}: {said[:REASON]}{'…' if len(said) > REASON else ''}"


def opened_layout(configuration: PreTrainedConfig, name: str) -> Layout:
    """The layout of a configuration's model, each of its experts taken for itself; `name` is what messages call it.

    Raises:
        UserError: as empty_model and layout_of, or experts that qlab does not take apart.
    """
    model = empty_model(configuration, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    pieces = separate_experts(model)
    found = layout_of(model, name)
    check_separated(model.get_submodule(found.blocks), f"{found.blocks}.")
    return replace(found, pieces=pieces, fused={piece.fused: shapes[piece.fused] for piece in pieces.values()})


def layout_of(model: PreTrainedModel, name: str) -> Layout:
    """The layout of an empty model, whose experts are layers if they were taken apart; `name` is what messages call it.

    Raises:
        UserError: it has no list of decoder blocks with linear layers.
    """
    text = model.config.get_text_config()
    blocks = blocks_of(model, name)
    stack: Any = model.get_submodule(blocks)
    names = {id(module): path for path, module in model.named_modules()}
    embedding: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    embedded = f"{names[id(embedding)]}.weight"
    own_head = f"{names[id(output)]}.weight" if output is not None else embedded
    # Where its configuration ties them and its class does not, or one within another says otherwise, what transformers made tells.
    head = embedded if output is None or stored_weight(output) is stored_weight(embedding) else own_head
    linear, gates = linear_layers(stack), [f"{index}.{gate}" for index, block in enumerate(stack) for gate in gates_of(block)]
    return Layout(
        blocks,
        len(stack),
        getattr(text, "hidden_size", embedding.embedding_dim),
        embedded,
        head,
        {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key == head or key != own_head},
        {f"{blocks}.{path}.weight": tuple(stored_weight(module).shape) for path, module in linear.items() if path not in set(gates)},
        tuple(f"{blocks}.{gate}" for gate in gates),
        tuple(towers_of(model, blocks, {embedded, own_head})),
    )


def stored_weight(module: nn.Module) -> Tensor:
    """A layer's weight as it lies there; asked for its `weight`, one that is at rest would make it anew, in FP32."""
    found: Tensor | None = module._parameters.get("weight")
    return found if found is not None else module.weight  # type: ignore[return-value]


def blocks_of(model: PreTrainedModel, name: str) -> str:
    """The name of the list of decoder blocks: as many as the configuration of the text says, in the part that reads text.

    Raises:
        UserError: there is none with linear layers.
    """
    decoder = model.get_decoder()
    prefix = next(f"{path}." if path else "" for path, module in model.named_modules() if module is decoder)
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and path.startswith(prefix)}
    outermost = {path: module for path, module in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = {path: linear_layers(module) for path, module in outermost.items() if len(module) == count}
    blocks = max(stacks, key=lambda path: len(stacks[path]), default="")
    if not blocks or not stacks[blocks]:
        raise UserError(
            f"{name} (model type {model.config.model_type}) has no list of decoder blocks with linear layers, which qlab quantizes"
        )
    return blocks


def towers_of(model: PreTrainedModel, blocks: str, ends: set[str]) -> Iterable[str]:
    """The outermost modules with linear layers that hold neither the decoder blocks nor one of the weights `ends`."""
    found: list[str] = []
    for path, module in model.named_modules():
        apart = path and not f"{blocks}.".startswith(f"{path}.") and not any(f"{end}.".startswith(f"{path}.") for end in ends)
        beneath = any(path.startswith(f"{other}.") for other in (*found, blocks))
        if apart and not beneath and any(isinstance(part, nn.Linear) for part in module.modules()):
            found.append(path)
    return found


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers within a module, by name."""
    return {path: found for path, found in module.named_modules() if isinstance(found, nn.Linear)}


@torch.no_grad()
def compute_buffers(model: PreTrainedModel, modules: Iterable[nn.Module], device: str) -> None:
    """Buffers that no checkpoint holds, such as rotary frequencies or Gemma's scale of the embedding, as transformers makes them.

    Raises:
        UserError: one that transformers does not make again.
    """
    computing = [module for module in modules if module._non_persistent_buffers_set]
    inner = [part for part in model.modules() if isinstance(part, PreTrainedModel)] if computing else []
    owners = {module: part for part in inner for module in part.modules()}  # the innermost model, such as an image encoder, knows how
    for module in computing:
        for name in module._non_persistent_buffers_set:
            # NaN first: a buffer that transformers leaves as it was is then seen.
            buffer = module.get_buffer(name)
            kind = torch.float32 if buffer.is_floating_point() else buffer.dtype
            value = torch.nan if buffer.is_floating_point() or buffer.is_complex() else 0
            module._buffers[name] = torch.full_like(buffer, value, dtype=kind, device=device)
        owners.get(module, model)._init_weights(module)
        for name in module._non_persistent_buffers_set:
            if not module.get_buffer(name).isfinite().all():
                raise UserError(f"qlab cannot compute {name} of {type(module).__name__}, which no checkpoint holds")


@torch.no_grad()
def made_of_one(configuration: PreTrainedConfig, name: str) -> float:
    """What the class of a configuration makes of a 1 that its output head writes: by what it multiplies logits, or how it bends them.

    Raises:
        UserError: as empty_model and blocks_of.
    """
    model: Any = empty_model(configuration, name)
    backbone = model.get_submodule(blocks_of(model, name).rpartition(".")[0])
    backbone.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=torch.zeros(1, 1, 1))
    model.get_output_embeddings().forward = lambda _: torch.ones(1, 1, 1)
    return float(model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device="meta"), use_cache=False).logits)


def configuration_of(folder: Path, name: str) -> PreTrainedConfig:
    """transformers' configuration of a folder, no code of the folder run.

    Raises:
        UserError: transformers does not know its kind, or a value makes no sense.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(name, error)) from error


def configuration_from(settings: dict[str, Any], name: str) -> PreTrainedConfig:
    """transformers' configuration of what a config.json says.

    Raises:
        UserError: as configuration_of.
    """
    try:
        return AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(settings))  # transformers writes infinity as an object
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(name, error)) from error
