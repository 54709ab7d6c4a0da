"""GGUF: one file with weights, configuration and tokenizer, as llama.cpp and Ollama read it.

Which tensor gets which type follows llama.cpp's rules for its mixes (llama-quant.cpp): the output (or tied embedding) in
Q6_K, attention values and the MLP's down projection of some layers too, norms and biases in FP32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open
from torch import Tensor

from qlab.errors import UserError
from qlab.formats.kquant_bytes import to_bytes
from qlab.methods.kquants import SUPERBLOCK, q4_k, q6_k

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M}
# Rows that superblocks of 256 do not divide fall back to blocks of 32 (llama-quant.cpp, tensor_type_fallback).
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
# The pre-tokenizer's split pattern, as tokenizer.json has it, and llama.cpp's name for it.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2", "": "gpt-2"}


def write_gguf(folder: Path, config: dict[str, Any], mix: str, out: Path) -> None:
    """Write the model of `folder` to the file `out`, its weights in the `mix` f16, q8_0 or q4_k_m.

    Raises:
        UserError: an architecture, tokenizer or mix that this writer does not know.
    """
    if config["model_type"] not in ARCHITECTURES:
        raise UserError(f"no GGUF writer for model type {config['model_type']!r}: expected one of {', '.join(ARCHITECTURES)}")
    if mix not in FILE_TYPES:
        raise UserError(f"no GGUF mix {mix!r}: expected one of {', '.join(FILE_TYPES)}")
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    add_configuration(writer, config, mix)
    add_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise UserError(f"{name} has no place in a GGUF file of architecture {gguf.MODEL_ARCH_NAMES[arch]}")
                add_tensor(writer, target, rotary_order(name, opened.get_tensor(name), config), mix, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_configuration(writer: gguf.GGUFWriter, config: dict[str, Any], mix: str) -> None:
    """The model's sizes, under GGUF's names."""
    heads = config["num_attention_heads"]
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(
            f"no GGUF writer for rotary embeddings of type {rope.get('rope_type', rope.get('type'))!r}; only the default is written"
        )
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_file_type(FILE_TYPES[mix])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config["vocab_size"])
    if mix == "q4_k_m":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Tokens, merges and special tokens of a byte-level BPE tokenizer.

    Raises:
        UserError: another kind of tokenizer, or one whose pre-tokenizer llama.cpp has no name for.
    """
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text()) if file.exists() else {}
    if description.get("model", {}).get("type") != "BPE" or "ByteLevel" not in json.dumps(description.get("pre_tokenizer")):
        raise UserError("the GGUF writer takes byte-level BPE tokenizers (tokenizer.json); this model has another kind")
    added = {token["id"]: token for token in description["added_tokens"]}
    by_id = {index: token for token, index in description["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens, kinds = [], []
    for index in range(vocabulary):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        known = gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED
        kinds.append(known if index not in added else gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(description["pre_tokenizer"], description["model"].get("ignore_merges", False)))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    special.add_to_gguf(writer)
    if special.add_special_token.get("bos") is None:
        writer.add_add_bos_token(False)  # llama.cpp's default for llama-bpe is to add one; this tokenizer says nothing of it


def pre_tokenizer_name(pre_tokenizer: dict[str, Any], ignore_merges: bool = False) -> str:
    """llama.cpp's name for how text is split before merging.

    Under "llama-bpe" llama.cpp takes a word that is a token whole, whatever its merges (Llama 3's `ignore_merges`); "dbrx" splits
    by the same pattern and merges.
    """
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    pattern = next((step["pattern"].get("Regex", "?") for step in steps if step["type"] == "Split"), "")
    if pattern not in PRE_TOKENIZERS:
        raise UserError(f"llama.cpp's name for the pre-tokenizer pattern {pattern!r} is not known here; add it to PRE_TOKENIZERS")
    name = PRE_TOKENIZERS[pattern]
    return "dbrx" if name == "llama-bpe" and not ignore_merges else name


def rotary_order(name: str, tensor: Tensor, config: dict[str, Any]) -> Tensor:
    """Rows of a query or key projection in the order of llama.cpp's interleaved rotary embedding (its "llama" models)."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"]}
    part = name.split(".")[-2]
    if ARCHITECTURES[config["model_type"]] != gguf.MODEL_ARCH.LLAMA or part not in heads:
        return tensor
    return tensor.view(heads[part], 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, mix: str, config: dict[str, Any]) -> None:
    """Encode one tensor by the mix's rules and hand it to the writer."""
    kind = tensor_type(name, tensor.ndim, mix, config["num_hidden_layers"], config.get("tie_word_embeddings", False))
    if kind in FALLBACK and tensor.shape[-1] % SUPERBLOCK:
        kind = FALLBACK[kind]
    if kind in ("Q4_K", "Q6_K"):
        data: np.ndarray = to_bytes({"Q4_K": q4_k, "Q6_K": q6_k}[kind](tensor))
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    else:
        target = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), target), raw_dtype=target)


def tensor_type(name: str, dimensions: int, mix: str, layers: int, tied: bool) -> str:
    """The GGML type that the mix gives the tensor (llama-quant.cpp, llama_tensor_get_type)."""
    if dimensions == 1:
        return "F32"
    if mix in ("f16", "q8_0"):
        return mix.upper()
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K"
    if "attn_v" in name or "ffn_down" in name:
        return "Q6_K" if more_bits(int(name.split(".")[1]), layers) else "Q4_K"
    return "Q4_K"


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first eighth, the last eighth and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
