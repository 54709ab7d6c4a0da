"""What becomes of a tensor on its way into a GGUF file, and the way back: another order of rows, several tensors, another number.

llama.cpp's conversion scripts do these things on the way there; here each is a `Form` with its inverse, so that what is written can be
read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """Of tensors whose names end as `end`, a regular expression, says.

    `split`: the plain tensor as the tensors that the file holds of it; `join`: these as the plain one. `parts`: what their names have in
    the place of `end`, by which gguf-py knows them; none where one tensor keeps its name. `unlike`: numbers of parts whose columns are not
    the layer's inputs.
    """

    end: str
    split: Callable[[Tensor, Config], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor], Config], Tensor]
    parts: tuple[str, ...] = ()
    unlike: tuple[int, ...] = ()

    def matches(self, name: str) -> bool:
        return re.search(f"(?:{self.end})$", name) is not None

    def names(self, name: str) -> list[str]:
        """The names of the parts of the tensor `name`."""
        return [re.sub(f"(?:{self.end})$", part, name) for part in self.parts] or [name]


def as_it_is(tensor: Tensor, config: Config) -> list[Tensor]:
    return [tensor]


def the_one(parts: Sequence[Tensor], config: Config) -> Tensor:
    (tensor,) = parts
    return tensor


SAME = Form("", as_it_is, the_one)


def renamed(end: str, *parts: str) -> Form:
    return Form(end, as_it_is, the_one, parts)


def one(end: str, to: Callable[[Tensor, Config], Tensor], back: Callable[[Tensor, Config], Tensor], *parts: str) -> Form:
    """A form of one tensor."""
    return Form(end, lambda tensor, config: [to(tensor, config)], lambda found, config: back(the_one(found, config), config), parts)


def in_pairs(heads: str, tensor: Tensor, config: Config) -> Tensor:
    """Rows in the order of an interleaved rotary embedding: the two that are turned together lie together."""
    return tensor.view(config[heads], 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def in_halves(heads: str, tensor: Tensor, config: Config) -> Tensor:
    return tensor.view(config[heads], -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def in_rotary_order(part: str, heads: str) -> Form:
    return one(rf"\.{part}\.(?:weight|bias)", partial(in_pairs, heads), partial(in_halves, heads))


TURNED = (in_rotary_order("q_proj", "num_attention_heads"), in_rotary_order("k_proj", "num_key_value_heads"))


def shifted(end: str, offset: float = 1.0) -> Form:
    """A norm's weight with what its family adds to it, in float32: the file's type, which holds half precision and the sum alike."""
    return one(end, lambda tensor, config: tensor.float() + offset, lambda tensor, config: tensor.float() - offset)


NORMS = shifted(r"norm\.weight")
CONVOLUTION = one(r"conv(?:1d)?\.weight", lambda tensor, config: tensor.squeeze(1), lambda tensor, config: tensor.unsqueeze(1))
SINKS = renamed(r"\.sinks", ".sinks.weight")
CORRECTION = renamed("e_score_correction_bias", "e_score_correction.bias")
EXPERT_BIAS = renamed(r"\.expert_bias", ".expert_bias.bias")
STEP = renamed("dt_bias", "dt_proj.bias")
STATICS = one(
    r"gate\.moe_statics\.e_score_correction_bias",
    lambda tensor, config: tensor.flatten(),
    lambda tensor, config: tensor.unsqueeze(0),
    "moe_statics.e_score_correction.bias",
)
DECAY = one(  # a state decays by exp(−exp(A_log) …)
    "A_log", lambda tensor, config: -tensor.float().exp(), lambda tensor, config: (-tensor.float()).log()
)
COLUMNS = (  # what has a number for each head of Mamba is a matrix of one column
    one(
        "A_log",
        lambda tensor, config: -tensor.float().exp().unsqueeze(-1),
        lambda tensor, config: (-tensor.float()).log().squeeze(-1),
    ),
    one(r"mamba\.D", lambda tensor, config: tensor.unsqueeze(-1), lambda tensor, config: tensor.squeeze(-1)),
    one(
        r"mamba\.norm\.weight",
        lambda tensor, config: tensor.view(config["mamba_n_groups"], -1),
        lambda tensor, config: tensor.flatten(),
    ),
)
SHARED_GATE_UP = Form(
    r"shared_mlp\.input_linear\.weight",
    lambda tensor, config: tensor.chunk(2),
    lambda parts, config: torch.cat(list(parts)),
    ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
)

SHARED_ALONE = (  # without experts it is the MLP
    Form(SHARED_GATE_UP.end, SHARED_GATE_UP.split, SHARED_GATE_UP.join, ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
    renamed(r"shared_mlp\.output_linear\.weight", "mlp.down_proj.weight"),
)


def unfolding(tensor: Tensor, config: Config) -> list[Tensor]:
    """DeepSeek's kv_b_proj [heads · (keys + values), latent] for each head: keys [latent, keys], values [values, latent]."""
    heads, keys, values = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    of_keys, of_values = tensor.view(heads, keys + values, -1).split([keys, values], 1)
    return [of_keys.transpose(1, 2).contiguous(), of_values.contiguous()]


