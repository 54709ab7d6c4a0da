"""Mixtures of experts taken apart: each expert is a module of its own, whose layers are linear layers like all others.

transformers 5 holds the experts of a block as fused parameters, gate_up_proj and down_proj of three dimensions, behind one interface for
all families (transformers.integrations.moe.use_experts_implementation). Quantizers want a matrix an expert, and checkpoints mostly hold
them so; `Piece` says where such a matrix lies in the fused tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from qlab.support.errors import UserError

FUSED = ("gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias")
SIDE = 32  # of a matrix worth quantizing


@dataclass(frozen=True)
class Piece:
    """An expert's matrix [out, in] or bias [out] in the fused tensor `fused`: `count` rows from `first` on, every `step`-th.

    `part`: its place among those that the tensor holds of one expert, 0 for a gate, 1 for an up projection. `transposed`: the fused
    tensor is [experts, in, out].
    """

    fused: str
    expert: int
    part: int
    first: int
    step: int
    count: int
    transposed: bool

    def of(self, fused: Tensor) -> Tensor:
        """The piece of the whole fused tensor, a view."""
        return self.of_expert(fused[self.expert])

    def of_expert(self, fused: Tensor) -> Tensor:
        """The piece of what the fused tensor holds of this expert, a view."""
        rows = fused.T if self.transposed else fused
        return rows[self.first : self.first + self.count * self.step : self.step]


class Expert(nn.Module):
    """One expert of a fused module, on the meta device."""

    gate_proj: nn.Linear
    up_proj: nn.Linear

    def __init__(self, fused: Any) -> None:
        super().__init__()
        down = fused.down_proj.transpose(-1, -2) if fused.is_transposed else fused.down_proj
        width, inner = down.shape[-2:]
        for name in ("gate_proj", "up_proj") if fused.has_gate else ("up_proj",):
            self.add_module(name, nn.Linear(width, inner, fused.has_bias, device="meta"))
        self.down_proj = nn.Linear(inner, width, fused.has_bias, device="meta")
        self._fused = (fused,)  # in a tuple, so that it is no part of this module

    def forward(self, rows: Tensor) -> Tensor:
        """Tokens [..., in] → [..., in], the routing weight not yet in them."""
        (fused,) = self._fused
        if not fused.has_gate:
            return self.down_proj(fused.act_fn(self.up_proj(rows)))
        gate, up = self.gate_proj(rows), self.up_proj(rows)
        both = torch.cat([gate, up], -1) if fused.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        return self.down_proj(fused._apply_gate(both))


class Experts(nn.ModuleList):
    """The experts of a block one by one, called as transformers calls its fused module."""

    def __init__(self, fused: Any) -> None:
        super().__init__(Expert(fused) for _ in range(len(fused.down_proj)))

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Tokens [tokens, in] by the experts `chosen` for them [tokens, k] with `weights` [tokens, k]; a number beyond the last is none."""
        output = torch.zeros_like(hidden)
        for number in chosen.unique().tolist():
            if number < len(self):
                token, place = torch.where(chosen == number)
                output = output.index_add(0, token, (self[number](hidden[token]) * weights[token, place, None]).to(output.dtype))
        return output


class ScaledMixture(nn.Module):
    """Llama 4's mixture: an expert reads tokens times their scores, where those of other families multiply what an expert makes.

    Its class hands each expert all tokens, with zeros for those of others; here each is handed its own. Called and named as that class.
    """

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        fused = mixture.experts
        fused.has_gate, fused.has_bias, fused.has_post_expert_norm = True, False, False
        fused.is_concatenated, fused.is_transposed = True, True
        fused._apply_gate = lambda both: fused.act_fn(both.chunk(2, -1)[0]) * both.chunk(2, -1)[1]
        self.experts, self.router, self.shared_expert = fused, mixture.router, mixture.shared_expert

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., width] → what the mixture makes of them [tokens, width], and the router's logits [tokens, experts]."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores, logits = self.router(rows)  # 0 but for the chosen expert
        score, chosen = scores.max(-1, keepdim=True)
        return self.shared_expert(rows) + self.experts(rows * score, chosen, torch.ones_like(score)), logits


