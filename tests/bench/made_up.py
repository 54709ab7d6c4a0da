"""A made-up checkpoint: random weights in the shape of a Llama or of a mixture of experts, as large and as deep as asked for, written a
block at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qlab import EMBEDDED

CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip
EXPERTS = {  # what files call a mixture, and an expert's gate, down and up projection
    "mixtral": ("block_sparse_moe", "w1", "w2", "w3"),
    "qwen3_moe": ("mlp", "gate_proj", "down_proj", "up_proj"),
}

ROWS = 1 << 15  # more than a layer of 70B has: of embedding and head these are repeated


def make_checkpoint(
    folder: Path,
    layers: int,
    hidden: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    kind: str = "llama",
    experts: int = 0,
    dtype: torch.dtype = torch.float16,
    rows: int = 4096,
    alike: bool = False,
) -> Path:
    """Write it to `folder` in `dtype`, a shard a block; the embedded model's tokenizer and its vocabulary, or one of `rows` whose first it
    is. All blocks are `alike` where time is short, and so are every ROWS rows of a matrix: drawing 8 billion numbers takes minutes.

    `kind` llama: embedding and head are one matrix; qwen2: they are two, and queries, keys and values have biases. mixtral, qwen3_moe: so
    many `experts` share an MLP of width `mlp`, in that family's layout; two or eight of them compute a token.
    """
    inner = mlp // max(1, experts)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, str] = {}

    def drawn(outputs: int, inputs: int) -> torch.Tensor:
        some = min(outputs, ROWS) if alike else outputs
        return (0.02 * torch.randn(some, inputs, generator=generator)).repeat(-(-outputs // some), 1)[:outputs]

    def save(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {name: (torch.ones(shape) if len(shape) == 1 else drawn(*shape)).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shards.update(dict.fromkeys(shapes, file))

    qwen = kind == "qwen2"
    head = {"lm_head.weight": (rows, hidden)} if qwen or rows != 4096 else {}
    save("model-embedding.safetensors", {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)} | head)
    narrow = hidden // heads * kv_heads
    for index in range(layers):
        if alike and index:
            first = load_file(folder / "model-000.safetensors")
            own = {name.replace("layers.0.", f"layers.{index}."): tensor for name, tensor in first.items()}
            save_file(own, folder / f"model-{index:03}.safetensors", metadata={"format": "pt"})
            shards.update(dict.fromkeys(own, f"model-{index:03}.safetensors"))
            continue
        parts = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }  # fmt: skip
        if experts:
            mixture, gate, down, up = EXPERTS[kind]
            parts |= {f"self_attn.{name}_norm": (hidden // heads,) for name in ("q", "k") if kind == "qwen3_moe"}
            parts[f"{mixture}.gate"] = (experts, hidden)
            for number in range(experts):
                widths = {gate: (inner, hidden), down: (hidden, inner), up: (inner, hidden)}
                parts |= {f"{mixture}.experts.{number}.{name}": shape for name, shape in widths.items()}
        else:
            parts |= {"mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}
        tensors = {f"model.layers.{index}.{name}.weight": shape for name, shape in parts.items()}
        biased = [name for name in tensors if qwen and any(f"{part}_proj" in name for part in "qkv")]
        biases = {name.replace(".weight", ".bias"): tensors[name][:1] for name in biased}
        save(f"model-{index:03}.safetensors", tensors | biases)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    config = {
        "architectures": [CLASSES[kind]], "model_type": kind,
        "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": rows,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": not head,
        "torch_dtype": str(dtype).removeprefix("torch."), "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    if kind == "mixtral":
        config |= {"num_local_experts": experts, "num_experts_per_tok": 2}
    if kind == "qwen3_moe":
        config |= {"num_experts": experts, "num_experts_per_tok": 8, "moe_intermediate_size": inner, "head_dim": hidden // heads}
        config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    return folder
