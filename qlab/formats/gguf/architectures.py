"""The model types that are written as GGUF, and read: which of llama.cpp's architectures computes each, and what it takes from both.

Names of tensors and keys are gguf-py's. What llama.cpp has built in and a file cannot say is held against the configuration here: a model
that wants another value is refused, since llama.cpp would compute another function; what is read from a file gets that value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

from qlab.formats.gguf import forms, variants
from qlab.formats.gguf import settings as to
from qlab.formats.gguf.forms import Form
from qlab.formats.gguf.mix import expert_count
from qlab.formats.gguf.settings import ATTENTION, LLM, Computed, Config, Row

ARCH = gguf.MODEL_ARCH
TANH = ("gelu_pytorch_tanh", "gelu_new")
GELU = ("gelu", *TANH)  # llama.cpp has one gelu, by the tangent: 0.0006 of the spread of logits apart, as all models are


@dataclass(frozen=True)
class Architecture:
    """llama.cpp's architecture `arch` of a model type.

    `activations`: that it computes. `own`: the family's names for values that others call otherwise, and `derived` values.
    `rows`, `computed`: settings beyond the sizes. `fixed`: values that llama.cpp has built in; `differs`: what else it would compute
    otherwise, empty where nothing. `partly`: whether it turns a part of each head where it is told to; `kinds`: whether attention of each
    kind has a rotary embedding of its own; `log_multiplier`: in what it counts YaRN's mscale_all_dim; `rope`: what the family's YaRN says
    and a file cannot. `forms`: of tensors that do not lie in the file as they are. `flags`: values that are true where the file has a
    tensor. `turned`: whether it has a rotary embedding. `dense`: forms that go before the others where the model has no experts.
    `read_as`: the type that a file is read as, where that is another one; `told_by`: a tensor or key by which a file of this type is told
    from others of its architecture.
    """

    arch: gguf.MODEL_ARCH
    activations: tuple[str, ...] = ("silu",)
    own: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Config], Config] = lambda config: {}
    rows: tuple[Row, ...] = ()
    computed: tuple[Computed, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    differs: Callable[[Config], str] = lambda config: ""
    partly: bool = False
    kinds: bool = False
    log_multiplier: float = 0.0
    rope: Mapping[str, Any] = field(default_factory=dict)
    forms: tuple[Form, ...] = ()
    dense: tuple[Form, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    turned: bool = True
    read_as: str = ""
    told_by: str = ""


def back_to(**values: Any) -> Computed:
    """Nothing to write, these values to read."""
    return Computed(lambda config: {}, lambda known: dict(values))


SOFTCAPS = (
    Row("attn_logit_softcapping", LLM.ATTN_LOGIT_SOFTCAPPING, float), Row("final_logit_softcapping", LLM.FINAL_LOGIT_SOFTCAPPING, float),
)  # fmt: skip
GEMMA = (to.windows(2), Computed(lambda config: {}, variants.gemma_back))
LOGITS = Row("logit_scale", LLM.LOGIT_SCALE, float)
GRANITE = (
    Row("logits_scaling", LLM.LOGIT_SCALE, float), Row("embedding_multiplier", LLM.EMBEDDING_SCALE, float),
    Row("residual_multiplier", LLM.RESIDUAL_SCALE, float), Row("attention_multiplier", ATTENTION.SCALE, float),
)  # fmt: skip
SHARED_MLP = Row("shared_intermediate_size", LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH)
EXPERT_WIDTH = Row("intermediate_size", LLM.EXPERT_FEED_FORWARD_LENGTH)
EVERY_BLOCK = {"decoder_sparse_step": 1, "mlp_only_layers": []}
BIAS = {"attention_bias": "blk.0.attn_q.bias"}
QWEN2_MOE = {"norm_topk_prob": False} | EVERY_BLOCK
QWEN3_MOE = {"norm_topk_prob": True} | EVERY_BLOCK
DEEP = (to.LEADING, to.SHARED, to.SCALED)
LATENT = (Row("q_lora_rank", ATTENTION.Q_LORA_RANK), Row("kv_lora_rank", ATTENTION.KV_LORA_RANK), *DEEP)
WINDOW = Computed(lambda config: {}, lambda known: {"sliding_window": known.whole(ATTENTION.SLIDING_WINDOW)})
CONV = Row("conv_L_cache", gguf.Keys.ShortConv.L_CACHE)

UNLIKE = {  # what llama.cpp has an architecture for, but computes otherwise
    "phimoe": "the chosen experts are weighed by their softmax there, by SparseMixer in this model",
}
WRAPPED_UNLIKE = {  # the same of models around a language model, by their own type
    "paligemma": "a token attends to those before it there, in this model to all of a prompt",
}
ARCHITECTURES = {
    "llama": Architecture(ARCH.LLAMA, forms=forms.TURNED, flags=BIAS | {"mlp_bias": "blk.0.ffn_down.bias"}),
    "mistral": Architecture(ARCH.LLAMA, forms=forms.TURNED, computed=(WINDOW,), told_by=ATTENTION.SLIDING_WINDOW),
    "mixtral": Architecture(
        ARCH.LLAMA, forms=forms.TURNED, own={"num_experts": "num_local_experts"}, computed=(back_to(sliding_window=None),),
        told_by="blk.0.ffn_gate_exps.weight",
    ),
    "ministral3": Architecture(
        ARCH.MISTRAL3, forms=forms.TURNED, log_multiplier=1.0, fixed={"sliding_window": None},
    ),
    "qwen2": Architecture(ARCH.QWEN2),
    "qwen3": Architecture(ARCH.QWEN3, flags=BIAS),
    "qwen2_moe": Architecture(ARCH.QWEN2MOE, fixed=QWEN2_MOE),
    "qwen3_moe": Architecture(ARCH.QWEN3MOE, fixed=QWEN3_MOE, flags=BIAS),
    "qwen2_vl_text": Architecture(ARCH.QWEN2VL, read_as="qwen2", differs=variants.everywhere),
    "qwen2_5_vl_text": Architecture(ARCH.QWEN2VL, read_as="qwen2", differs=variants.everywhere),
    "qwen3_vl_text": Architecture(ARCH.QWEN3VL, read_as="qwen3"),
    "qwen3_vl_moe_text": Architecture(ARCH.QWEN3VLMOE, read_as="qwen3_moe", fixed=EVERY_BLOCK),
    "qwen3_next": Architecture(
        ARCH.QWEN3NEXT, rows=to.GATED_DELTA_ROWS, computed=(to.GATED_DELTA,), fixed=QWEN3_MOE | {"attention_bias": False}, partly=True,
        forms=(forms.DELTA, forms.CONVOLUTION, forms.DECAY, forms.STEP, forms.shifted(r"(?<!linear_attn\.)norm\.weight")),
        differs=lambda config: "" if to.period(config["layer_types"], "full_attention") else "one block in so many has attention there",
    ),
    "olmoe": Architecture(ARCH.OLMOE, fixed={"norm_topk_prob": False, "clip_qkv": None}, differs=variants.separate),
    "deepseek_v2": Architecture(
        ARCH.DEEPSEEK2, own={"num_experts": "n_routed_experts"}, rows=LATENT,
        computed=(to.LATENT, to.SOFTMAX, back_to(topk_method="greedy")),
        fixed={"attention_bias": False, "mlp_bias": False}, differs=variants.groups, log_multiplier=0.1, forms=(forms.LATENT,),
    ),
    "deepseek_v3": Architecture(
        ARCH.DEEPSEEK2, own={"num_experts": "n_routed_experts"}, rows=(*LATENT, to.NORMALIZED, *to.GROUPS),
        computed=(to.LATENT, to.SIGMOID),
        fixed={"attention_bias": False, "rope_interleave": True}, log_multiplier=0.1, forms=(forms.LATENT, forms.CORRECTION),
        told_by="blk.{last}.exp_probs_b.bias",
    ),
    "glm4_moe": Architecture(
        ARCH.GLM4_MOE, own={"num_experts": "n_routed_experts"}, rows=(*DEEP, to.NORMALIZED, *to.GROUPS), computed=(to.SIGMOID,),
        partly=True, forms=(forms.CORRECTION,), flags=BIAS | {"use_qk_norm": "blk.0.attn_q_norm.weight"},
    ),
    "dots1": Architecture(
        ARCH.DOTS1, own={"num_experts": "n_routed_experts"}, rows=(*DEEP, to.NORMALIZED, *to.GROUPS), computed=(to.SIGMOID,),
        fixed={"attention_bias": False}, forms=(forms.CORRECTION,),
        differs=lambda config: variants.separate(config) or variants.everywhere(config),
    ),
    "ernie4_5_moe": Architecture(
        ARCH.ERNIE4_5_MOE,
        own={
            "num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k", "first_k_dense_replace": "moe_layer_start_index",
            "n_shared_experts": "moe_num_shared_experts",
        },
        rows=(to.LEADING, to.SHARED, Row("moe_layer_interval", LLM.INTERLEAVE_MOE_LAYER_STEP)), computed=(to.SHARED_WIDTH,),
        fixed={"use_bias": False}, differs=variants.ernie, forms=(forms.STATICS,),
    ),
    "minimax_m2": Architecture(
        ARCH.MINIMAXM2, own={"num_experts": "num_local_experts"}, rows=(EXPERT_WIDTH,), computed=(to.SIGMOID,), partly=True,
        forms=(forms.CORRECTION,),
    ),
    "granitemoe": Architecture(ARCH.GRANITE_MOE, own={"num_experts": "num_local_experts"}, forms=forms.TURNED, rows=GRANITE, flags=BIAS),
    "granitemoeshared": Architecture(
        ARCH.GRANITE_MOE, own={"num_experts": "num_local_experts"}, forms=(*forms.TURNED, forms.SHARED_GATE_UP),
        rows=(*GRANITE, SHARED_MLP), flags=BIAS, told_by="blk.0.ffn_gate_shexp.weight",
    ),
    "granitemoehybrid": Architecture(
        ARCH.GRANITE_HYBRID, own={"num_experts": "num_local_experts"}, rows=(*GRANITE, SHARED_MLP, *to.MAMBA_ROWS),
        derived=variants.shared_alone, computed=(to.mixers("linear_attention"), to.MAMBA, Computed(lambda config: {}, variants.no_experts)),
        fixed={"mamba_proj_bias": False}, differs=variants.hybrid, dense=forms.SHARED_ALONE,
        forms=(*forms.TURNED, forms.SHARED_GATE_UP, forms.CONVOLUTION, forms.STEP, *forms.COLUMNS),
        flags=BIAS | {"mamba_conv_bias": "blk.0.ssm_conv1d.bias"},
    ),
    "gpt_oss": Architecture(
        ARCH.GPT_OSS, own={"num_experts": "num_local_experts"}, rows=(EXPERT_WIDTH,), computed=(to.windows(2),), differs=variants.attends,
        forms=(forms.SINKS,), rope={"truncate": False},
    ),
    "lfm2": Architecture(
        ARCH.LFM2, own={"rms_norm_eps": "norm_eps"}, derived=variants.lfm2, rows=(CONV,), fixed={"conv_bias": False},
        forms=(forms.CONVOLUTION,),
        computed=(to.mixers("conv"), back_to(block_auto_adjust_ff_dim=False)),
    ),
    "lfm2_moe": Architecture(
        ARCH.LFM2MOE, own={"rms_norm_eps": "norm_eps", "first_k_dense_replace": "num_dense_layers"}, rows=(CONV, to.LEADING),
        computed=(to.mixers("conv"), to.SIGMOID), forms=(forms.CONVOLUTION, forms.EXPERT_BIAS),
        fixed={"conv_bias": False, "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    ),
    "gemma": Architecture(ARCH.GEMMA, TANH, forms=(forms.NORMS,), fixed={"attention_bias": False}),
    "gemma2": Architecture(
        ARCH.GEMMA2, TANH, forms=(forms.NORMS,), fixed={"attention_bias": False}, rows=SOFTCAPS, computed=GEMMA, differs=variants.gemma,
    ),
    "gemma3_text": Architecture(
        ARCH.GEMMA3, TANH, forms=(forms.NORMS,), fixed={"attention_bias": False}, rows=SOFTCAPS, computed=(to.windows(6), GEMMA[1]),
        differs=variants.gemma, kinds=True,
    ),
    "phi3": Architecture(ARCH.PHI3, partly=True),
    "olmo2": Architecture(ARCH.OLMO2, fixed={"attention_bias": False}),
    "olmo3": Architecture(
        ARCH.OLMO2, fixed={"attention_bias": False}, computed=(to.windows(4),), differs=variants.attends, kinds=True,
        told_by=ATTENTION.SLIDING_WINDOW,
    ),
    "smollm3": Architecture(ARCH.SMOLLM3, forms=forms.TURNED, differs=variants.smollm3, flags=BIAS),
    "granite": Architecture(ARCH.GRANITE, forms=forms.TURNED, rows=GRANITE, flags=BIAS | {"mlp_bias": "blk.0.ffn_down.bias"}),
    "glm": Architecture(ARCH.CHATGLM, partly=True, flags=BIAS),
    "glm4": Architecture(ARCH.GLM4, partly=True, flags=BIAS),
    "cohere": Architecture(
        ARCH.COMMAND_R, rows=(LOGITS,), fixed={"use_qk_norm": False}, flags=BIAS,
    ),
    "cohere2": Architecture(
        ARCH.COHERE2, rows=(LOGITS,), computed=(to.windows(4),), fixed={"attention_bias": False}, differs=variants.attends,
    ),
    "exaone4": Architecture(ARCH.EXAONE4, computed=(to.windows(4),), differs=variants.exaone4),
    "seed_oss": Architecture(ARCH.SEED_OSS, fixed={"attention_out_bias": False, "mlp_bias": False}, flags=BIAS),
    "starcoder2": Architecture(
        ARCH.STARCODER2, TANH, own={"layer_norm_eps": "norm_epsilon"}, flags={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        ARCH.STABLELM, rows=(Row("use_parallel_residual", LLM.USE_PARALLEL_RESIDUAL, bool),), fixed={"qk_layernorm": False}, partly=True,
        flags={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    "gpt_neox": Architecture(
        ARCH.GPTNEOX, GELU, rows=(Row("use_parallel_residual", LLM.USE_PARALLEL_RESIDUAL, bool),), fixed={"attention_bias": True},
        partly=True, forms=(forms.FUSED,),
    ),
    "falcon": Architecture(
        ARCH.FALCON, GELU, own={"layer_norm_eps": "layer_norm_epsilon", "intermediate_size": "ffn_hidden_size"}, derived=variants.falcon,
        computed=(Computed(lambda config: {}, variants.falcon_back),), fixed={"alibi": False, "bias": False, "parallel_attn": True},
        forms=(forms.FUSED,),
    ),
    "bloom": Architecture(
        ARCH.BLOOM, TANH, own={"layer_norm_eps": "layer_norm_epsilon", "max_position_embeddings": "seq_length"}, derived=variants.bloom,
        fixed={"apply_residual_connection_post_layernorm": False}, forms=(forms.FUSED,), turned=False,
    ),
}  # fmt: skip


def standard(config: Config) -> Config:
    """The configuration with the values that its family calls otherwise, or leaves to be computed, under their usual names."""
    found = ARCHITECTURES[config["model_type"]]
    usual = config | {name: config[own] for name, own in found.own.items() if own in config}
    usual |= {"num_key_value_heads": usual.get("num_key_value_heads") or usual["num_attention_heads"], "num_experts": expert_count(config)}
    return usual | found.derived(usual)
