"""Shapes of models that are no plain decoders: counted from the model's class, which is built without memory for weights.

Mixtures of experts (all their weights in memory, few of them read for a token), sliding windows, attention that keeps a state instead of a
cache, latent attention, layers that share a cache, towers for images.
"""

from __future__ import annotations

from math import prod
from typing import Any

from transformers import PreTrainedConfig

from qlab.models.experts import experts_per_token
from qlab.models.layout import Layout, configuration_from, opened_layout
from qlab.plan.plan import Cached, Counted, Shape
from qlab.support.errors import UserError

WINDOWED = ("sliding_attention", "chunked_attention")
STATES = ("linear_attention", "mamba", "conv")
SIZES_OF_A_STATE = (  # of linear attention, and of Mamba, whose blocks some configurations call linear attention too
    ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),
)


def counted_shape(config: dict[str, Any], name: str) -> Shape:
    """The shape of the model in a config.json, by its transformers class.

    Raises:
        UserError: transformers does not know it, or it is no language model that qlab takes.
    """
    texts = config.get("text_config") or {}
    by_its_class = "model_type" in texts  # a wrapped model's language part may say no more than what it is (LLaVA 1.5)
    if not by_its_class and not {"num_hidden_layers", "n_layer", "n_layers", "num_layers"} & (texts or config).keys():
        raise UserError(f"the configuration of {name} lacks num_hidden_layers: without sizes its memory cannot be counted")
    configuration = configuration_from({key: value for key, value in config.items() if key != "quantization_config"}, name)
    layout = opened_layout(configuration, name)
    text = configuration.get_text_config()
    blocks = [of_block(text, index) for index in range(layout.count)]
    sizes = [heads_of(block, layout.hidden, name) for block in blocks]
    heads, _, head_size = sizes[0]
    kv_heads = min(own[1] for own in sizes)  # what several devices can share of the block that has fewest
    linear = {weight.removesuffix(".weight"): shape for weight, shape in layout.linear.items()}
    around = (key for key, shape in layout.shapes.items() if not layout.inside(key) and not layout.beside(key) and len(shape) == 2)
    ends = sum(prod(layout.shapes[key]) for key in around)  # embedding and head; learned positions, embeddings of each block
    towers = sum(prod(shape) for key, shape in layout.shapes.items() if layout.beside(key))
    counted = Counted(
        tuple((layer, (shape[0], shape[1])) for layer, shape in linear.items()),
        read_by_a_token(layout, experts_per_token(text) or 1),
        ends,
        towers,
        tuple(cached(block, index, 2 * own[1] * own[2]) for index, (block, own) in enumerate(zip(blocks, sizes))),
    )
    wide = max(shape[0] for shape in layout.linear.values())
    vocabulary = layout.shapes[layout.embedding][0]
    return Shape(layout.count, layout.hidden, wide, heads, kv_heads, head_size, vocabulary, layout.embedding == layout.head, counted)


def of_block(text: PreTrainedConfig, index: int) -> PreTrainedConfig:
    """The configuration of block `index`: transformers has one for each where sizes differ between blocks, as those of Gemma 4's heads."""
    return text.per_layer_config[index] if getattr(text, "is_heterogeneous", False) else text


def heads_of(block: PreTrainedConfig, hidden: int, name: str) -> tuple[int, int, int]:
    """A block's heads, those of keys and values, and their size."""
    heads = whole(block, "num_attention_heads", name)
    return heads, first(block, ("num_key_value_heads", "num_kv_heads")) or heads, first(block, ("head_dim",)) or hidden // heads


def read_by_a_token(layout: Layout, chosen: int) -> int:
    """Weights of linear layers that one token reads: of experts only those that it is given to."""
    own = sum(prod(shape) for name, shape in layout.linear.items() if name not in layout.pieces)
    stacks: dict[str, list[int]] = {}
    for name, piece in layout.pieces.items():
        if name in layout.linear:
            stacks.setdefault(f"{piece.fused}.{piece.part}", []).append(prod(layout.linear[name]))
    return own + sum(min(chosen, len(sizes)) * sizes[0] for sizes in stacks.values())


def cached(text: PreTrainedConfig, index: int, usual: int) -> Cached:
    """What block `index` keeps of a text: `usual` numbers a token, or what its kind of attention needs."""
    shared = first(text, ("num_kv_shared_layers",)) or 0
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    kind = kinds[index] if index < len(kinds) else "full_attention"
    window = first(text, ("sliding_window", "attention_chunk_size"))
    if kind in STATES:
        return Cached(0, None, state_of(text, kind))
    if index >= whole(text, "num_hidden_layers", "the model") - shared:
        return Cached(0, None, 0)
    latent = first(text, ("kv_lora_rank",))
    numbers = latent + (first(text, ("qk_rope_head_dim",)) or 0) if latent else usual
    windowed = kind in WINDOWED or (not kinds and window and getattr(text, "use_sliding_window", True))
    return Cached(numbers, window if windowed else None, 0)


def state_of(text: PreTrainedConfig, kind: str) -> int:
    """Numbers that a block of linear attention, Mamba or convolution keeps of a sequence, however long it is."""
    if kind == "conv":
        return (first(text, ("conv_L_cache",)) or 1) * int(text.hidden_size)
    for names in SIZES_OF_A_STATE:
        sizes = [first(text, (name,)) for name in names]
        if all(sizes):
            return prod(size for size in sizes if size)
    return int(text.hidden_size) ** 2 // int(text.num_attention_heads)


def first(text: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first of these sizes that the configuration has."""
    return next((value for name in names if isinstance(value := getattr(text, name, None), int) and value > 0), None)


def whole(text: PreTrainedConfig, name: str, model: str) -> int:
    """A size that there must be.

    Raises:
        UserError: it is not there.
    """
    value = getattr(text, name, None)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"the configuration of {model} has no single {name}, without which its memory cannot be counted")
    return value