def separate_experts(model: PreTrainedModel) -> dict[str, Piece]:
    """Put `Experts` in the place of every fused module of an empty model; where each of their tensors lies in the fused ones, by name.

    Raises:
        UserError: experts that compute in another way than through transformers' interface or as Llama 4's.
    """
    pieces: dict[str, Piece] = {}
    for path, mixture in list(model.named_modules()):
        if isinstance(mixture, Llama4TextMoe):
            check_scaled(path, mixture)
            replace_module(model, path, ScaledMixture(mixture))
    for path, fused in list(model.named_modules()):
        if not hasattr(fused, "_apply_gate"):
            continue
        check_known(path, fused)
        pieces |= pieces_of(path, fused)
        replace_module(model, path, Experts(fused))
        for held in FUSED:
            fused._parameters.pop(held, None)
    return pieces


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def check_scaled(path: str, mixture: Any) -> None:
    """See that a mixture whose experts read scaled tokens gives each token to one of them, as all models of Llama 4 do.

    Raises:
        UserError: it gives them to several, which would read one token differently.
    """
    if mixture.top_k != 1:
        raise UserError(f"{path} gives a token to {mixture.top_k} experts, each of which reads it times another score: qlab takes one")


def check_known(path: str, fused: Any) -> None:
    """See that fused experts hold nothing but their matrices and biases.

    Raises:
        UserError: they do.
    """
    other = [name for name, _ in [*fused.named_parameters(), *fused.named_buffers()] if name not in FUSED]
    if other or fused.has_post_expert_norm:
        raise UserError(f"the experts in {path} ({type(fused).__name__}) hold more than matrices and biases: qlab does not take them apart")


def pieces_of(path: str, fused: Any) -> dict[str, Piece]:
    """The names of the experts' tensors, were they modules of their own, and where each lies."""
    found = {}
    for name, tensor in fused.named_parameters():
        layer, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
        transposed = kind == "weight" and fused.is_transposed
        rows = tensor.shape[-1] if transposed or kind == "bias" else tensor.shape[-2]
        parts = ("gate_proj", "up_proj") if layer == "gate_up_proj" else (layer,)
        for expert in range(len(tensor)):
            for part, own in enumerate(parts):
                count = rows // len(parts)
                first, step = (part * count, 1) if fused.is_concatenated else (part, len(parts))
                found[f"{path}.{expert}.{own}.{kind}"] = Piece(f"{path}.{name}", expert, part, first, step, count, transposed)
    return found


def experts_per_token(text: PreTrainedConfig) -> int:
    """How many experts of a block a token is given at most, by the configuration; 0 where there are none, or where it has another word for
    it."""
    values = (getattr(text, name, None) for name in ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"))
    sizes = (max(value, default=0) if isinstance(value, list) else value for value in values)  # Hunyuan's has one a block
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)


def check_separated(block: nn.Module, prefix: str) -> None:
    """See that no matrices are left in a block that no linear layer holds: several in a tensor, or single ones with most of its weights.

    Raises:
        UserError: some are: experts that a family computes in its own way, which would silently stay unquantized.
    """
    single: dict[str, Tensor] = {}
    linear = 0
    for path, module in block.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear):
                linear += tensor.numel()
            elif tensor.ndim == 3 and min(tensor.shape[1:]) >= SIDE and not isinstance(module, _ConvNd):
                raise UserError(own_way(f"{prefix}{path}.{name}", f"{list(tensor.shape)} of several matrices", module))
            elif tensor.ndim == 2:
                single[f"{path}.{name}"] = tensor
    if sum(tensor.numel() for tensor in single.values()) > linear:
        name = max(single, key=lambda found: single[found].numel())
        module = block.get_submodule(name.rpartition(".")[0])
        raise UserError(own_way(prefix + name, f"{list(single[name].shape)} in no linear layer", module))


def own_way(name: str, what: str, module: nn.Module) -> str:
    """What to say of a tensor that is computed with in a family's own way: one sentence."""
    return f"{name} is a tensor {what}, which {type(module).__name__} computes in a way of its own: qlab does not take it apart"


def gates_of(block: nn.Module) -> list[str]:
    """Modules that choose experts or weigh what they make, by name: beside the experts, with a row for each of them, or with one."""
    found = []
    for path, experts in block.named_modules():
        if not isinstance(experts, Experts):
            continue
        parent = path.rpartition(".")[0]
        for name, module in block.get_submodule(parent).named_children():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) in (1, len(experts)):
                found.append(f"{parent}.{name}" if parent else name)
    return found
