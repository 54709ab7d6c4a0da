"""Variants of model types in their configurations: which of them llama.cpp would compute otherwise, and values that it wants computed."""

from __future__ import annotations

from qlab.formats.gguf import settings as to
from qlab.formats.gguf.settings import ATTENTION, LLM, Config, Known


def head_size(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def attends(config: Config) -> str:
    """One block in n attends to all tokens, the others to a window."""
    kinds = config.get("layer_types") or []
    regular = "full_attention" not in kinds or to.period(kinds, "full_attention")
    return "" if regular else "one block in so many attends to all tokens there, and no others"


def scaled(config: Config) -> float:
    """What Gemma's attention is scaled by in llama.cpp: the size of a head, but for its two models of 27B."""
    large = config["num_hidden_layers"] in (46, 62)
    return config["hidden_size"] / config["num_attention_heads"] if large else head_size(config)


def gemma(config: Config) -> str:
    scale = scaled(config)
    if config.get("query_pre_attn_scalar", scale) != scale:
        return f"attention is scaled by heads of {scale:g} there, not {config['query_pre_attn_scalar']}"
    return attends(config)


def gemma_back(known: Known) -> Config:
    heads, layers = known.whole(ATTENTION.HEAD_COUNT), known.whole(LLM.BLOCK_COUNT)
    sizes = {"num_attention_heads": heads, "num_hidden_layers": layers, "hidden_size": known.whole(LLM.EMBEDDING_LENGTH)}
    return {"query_pre_attn_scalar": scaled(sizes | {"head_dim": known.whole(ATTENTION.KEY_LENGTH, 0, least=0)})}


def separate(config: Config) -> str:
    apart = config.get("num_key_value_heads") in (None, config["num_attention_heads"])
    return "" if apart else "every head has keys and values of its own there"


def smollm3(config: Config) -> str:
    kinds = [int((index + 1) % 4 != 0) for index in range(config["num_hidden_layers"])]
    return "" if config.get("no_rope_layers", kinds) == kinds else "every fourth block has no rotary embedding there"


def exaone4(config: Config) -> str:
    if config.get("sliding_window") and config["num_hidden_layers"] != 64:
        return "only the one of 64 blocks has sliding windows there"
    return attends(config)


def groups(config: Config) -> str:
    grouped = config.get("topk_method", "greedy") != "greedy" and (config.get("n_group") or 1) > 1
    return "groups of experts are chosen by their two best there, by the best in this model" if grouped else ""


def ernie(config: Config) -> str:
    last = config.get("moe_layer_end_index", -1) in (-1, config["num_hidden_layers"] - 1)
    return "" if last else "experts reach to the last block there"


def everywhere(config: Config) -> str:
    """No block's attention slides."""
    return "attention has no sliding windows there" if "sliding_attention" in (config.get("layer_types") or []) else ""


def hybrid(config: Config) -> str:
    attending = all(kind in to.ATTENDING for kind in config["layer_types"])
    return "some blocks are Mamba's there" if attending else ""


def shared_alone(config: Config) -> Config:
    """The width of Granite's MLP, which is that of its shared expert where it has no others."""
    return {} if config["num_experts"] else {"intermediate_size": config["shared_intermediate_size"]}


def no_experts(known: Known) -> Config:
    """What Granite's configuration says where the file has no experts."""
    mixture = any("_exps." in name for name in known.shapes)
    return {} if mixture else {"num_experts": 0, "shared_intermediate_size": known.whole(LLM.FEED_FORWARD_LENGTH)}


def falcon(config: Config) -> Config:
    new, one = config.get("new_decoder_architecture"), config.get("multi_query")
    return {"num_key_value_heads": config["num_kv_heads"] if new else 1 if one else config["num_attention_heads"]}


def falcon_back(known: Known) -> Config:
    heads, both = known.whole(ATTENTION.HEAD_COUNT_KV), "blk.0.attn_norm_2.weight" in known.shapes
    new = both or heads not in (1, known.whole(ATTENTION.HEAD_COUNT))
    return {"num_kv_heads": heads, "new_decoder_architecture": new, "num_ln_in_parallel_attn": 1 + both if new else None} | (
        {} if new else {"multi_query": heads == 1}
    )


def bloom(config: Config) -> Config:
    """The width of BLOOM's MLP, and a context where nothing says one: its positions count by their distance alone."""
    return {"intermediate_size": 4 * config["hidden_size"], "max_position_embeddings": config.get("max_position_embeddings") or 2048}


def lfm2(config: Config) -> Config:
    """The width of LFM2's MLP, which its configuration may leave to be computed."""
    if not config.get("block_auto_adjust_ff_dim"):
        return {}
    width, multiple = int(2 * config["intermediate_size"] / 3), config["block_multiple_of"]
    if (factor := config.get("block_ffn_dim_multiplier")) is not None:
        width = int(factor * width)
    return {"intermediate_size": -(-width // multiple) * multiple}