def folded(parts: Sequence[Tensor], config: Config) -> Tensor:
    of_keys, of_values = parts
    return torch.cat([of_keys.transpose(1, 2), of_values], 1).flatten(0, 1)


LATENT = Form(r"kv_b_proj\.weight", unfolding, folded, ("k_b_proj.weight", "v_b_proj.weight"), unlike=(0,))


def by_kind(tensor: Tensor, config: Config) -> list[Tensor]:
    """Rows of queries, keys and values that come head by head, (queries of a group, its key, its value): first all queries, then keys."""
    groups, shape = config["num_key_value_heads"], tensor.shape
    heads = tensor.view(groups, config["num_attention_heads"] // groups + 2, -1, *shape[1:])
    return [torch.cat([heads[:, :-2].flatten(0, 2), heads[:, -2].flatten(0, 1), heads[:, -1].flatten(0, 1)])]


def by_group(parts: Sequence[Tensor], config: Config) -> Tensor:
    tensor, groups = the_one(parts, config), config["num_key_value_heads"]
    sharing = config["num_attention_heads"] // groups
    heads = tensor.view(groups * (sharing + 2), -1, *tensor.shape[1:])
    queries, keys, values = heads.split([groups * sharing, groups, groups])
    found = [queries.view(groups, sharing, *heads.shape[1:]), keys.unsqueeze(1), values.unsqueeze(1)]
    return torch.cat(found, 1).reshape(tensor.shape)


FUSED = Form(r"query_key_value\.(?:weight|bias)", by_kind, by_group)


def delta_widths(config: Config) -> list[int]:
    """Rows of a key head of Qwen3-Next's linear attention: its query, its key, its values, their gates."""
    values = config["linear_num_value_heads"] // config["linear_num_key_heads"] * config["linear_value_head_dim"]
    return [config["linear_key_head_dim"], config["linear_key_head_dim"], values, values]


def delta_by_kind(tensor: Tensor, config: Config) -> list[Tensor]:
    heads = tensor.view(config["linear_num_key_heads"], -1, *tensor.shape[1:]).split(delta_widths(config), 1)
    *mixed, gates = [part.flatten(0, 1) for part in heads]
    return [torch.cat(mixed), gates]


def delta_by_head(parts: Sequence[Tensor], config: Config) -> Tensor:
    mixed, gates = parts
    count = config["linear_num_key_heads"]
    kinds = [*mixed.split([count * width for width in delta_widths(config)[:-1]]), gates]
    return torch.cat([kind.view(count, -1, *kind.shape[1:]) for kind in kinds], 1).flatten(0, 1)


DELTA = Form(r"in_proj_qkvz\.weight", delta_by_kind, delta_by_head, ("in_proj_qkv.weight", "in_proj_z.weight"))
